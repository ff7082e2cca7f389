"""A split as a Ray Dataset, for jobs beside training: embeddings, statistics, relabelling, a batch of predictions.

Each read task takes one shard and reads it with the reader that training uses, so every byte is checked against its
crc32; a damaged sample fails the job and is named, for a job over what is left is not a job over this data. Rows keep
the order inside a shard; shards come as they are ready. This is not the way to train: no exact order, no resume.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.loading.damage import DamagedDataError
from shards.loading.open import open_subset
from shards.loading.reader import DamagedSampleError, Reader
from shards.loading.subset import Subset
from shards.settings import ConfigError

if TYPE_CHECKING:
    from ray.data import Dataset


def to_ray(data: Subset | str | Path, split: str = "train") -> "Dataset":
    """Rows `key` (text), `image` (the encoded bytes), `extension`, `label` (class index, -1: none), `class` (its name,
    or empty), and `boxes`, `mask`, `side` (bytes, or None) as far as the split has them.

    `data`: a folder that every node can read, or a subset of one (`split` is then the subset's). Call it inside
    `cluster.session.connect()`. Raises ConfigError.
    """
    import ray.data  # it reads the environment when it is imported: not before `connect`

    subset = data if isinstance(data, Subset) else open_subset(data, split)
    subset = subset.numbered(subset.classes)
    if subset.cache:
        raise ConfigError(
            f"{subset.folder}: tasks on other nodes cannot fetch from it; give a folder that all can read"
        )
    shards = [{"shard": number} for number, count in enumerate(subset.shard_samples) if count]
    if not shards:
        raise ConfigError(f"{subset.folder}: no sample of split {subset.manifest.split!r} passes")
    return ray.data.from_items(shards, override_num_blocks=len(shards)).flat_map(partial(_rows, subset))


def _rows(subset: Subset, task: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The samples of one shard; a generator, so a task holds no more than a block of them."""
    shard = int(task["shard"])
    roles = {role: subset.manifest.fields[role] for role in ("boxes", "mask", "side") if role in subset.manifest.fields}
    reader = Reader([subset])
    for row in range(int(subset.shard_samples[shard])):
        try:
            sample = reader.read(0, shard, row)
        except DamagedSampleError as error:
            where = f"{subset.manifest.shards[shard].path}, {reader.name(0, shard, row)}"
            raise DamagedDataError(f"{subset.folder}: {where}: {error}; see `xfer shards verify`") from None
        name = subset.classes[sample.label] if sample.label >= 0 else ""
        others = {role: sample.fields.get(extension) for role, extension in roles.items()}
        yield {
            "key": sample.key,
            "image": sample.image,
            "extension": sample.extension,
            "label": sample.label,
            "class": name,
            **others,
        }
