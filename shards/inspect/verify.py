"""Reads every byte of a split again and compares it with what was written: sha256 of each file, crc32, headers, keys,
decode, boxes, masks and side inputs.

Training only notices the damage it comes upon; this finds all of it, on all cores, at about the speed of a build.
A shard whose sha256 does not match is a fault of its own, also where every sample in it proves to be sound: the bytes
between samples may have changed. What to do about faults is `repair.py`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards import pool
from shards.decode import DecodeError, decode
from shards.format.annotations import annotations
from shards.format.hashing import name_key
from shards.format.manifest import File, Manifest, describe, open_index, read_manifest
from shards.format.statistics import Tally
from shards.loading.damage import DamagedDataError
from shards.loading.reader import DamagedSampleError, Reader
from shards.loading.subset import Subset
from shards.progress import progress
from shards.text import table

COLUMNS = ("file", "key", "row", "reason")
_SHOWN = 50
_TASKS_A_PROCESS = 8


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it was written: in which file, which sample, why. `row`: its row in the index; None
    where the file itself is at fault.
    """

    file: str
    key: str
    reason: str
    row: int | None = None


@dataclass(frozen=True)
class Inspection:
    """What was found. `files`: the shards as they are now, None where one cannot be read; `tally`: sums over the
    sound samples, if they were asked for.
    """

    folder: str
    split: str
    manifest: Manifest
    faults: tuple[Fault, ...]
    files: tuple[File | None, ...]
    tally: Tally | None


def verify(folder: str | Path, split: str = "train") -> Manifest:
    """The manifest of a split found whole. Raises DamagedDataError naming the damage, or ConfigError."""
    found = inspect(folder, split)
    if found.faults:
        lines = [
            f"{folder}: split {split!r} is damaged",
            *fault_lines(found.faults),
            "copy it again, or build it again",
        ]
        raise DamagedDataError("\n".join(lines))
    return found.manifest


def inspect(
    folder: str | Path, split: str = "train", processes: int | None = None, statistics: bool = False
) -> Inspection:
    """All damage of a split, in the order of its files. Raises ConfigError if it cannot be opened at all."""
    manifest = read_manifest(folder, split)
    open_index(folder, manifest)
    processes = processes or pool.worthwhile(manifest.num_samples)
    tasks = _tasks(str(folder), split, manifest, processes * _TASKS_A_PROCESS, statistics)
    with progress(f"verify {manifest.name}/{split}", manifest.num_samples, "samples") as advance:
        parts = sorted(pool.run(_inspect_shards, tasks, processes, advance), key=lambda part: part.first)
    index_fault = _changed(manifest.index, _described(Path(folder), manifest.index))
    faults = [fault for part in parts for fault in part.faults]
    files = tuple(file for part in parts for file in part.files)
    tally = _sum(len(manifest.classes), [part.tally for part in parts]) if statistics else None
    faults = ([Fault(manifest.index.path, "", index_fault)] if index_fault else []) + faults
    return Inspection(str(folder), split, manifest, tuple(faults), files, tally)


def fault_lines(faults: Sequence[Fault], shown: int = _SHOWN) -> list[str]:
    """The faults as aligned lines of file, key and reason; `shown` of them at most, and how many more there are."""
    lines = table([[fault.file, fault.key or "(the file)", fault.reason] for fault in faults[:shown]], left=3)
    return lines + ([f"  ... and {len(faults) - shown:,} more"] if len(faults) > shown else [])


def csv_rows(faults: Sequence[Fault]) -> list[list[object]]:
    """Every fault, a row of COLUMNS each."""
    return [[fault.file, fault.key, "" if fault.row is None else fault.row, fault.reason] for fault in faults]


@dataclass(frozen=True)
class _Task:
    """Shards `first` to `end` of a split."""

    folder: str
    split: str
    version: str
    first: int
    end: int
    statistics: bool


@dataclass(frozen=True)
class _Part:
    """What one task found."""

    first: int
    faults: tuple[Fault, ...]
    files: tuple[File | None, ...]
    tally: Tally


def _tasks(folder: str, split: str, manifest: Manifest, count: int, statistics: bool) -> list[_Task]:
    shards = len(manifest.shards)
    count = max(1, min(count, shards))
    cuts = [n * shards // count for n in range(count + 1)]
    return [
        _Task(folder, split, manifest.version, cuts[n], cuts[n + 1], statistics)
        for n in range(count)
        if cuts[n] < cuts[n + 1]
    ]


def _inspect_shards(task: _Task, advance: Callable[[int], None]) -> _Part:
    manifest = read_manifest(task.folder, task.split)
    if manifest.version != task.version:
        raise RuntimeError(f"{task.folder}: split {task.split!r} was written anew in the meantime; verify it again")
    subset = Subset(manifest.name, task.folder, manifest)
    reader, starts, tally = Reader([subset]), subset.shard_starts, Tally([0] * len(manifest.classes))
    faults: list[Fault] = []
    files: list[File | None] = []
    for number in range(task.first, task.end):
        shard = manifest.shards[number]
        found = _described(Path(task.folder), shard)
        if reason := _changed(shard, found):
            faults.append(Fault(shard.path, "", reason))
        if isinstance(found, File):
            faults += _sample_faults(reader, number, int(starts[number]), tally if task.statistics else None, advance)
        else:
            advance(shard.samples)
        files.append(found if isinstance(found, File) else None)
    return _Part(task.first, tuple(faults), tuple(files), tally)


def _sample_faults(
    reader: Reader, number: int, first: int, tally: Tally | None, advance: Callable[[int], None]
) -> Iterator[Fault]:
    """The damaged samples of one shard, whose samples begin at row `first`; sound ones are counted in `tally`."""
    subset = reader.subsets[0]
    shard = subset.manifest.shards[number]
    keys = open_index(subset.folder, subset.manifest)["key"][first : first + shard.samples]
    for row in range(shard.samples):
        try:
            _check(subset.manifest, reader, number, row, int(keys[row]), tally)
        except (DamagedSampleError, DecodeError, ValueError) as error:
            yield Fault(shard.path, reader.name(0, number, row), str(error), first + row)
        advance(1)


def _check(manifest: Manifest, reader: Reader, number: int, row: int, key: int, tally: Tally | None) -> None:
    sample = reader.read(0, number, row)
    if name_key(sample.key) != key:
        raise ValueError("its key is not the one in its index row")
    image = decode(sample.image)
    height, width = image.shape[:2]
    said = annotations(sample.fields, manifest.fields, len(manifest.classes), width, height)
    if tally is not None:
        counts = said.class_counts(sample.label, len(manifest.classes))
        tally.add(image, sample.extension, counts, said.ignored)


def _described(folder: Path, file: File) -> File | str:
    """A file as it is now, or why it cannot be read."""
    try:
        return describe(folder / file.path, file.path, file.samples)
    except OSError as error:
        return os.strerror(error.errno or 0)


def _changed(file: File, found: File | str) -> str | None:
    """How a file differs from what the manifest says, if it does."""
    if isinstance(found, str):
        return f"cannot be read: {found}"
    if found.bytes != file.bytes:
        return f"has {found.bytes:,} bytes, {file.bytes:,} were written"
    return None if found.sha256 == file.sha256 else "its bytes changed since the build (sha256 does not match)"


def _sum(num_classes: int, tallies: Sequence[Tally]) -> Tally:
    total = Tally([0] * num_classes)
    for tally in tallies:
        total.merge(tally)
    return total
