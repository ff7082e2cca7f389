"""The perceptual hashes of all samples of a split, taken by several processes and kept, so that they are taken once.

    train.hashes.0123456789ab.npy     beside the manifest: a HASH for each row of the index, written whole
    .hashes-train/                    while they are taken: the shards that are done, so Ctrl-C costs a shard or two

The digits are a hash of the split's version and of the versions of hashes and decoder: what was kept of anything else
is never used, and removed when the next hashes are written. If the folder cannot be written to, they go to
~/.cache/xfer/hashes. Costs the reading and decoding of every sample once, and 160 bytes of disk a sample; memory stays
flat. A damaged sample has no hash: it is tried again each time, and named.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from shards import decode, pool
from shards.decode import DecodeError
from shards.format.lock import locked
from shards.format.manifest import Manifest, canonical, read_manifest, splits_in
from shards.format.whole import whole_file
from shards.inspect.dups import perceptual_hash
from shards.inspect.dups.perceptual_hash import HASH, take_hash
from shards.inspect.glance import Damaged
from shards.loading.reader import DamagedSampleError, Reader
from shards.loading.subset import Subset
from shards.progress import progress

_TASKS_A_PROCESS = 8
_ELSEWHERE = "~/.cache/xfer/hashes"


@dataclass(frozen=True)
class Hashes:
    """`rows`: the hash of each sample, HASH [samples], memory-mapped; damaged samples have none, `faults` name
    them. `taken`: how many were taken just now, the others were kept.
    """

    rows: np.ndarray
    faults: tuple[Damaged, ...]
    taken: int


def hashes_of(subset: Subset, processes: int | None = None) -> Hashes:
    """The hashes of a whole split of a local folder. Raises ConfigError."""
    assert not subset.filters
    assert not subset.store
    path, num_samples = _place(Path(subset.folder), subset.manifest), subset.manifest.num_samples
    rows, taken = _open(path, num_samples), 0
    if rows is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.name.partition(".hashes.")[0]
        refusal = f"{subset.folder}: another `xfer shards dups` is looking at {subset.manifest.split!r}; wait for it"
        with locked(path.parent / f".hashes-{name}.lock", refusal):
            taken = _take_all(subset, path, path.parent / f".hashes-{name}", processes)
            _remove_old(Path(subset.folder), subset.manifest, path)
        rows = _open(path, num_samples)
        assert rows is not None
    fixed, faults = _try_again(subset, rows)
    if fixed:
        rows = _with(rows, fixed, path)
    return Hashes(rows, tuple(faults), taken + len(fixed))


def _place(folder: Path, manifest: Manifest) -> Path:
    """Where the hashes of a split are kept."""
    if os.access(folder, os.W_OK):
        return folder / f"{manifest.split}.hashes.{_digits(manifest)}.npy"
    whose = hashlib.sha256(os.path.abspath(folder).encode()).hexdigest()[:12]
    return Path(os.path.expanduser(_ELSEWHERE)) / f"{whose}-{manifest.split}.hashes.{_digits(manifest)}.npy"


def _digits(manifest: Manifest) -> str:
    content = [perceptual_hash.VERSION, decode.VERSION, manifest.version]
    return hashlib.sha256(canonical(content)).hexdigest()[:12]


def _open(path: Path, num_samples: int) -> np.ndarray | None:
    """HASH [num_samples] if a file holds them, else None: what is missing or damaged is taken anew."""
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy's reader of headers raises ValueError, SyntaxError, TokenError, ... on damage
        return None
    return rows if rows.dtype == HASH and rows.shape == (num_samples,) else None


def _take_all(subset: Subset, path: Path, state: Path, processes: int | None) -> int:
    """Takes what is missing in the folder `state`, then writes all as one file. Says how many it took."""
    manifest, parts = subset.manifest, state / path.stem
    if not parts.exists():
        shutil.rmtree(state, ignore_errors=True)
        parts.mkdir(parents=True)
    missing = [n for n, shard in enumerate(manifest.shards) if _open(parts / f"{n}.npy", shard.samples) is None]
    left = sum(manifest.shards[n].samples for n in missing)
    processes = processes or pool.worthwhile(left)
    tasks = list(_cut(missing, processes * _TASKS_A_PROCESS))
    what, done = f"look at {manifest.name}/{manifest.split}", manifest.num_samples - left
    with progress(what, manifest.num_samples, "samples", done) as advance:
        for _ in pool.run(partial(_take_shards, subset, parts), tasks, processes, advance):
            pass
    with whole_file(path) as temporary:
        rows = np.lib.format.open_memmap(temporary, mode="w+", dtype=HASH, shape=(manifest.num_samples,))
        for n, shard in enumerate(manifest.shards):
            part = _open(parts / f"{n}.npy", shard.samples)
            assert part is not None
            rows[subset.shard_starts[n] : subset.shard_starts[n + 1]] = part
        rows.flush()
    shutil.rmtree(state)
    return left


def _cut(shards: Sequence[int], count: int) -> Iterator[Sequence[int]]:
    """The shards in `count` parts or fewer, none of them empty."""
    count = min(count, len(shards))
    for part in range(count):
        yield shards[part * len(shards) // count : (part + 1) * len(shards) // count]


def _take_shards(subset: Subset, parts: Path, shards: Sequence[int], advance: Callable[[int], None]) -> None:
    reader = Reader([subset])
    for shard in shards:
        rows = np.zeros(subset.manifest.shards[shard].samples, HASH)
        for row in range(len(rows)):
            taken = _take(reader, shard, row)
            if not isinstance(taken, str):
                rows[row] = taken
            advance(1)
        with whole_file(parts / f"{shard}.npy") as temporary:
            np.save(temporary, rows, allow_pickle=False)


def _take(reader: Reader, shard: int, row: int) -> np.ndarray | str:
    """The hash of a sample, or why it has none."""
    try:
        return take_hash(reader.read(0, shard, row).image)
    except (DamagedSampleError, DecodeError) as error:
        return str(error)


def _try_again(subset: Subset, rows: np.ndarray) -> tuple[dict[int, np.ndarray], list[Damaged]]:
    """Of the samples without a hash: those that have one now, by row, and what is wrong with the others."""
    reader, fixed, faults = Reader([subset]), {}, []
    for i in np.flatnonzero(~rows["file"].any(axis=1)).tolist():
        shard, row = subset.locate(i)
        taken = _take(reader, shard, row)
        if isinstance(taken, str):
            faults.append(Damaged(reader.name(0, shard, row), taken))
        else:
            fixed[i] = taken
    return fixed, faults


def _with(rows: np.ndarray, fixed: dict[int, np.ndarray], path: Path) -> np.ndarray:
    """The hashes with some of them replaced, written anew."""
    changed = np.array(rows)
    for i, row in fixed.items():
        changed[i] = row
    with whole_file(path) as temporary:
        np.save(temporary, changed, allow_pickle=False)
    return changed


def _remove_old(folder: Path, manifest: Manifest, path: Path) -> None:
    """Removes the hashes of versions of the split that are no longer there."""
    prefix = path.name.removesuffix(f"{_digits(manifest)}.npy")
    versions = [split for split in splits_in(folder) if split.partition("@")[0] == manifest.split]
    known = {f"{prefix}{_digits(read_manifest(folder, split))}.npy" for split in versions}
    for old in path.parent.glob(f"{prefix}*.npy"):
        if old.name not in known:
            old.unlink(missing_ok=True)
    for old in path.parent.glob(f"{manifest.split}.prints.*.npy"):  # what they were called once
        old.unlink(missing_ok=True)
