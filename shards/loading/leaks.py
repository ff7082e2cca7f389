"""Test samples that are trained on: the same images, under whatever name, order, build or data set they come.

Two samples are the same if their encoded images have one hash; of a data set without these hashes (built before there
were any, or copied without them) if key, length and checksum in the index agree. Costs a look at 8 bytes a sample of
every source, and a few reads of tars where something is found, to name it.
"""

import os
from collections.abc import Iterator, Sequence

import numpy as np

from shards.format.hashing import mix_array
from shards.format.manifest import INDEX
from shards.format.tar import TarError, parse_sample, sample_key
from shards.loading.subset import Subset

_CHUNK = 1 << 20
_SHOWN = 3
Content = np.ndarray | None


def leaks(sources: Sequence[Subset], test: Sequence[Subset]) -> list[str]:
    """What a user has to know, a line for each pair of test and training source. Raises ConfigError."""
    faults = []
    contents = {id(subset): subset.content() for subset in (*test, *sources)} if test else {}
    for subset in test:
        for other in sources:
            rows = _shared(subset, other, contents[id(subset)], contents[id(other)])
            if len(rows):
                some = ", ".join(_name(subset, int(row)) for row in rows[:_SHOWN])
                more = ", ..." if len(rows) > _SHOWN else ""
                faults.append(
                    f"data.test.{subset.name}: {len(rows):,} of {subset.num_samples:,} samples of {subset.folder} are "
                    f"also in sources.{other.name} ({other.folder}): {some}{more}: the model would be tested on what "
                    f"it was trained on; build one without them (xfer shards dups {other.folder} --test "
                    f"{subset.folder} lists all)"
                )
    return faults


def num_shared(subset: Subset, others: Sequence[Subset]) -> int:
    """How many samples of a subset are in any of the others too."""
    content = subset.content()
    rows = [_shared(subset, other, content, other.content()) for other in others]
    return len(np.unique(np.concatenate(rows))) if rows else 0


def _shared(subset: Subset, other: Subset, content: Content, of_other: Content) -> np.ndarray:
    """Index rows of the subset's samples that are in the other one too, int64 ascending."""
    if content is None or of_other is None:
        content = of_other = None
    ordered = np.unique(np.concatenate([part for _, part in _identities(subset, content)]))
    met = set()
    for _, part in _identities(other, of_other):
        places = np.searchsorted(ordered, part).clip(max=len(ordered) - 1)
        met.update(part[ordered[places] == part].tolist())
    if not met:
        return np.empty(0, np.int64)
    shared = np.array(sorted(met), np.uint64)
    return np.concatenate([rows[np.isin(part, shared)] for rows, part in _identities(subset, content)])


def _identities(subset: Subset, content: Content) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index rows int64 [n] and what tells their samples from all others, uint64 [n], for all of a subset."""
    index = subset.index()
    for start in range(0, len(index), _CHUNK):
        chunk = np.array(index[start : start + _CHUNK])
        kept = np.flatnonzero(subset.passes(chunk))
        yield start + kept, _fingerprints(chunk[kept]) if content is None else content[start + kept]


def _fingerprints(rows: np.ndarray) -> np.ndarray:
    """Key, length and checksum of index rows in one number, uint64 [n]."""
    assert rows.dtype == INDEX
    place = rows["length"].astype(np.uint64) << np.uint64(32) | rows["crc32"].astype(np.uint64)
    return rows["key"] ^ mix_array(place)


def _name(subset: Subset, row: int) -> str:
    """The key of a sample, or its row where its shard is not on this machine."""
    shard = int(np.searchsorted(subset.shard_starts, row, side="right")) - 1
    where = subset.index()[row]
    try:
        with open(subset.shard_path(shard), "rb") as file:
            span = os.pread(file.fileno(), int(where["length"]), int(where["offset"]))
        return sample_key(parse_sample(span)[0])
    except (OSError, TarError):
        return f"row {row}"
