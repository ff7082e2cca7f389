"""Writes one shard: read, check, pack, hash. What one task of a build does, in whichever process.

Every image is decoded in full with the decoder that training uses: what passes here will be read there. An image that
fails is refused with its reason and left out. The tar is a function of the items alone (mtime 0, fixed owner and
mode), so any number of processes gives the same bytes. Costs one decode and two hashes an image, about 0.5 ms at 128
pixels.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch
from webdataset.writer import TarWriter

from shards.decode import DecodeError, decode
from shards.manifest import INDEX, write_json
from shards.order import name_key
from shards.sources import Item
from shards.tar import member_key


@dataclass
class Tally:
    """Sums over a shard's images, exact integers so that adding shards in any order gives the same statistics."""

    class_counts: list[int]
    width: list[int] = field(default_factory=lambda: [1 << 30, 0])
    height: list[int] = field(default_factory=lambda: [1 << 30, 0])
    pixels: int = 0
    channel_sum: list[int] = field(default_factory=lambda: [0, 0, 0])
    channel_squares: list[int] = field(default_factory=lambda: [0, 0, 0])

    def add(self, image: torch.Tensor, label: int) -> None:
        """Counts one image, uint8 [3, H, W]."""
        height, width = image.shape[1:]
        self.class_counts[label] += 1
        self.width = [min(self.width[0], width), max(self.width[1], width)]
        self.height = [min(self.height[0], height), max(self.height[1], height)]
        self.pixels += height * width
        values = image.numpy().astype(np.uint32)
        for channel in range(3):
            self.channel_sum[channel] += int(values[channel].sum(dtype=np.int64))
            self.channel_squares[channel] += int(np.square(values[channel]).sum(dtype=np.int64))

    def merge(self, other: "Tally") -> None:
        """Adds another shard's sums."""
        self.class_counts = [a + b for a, b in zip(self.class_counts, other.class_counts, strict=True)]
        self.width = [min(self.width[0], other.width[0]), max(self.width[1], other.width[1])]
        self.height = [min(self.height[0], other.height[0]), max(self.height[1], other.height[1])]
        self.pixels += other.pixels
        for channel in range(3):
            self.channel_sum[channel] += other.channel_sum[channel]
            self.channel_squares[channel] += other.channel_squares[channel]


@dataclass(frozen=True)
class Task:
    """One shard to write: its final name, the folder it is prepared in, and its items in order."""

    path: str
    state: str
    plan: str
    items: tuple[Item, ...]
    num_classes: int


@dataclass(frozen=True)
class Finished:
    """The record of a written shard; it is what makes a shard count as done."""

    plan: str
    path: str
    bytes: int
    samples: int
    sha256: str
    refused: list[list[str]]
    tally: dict


class _Tee:
    """A file that counts and hashes what passes through it."""

    def __init__(self, path: str):
        self.file, self.hash, self.size = open(path, "wb"), hashlib.sha256(), 0  # noqa: SIM115  closed by write_shard

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)


def write_shard(task: Task, advance: Callable[[int], None]) -> Finished:
    """Writes the tar, its index rows and its record into `task.state`; calls `advance(1)` after each item."""
    partial = os.path.join(task.state, f"{task.path}.{os.getpid()}.tmp")
    tee = _Tee(partial)
    try:
        rows, refused, tally = _pack(task, tee, advance)
        tee.file.flush()
        os.fsync(tee.file.fileno())
        tee.file.close()
        index = np.array(rows, INDEX)
        index["crc32"] = _checksums(partial, index)
        np.save(partial + ".npy", index, allow_pickle=False)
        os.replace(partial + ".npy", index_part(task.state, task.path))
        os.replace(partial, os.path.join(task.state, task.path))
    finally:
        tee.file.close()
        for leftover in (partial, partial + ".npy"):
            Path(leftover).unlink(missing_ok=True)
    done = Finished(task.plan, task.path, tee.size, len(rows), tee.hash.hexdigest(), refused, asdict(tally))
    write_json(record_path(task.state, task.path), asdict(done))
    return done


def index_part(state: str | Path, shard: str) -> Path:
    """Where the index rows of a prepared shard are."""
    return Path(state) / f"{shard}.index.npy"


def record_path(state: str | Path, shard: str) -> Path:
    """Where the record of a prepared shard is."""
    return Path(state) / f"{shard}.json"


def read_finished(state: str | Path, shard: str, plan: str) -> Finished | None:
    """The record of a shard that an earlier run of the same plan finished, else None."""
    try:
        done = Finished(**json.loads(record_path(state, shard).read_bytes()))
        complete = done.plan == plan and index_part(state, shard).is_file()
        # A commit that was interrupted has already moved some shards from the state folder to the one above it.
        places = [place for place in (Path(state), Path(state).parent) if (place / shard).is_file()]
        return done if complete and (places[0] / shard).stat().st_size == done.bytes else None
    except (OSError, ValueError, TypeError, IndexError):
        return None


class _RefusedError(Exception):
    """Why an item is left out."""


def _pack(task: Task, tee: _Tee, advance: Callable[[int], None]) -> tuple[list[tuple], list[list[str]], Tally]:
    """Index rows (crc32 still 0), refused [key, reason] and statistics of the items packed."""
    rows, refused, tally = [], [], Tally([0] * task.num_classes)
    # pax is plain USTAR until a name is too long for it; mtime must be the integer 0: a float costs a pax header each.
    with TarWriter(cast(BinaryIO, tee), mtime=0, encoder=False, format="PAX_FORMAT") as tar:
        for item in task.items:
            try:
                fields = {item.extension: _checked(item, tally), "cls": b"%d" % item.label}
                start = tar.tarstream.offset
                tar.write({"__key__": member_key(item.key), **fields})
                rows.append((start, tar.tarstream.offset - start, 0, name_key(item.key), item.label))
            except _RefusedError as error:
                refused.append([item.key, str(error)])
            advance(1)
    return rows, refused, tally


def _checked(item: Item, tally: Tally) -> bytes:
    """The item's bytes, decoded once as a check and counted."""
    try:
        data = item.read()
    except OSError as error:
        raise _RefusedError(f"cannot be read: {error.strerror or error}") from None
    try:
        tally.add(decode(data), item.label)
    except DecodeError as error:
        raise _RefusedError(str(error)) from None
    return data


def _checksums(path: str, rows: np.ndarray) -> list[int]:
    """crc32 of each row's span, read back from the written file."""
    with open(path, "rb") as file:
        return [zlib.crc32(file.read(int(length))) for length in rows["length"]]
