"""What a built split holds, read by the standard library's tarfile and not by our own reader."""

import tarfile
from pathlib import Path

from shards.format.tar import sample_key


def members_of(folder: Path, split: str = "train") -> dict[str, dict[str, bytes]]:
    """Key -> extension -> bytes of every sample."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                name, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file
                samples.setdefault(sample_key(name), {})[extension] = file.read()
    return samples
