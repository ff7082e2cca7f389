"""Leaves damaged samples out of a split by a new version of it; no tar is touched.

Shards are immutable. The new version has an index without the bad rows and a manifest that names it, with `parent`
the old version. Both old files stay, so a run that began on the old version goes on with `split: train@<version>`.

    bad sample                           its row is left out
    bytes between samples changed        all samples stay; the manifest says the size and sha256 that the shard now has
    shard missing or unreadable          all its rows are left out, and the shard from the manifest
    index changed                        rows that still fit their sample stay, the others are left out

The manifest's rename is the commit: before it the old version holds, after it the new one.
"""

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from shards.format.lock import locked
from shards.format.manifest import (
    File,
    Manifest,
    describe,
    manifest_path,
    older_split,
    open_content,
    open_index,
    read_manifest,
    write_manifest,
)
from shards.format.whole import whole_file, write_json
from shards.inspect.verify import Inspection
from shards.loading.damage import DamagedDataError
from shards.settings import ConfigError


def repair(found: Inspection) -> Manifest:
    """Commits a version without the samples found damaged, and returns it. Raises ConfigError, DamagedDataError.

    `found` must come from `inspect(..., statistics=True)`.
    """
    assert found.tally is not None
    folder, old = Path(found.folder), found.manifest
    if "@" in found.split:
        raise ConfigError(
            f"--split: {found.split!r} is an older version; only the newest one, {old.split!r}, is repaired"
        )
    if not found.faults:
        return old
    with locked(folder / f".build-{old.split}.lock", f"a build is writing split {old.split!r} into {folder}; wait"):
        if read_manifest(folder, old.split).version != old.version:
            raise ConfigError(f"{folder}: split {old.split!r} was written anew in the meantime; verify it again")
        rows, content, shards = _kept(found)
        if not len(rows):
            raise DamagedDataError(f"{folder}: no sample of split {old.split!r} is sound; copy it again, or build it")
        index = _write(folder, f"{old.split}.index", rows)
        new = replace(
            old,
            shards=shards,
            index=index,
            content=None if content is None else _write(folder, f"{old.split}.content", content),
            stats=found.tally.stats(),
            parent=old.version,
            made_by={**old.made_by, "repair_left_out": old.num_samples - len(rows)},
        )
        _keep(folder, old)
        write_manifest(folder, new)
    return new


def _kept(found: Inspection) -> tuple[np.ndarray, np.ndarray | None, tuple[File, ...]]:
    """The index rows that stay, INDEX [kept], the hashes of their images, and the shards that still hold any."""
    index = open_index(found.folder, found.manifest)
    keep = np.ones(len(index), bool)
    keep[[fault.row for fault in found.faults if fault.row is not None]] = False
    shards, first = [], 0
    for shard, now in zip(found.manifest.shards, found.files, strict=True):
        of = slice(first, first + shard.samples)
        if now is None:
            keep[of] = False
        elif keep[of].any():
            shards.append(replace(now, samples=int(keep[of].sum())))
        first += shard.samples
    return np.array(index[keep]), _content(found, keep), tuple(shards)


def _content(found: Inspection, keep: np.ndarray) -> np.ndarray | None:
    """The content hashes of the rows that stay; none where the file itself is damaged."""
    try:
        content = open_content(found.folder, found.manifest)
    except ConfigError:
        return None
    return None if content is None else np.array(content[keep])


def _write(folder: Path, stem: str, rows: np.ndarray) -> File:
    """Writes the rows beside the file they come from, under a name made of their content."""
    name = f"{stem}.{hashlib.sha256(rows.tobytes()).hexdigest()[:12]}.npy"
    with whole_file(folder / name) as temporary:
        np.save(temporary, rows, allow_pickle=False)
    return describe(folder / name, name, len(rows))


def _keep(folder: Path, old: Manifest) -> None:
    """Keeps the old manifest under the name of its version; its index stays where it is."""
    write_json(manifest_path(folder, older_split(old)), {"version": old.version, **asdict(old)})
