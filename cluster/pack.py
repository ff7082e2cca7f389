"""A run folder as text, for `xfer cluster fetch` from storage that is not seen there.

It is sent to the cluster and needs nothing but Python. Lines of base64 between two marks: a tar.gz, then its digest.
"""

import base64
import hashlib
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

BEGIN, END = "xfer-pack-begins", "xfer-pack-ends"
LARGEST_MB = 200  # Ray's job server holds a whole log in memory
LINE = 12_000  # bytes of one line, before base64


def left_out(path: Path, checkpoints: bool) -> bool:
    """Whether `path`, relative to the run folder, is no part of what is fetched: locks, drafts, Ray's own state, and
    the checkpoints unless they are asked for.
    """
    hidden = any(part.startswith(".") or part.endswith(".ray") for part in path.parts)
    return hidden or (not checkpoints and "checkpoints" in path.parts)


def files(folder: Path, checkpoints: bool) -> Iterator[Path]:
    """What is fetched of a run folder, relative to it."""
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not left_out(inside, checkpoints):
            yield inside


def pack(folder: Path, checkpoints: bool, out: BinaryIO) -> None:
    """Writes the tar.gz of a run folder to `out`."""
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=6) as tar:
        for inside in files(folder, checkpoints):
            tar.add(folder / inside, str(inside))


def main(folder: str, checkpoints: str) -> int:
    """Prints a run folder. Exit status 1 if it is not there or too large."""
    if not Path(folder).is_dir():
        print(f"{folder}: no such folder on the cluster either")
        return 1
    with tempfile.TemporaryFile() as file:
        pack(Path(folder), checkpoints == "checkpoints", file)
        megabytes = file.tell() / 1e6
        if megabytes > LARGEST_MB:
            print(f"{folder}: {megabytes:,.0f} MB, and the job server carries {LARGEST_MB} MB at most")
            return 1
        file.seek(0)
        digest = hashlib.sha256()
        print(BEGIN)
        while chunk := file.read(LINE):
            digest.update(chunk)
            print(base64.b64encode(chunk).decode())
        print(f"{END} {digest.hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
