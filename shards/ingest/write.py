"""Writes one shard: read, check, pack, hash. What one task of a build does, in whichever process.

The tar is a function of the items alone (mtime 0, fixed owner and mode), so any number of processes gives the same
bytes. An item that fails a check is refused with its reason and left out. Costs one decode and two hashes an image,
about 0.5 ms at 128 pixels.
"""

import hashlib
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from webdataset.writer import TarWriter

from shards.format.hashing import content_key, name_key
from shards.format.statistics import Tally
from shards.format.tar import member_key
from shards.format.whole import whole_file, write_json
from shards.ingest.check import check
from shards.ingest.listing import Span, read_span
from shards.ingest.rows import PART
from shards.sources import Refused, Source


@dataclass(frozen=True)
class Task:
    """One shard to write: its final name, the folder it is prepared in, and which lines of the listing it holds."""

    path: str
    state: str
    plan: str
    listing: str
    span: Span


@dataclass(frozen=True)
class Finished:
    """The record of a written shard; it is what makes a shard count as done."""

    plan: str
    path: str
    bytes: int
    samples: int
    sha256: str
    refused: list[list[str]]
    dropped: list[list[str]]
    tally: dict
    notes: dict[str, list] = field(default_factory=dict)


class _Tee:
    """A file that counts and hashes what passes through it."""

    def __init__(self, file: BinaryIO):
        self.file, self.hash, self.size = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        self.size += len(data)
        return self.file.write(data)


def write_shard(source: Source, drop_boxes: bool, task: Task, advance: Callable[[int], None]) -> Finished:
    """Writes the tar, its index rows and its record into `task.state`; calls `advance(1)` after each item."""
    tar, part = Path(task.state) / task.path, index_part(task.state, task.path)
    with whole_file(tar) as tar_draft, whole_file(part) as part_draft:
        with open(tar_draft, "wb") as file:
            tee = _Tee(file)
            source.notes.take()  # those of listing, or of the shard before
            rows, refused, dropped, tally = _pack(source, drop_boxes, task, tee, advance)
        index = np.array(rows, PART)
        index["crc32"] = _checksums(tar_draft, index)
        np.save(part_draft, index, allow_pickle=False)
    sums = refused, dropped, asdict(tally), source.notes.take()
    done = Finished(task.plan, task.path, tee.size, len(rows), tee.hash.hexdigest(), *sums)
    write_json(record_path(task.state, task.path), asdict(done))
    return done


def index_part(state: str | Path, shard: str) -> Path:
    """Where the rows of a prepared shard are, PART [samples]."""
    return Path(state) / f"{shard}.rows.npy"


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


def _pack(
    source: Source, drop_boxes: bool, task: Task, tee: _Tee, advance: Callable[[int], None]
) -> tuple[list[tuple], list[list[str]], list[list[str]], Tally]:
    """Rows (crc32 still 0), refused [key, reason], dropped boxes [key, reason] and statistics of the shard."""
    rows, refused, dropped, tally = [], [], [], Tally([0] * len(source.classes))
    # pax is plain USTAR until a name is too long for it; mtime must be the integer 0: a float costs a pax header each.
    with TarWriter(cast(BinaryIO, tee), mtime=0, encoder=False, format="PAX_FORMAT") as tar:
        for item in read_span(Path(task.listing), task.span):
            try:
                sample = check(source.read(item), source.fields, len(source.classes), drop_boxes)
            except Refused as error:
                refused.append([item.key, str(error)])
            else:
                start = tar.tarstream.offset
                tar.write({"__key__": member_key(item.key), **sample.members})
                content = content_key(sample.members[sample.extension])
                rows.append((start, tar.tarstream.offset - start, 0, name_key(item.key), sample.label, content))
                tally.add(sample.image, sample.extension, sample.class_counts, sample.ignored)
                dropped += [[item.key, reason] for reason in sample.dropped]
            advance(1)
    return rows, refused, dropped, tally


def _checksums(path: Path, rows: np.ndarray) -> list[int]:
    """crc32 of each row's span, read back from the written file."""
    with open(path, "rb") as file:
        return [zlib.crc32(file.read(int(length))) for length in rows["length"]]
