"""Reads every byte of a split again and compares it with what was written: sha256 of each file, crc32, headers, decode.

Training only notices the damage it comes upon; this finds all of it, at about the speed of a build.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from shards.damage import DamagedDataError
from shards.decode import DecodeError, decode
from shards.manifest import File, Manifest, read_manifest
from shards.plan import describe
from shards.progress import Advance, progress
from shards.reader import DamagedSampleError, Reader
from shards.views import View

_SHOWN = 50


def verify(folder: str | Path, split: str = "train") -> Manifest:
    """The manifest of a split found whole. Raises DamagedDataError naming all damage, or ConfigError."""
    manifest = read_manifest(folder, split)
    with progress(f"verify {manifest.name}/{split}", manifest.num_samples, "samples") as advance:
        damage = list(_damage(Path(folder), manifest, advance))
    if damage:
        more = [f"... and {len(damage) - _SHOWN} more"] if len(damage) > _SHOWN else []
        lines = "\n  ".join([*damage[:_SHOWN], *more])
        raise DamagedDataError(f"{folder}: split {split!r} is damaged\n  {lines}\ncopy it again, or build it again")
    return manifest


def _damage(folder: Path, manifest: Manifest, advance: Advance) -> Iterator[str]:
    """One line for each fault."""
    if fault := _changed(folder, manifest.index):
        yield fault
    reader = Reader([View(manifest.name, str(folder), manifest)])
    for number, shard in enumerate(manifest.shards):
        fault = _changed(folder, shard)
        if fault:
            yield fault
        for row in range(shard.samples):
            try:
                decode(reader.read(0, number, row).image)
            except (DamagedSampleError, DecodeError) as error:
                yield f"{shard.path}  {reader.name(0, number, row)}  {error}"
            advance(1)


def _changed(folder: Path, file: File) -> str | None:
    """How a file differs from what the manifest says, if it does."""
    try:
        found = describe(folder / file.path, file.path, file.samples)
    except OSError as error:
        return f"{file.path}  cannot be read: {os.strerror(error.errno or 0)}"
    if found.bytes != file.bytes:
        return f"{file.path}  has {found.bytes:,} bytes, {file.bytes:,} were written"
    return (
        None
        if found.sha256 == file.sha256
        else f"{file.path}  its bytes changed since the build (sha256 does not match)"
    )
