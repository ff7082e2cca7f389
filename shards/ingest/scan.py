"""Scans one tar for an index: its samples' places, checksums, labels and images. One task of `index`, in any process.

Nothing is written but an index part and a record beside it, which holds as long as the tar keeps its size and change
time. What is wrong with one sample refuses that sample; what makes the tar's own list of samples unreliable is the
fault of the tar.
"""

import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from shards.decode import DecodeError, decode
from shards.format.annotations import annotations
from shards.format.fields import Roles, image_extension, member_text
from shards.format.hashing import content_key, name_key
from shards.format.statistics import Tally
from shards.format.tar import TarError, members, parse_sample, sample_key
from shards.format.whole import whole_file, write_json
from shards.ingest.rows import PART
from shards.sources.notes import Notes
from shards.sources.tars import OUTSIDE, read_samples

_MB = 1_000_000


@dataclass(frozen=True)
class ScanTask:
    """One tar to scan, the folder its record goes to, and the plan the record belongs to.

    `num_classes`: of boxes and masks, whose numbers must be in range. `excluded`: `<tar>/<key>` of samples left out.
    """

    path: str
    state: str
    plan: str
    roles: Roles
    num_classes: int
    excluded: frozenset[str]

    @property
    def stamp(self) -> str:
        """Changes when the tar does."""
        stat = os.stat(self.path)
        return f"{stat.st_size}:{stat.st_mtime_ns}"

    @property
    def megabytes(self) -> int:
        """Size for the progress bar, never 0."""
        return -(-os.path.getsize(self.path) // _MB) or 1

    @property
    def record(self) -> Path:
        """Where the record of the finished scan is."""
        return Path(self.state, os.path.basename(self.path) + ".json")


@dataclass(frozen=True)
class Scanned:
    """What was found in a tar. The index part's labels count into `labels`, the distinct texts; -1: none."""

    path: str
    plan: str
    stamp: str
    bytes: int
    samples: int = 0
    sha256: str = ""
    labels: list[str] = field(default_factory=list)
    label_counts: list[int] = field(default_factory=list)
    tally: dict = field(default_factory=dict)
    ignored: int = 0
    refused: list[list[str]] = field(default_factory=list)
    notes: dict[str, list] = field(default_factory=dict)
    fault: str = ""


def scan_shard(task: ScanTask, advance: Callable[[int], None]) -> Scanned:
    """Scans the tar and leaves index part and record, unless the tar has a fault; calls `advance(megabytes)`."""
    found = Scanned(task.path, task.plan, task.stamp, os.path.getsize(task.path))
    scan = _Scan(task, advance)
    try:
        scan.run()
    except TarError as error:
        advance(task.megabytes - scan.advanced)
        return replace(found, fault=f"{os.path.basename(task.path)}: {error}")
    with open(task.path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with whole_file(index_part(task)) as draft:
        np.save(draft, np.array(scan.rows, PART), allow_pickle=False)
    done = replace(
        found,
        samples=len(scan.rows),
        sha256=digest,
        labels=list(scan.labels),
        label_counts=[scan.counts[text] for text in scan.labels],
        tally=asdict(scan.tally),
        ignored=scan.ignored,
        refused=scan.refused,
        notes=_passed_over(task),
    )
    write_json(task.record, asdict(done))
    advance(task.megabytes - scan.advanced)
    return done


def _passed_over(task: ScanTask) -> dict[str, list]:
    """What stands in the tar and is no part of a sample, and the samples that were excluded, as notes."""
    notes = Notes()
    with open(task.path, "rb") as file:
        for member in members(file):
            if member.is_file and not member.belongs_to_a_sample:
                notes.tell(OUTSIDE, member.name)
    mine = os.path.basename(task.path) + "/"
    for name in task.excluded:
        if name.startswith(mine):
            notes.tell("samples excluded by .nv-meta", name)
    return notes.take()


def index_part(task: ScanTask) -> str:
    """Where the rows of a scanned tar are, PART [samples]."""
    return os.path.join(task.state, os.path.basename(task.path) + ".rows.npy")


def read_scanned(task: ScanTask) -> Scanned | None:
    """The record that an earlier run with the same plan left of this tar, if it has not changed since."""
    try:
        done = Scanned(**json.loads(task.record.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    same = (done.path, done.plan, done.stamp) == (task.path, task.plan, task.stamp)
    return done if same and os.path.isfile(index_part(task)) else None


class _Scan:
    """The running sums of a scan."""

    def __init__(self, task: ScanTask, advance: Callable[[int], None]):
        self.task, self.advance, self.advanced = task, advance, 0
        self.rows: list[tuple[int, int, int, int, int, int]] = []
        self.refused: list[list[str]] = []
        self.labels: dict[str, int] = {}
        self.counts: Counter[str] = Counter()
        self.tally, self.ignored = Tally([0] * task.num_classes), 0

    def run(self) -> None:
        name, seen = os.path.basename(self.task.path), {}
        for key, start, span in read_samples(Path(self.task.path)):
            if key in seen:
                raise TarError(
                    f"members named {key} stand at bytes {seen[key]:,} and {start:,}: those of one sample have to be "
                    f"neighbours, and no two may have one name; pack it anew: xfer shards build --kind webdataset"
                )
            seen[key] = start
            if f"{name}/{key}" in self.task.excluded:
                self.ignored += 1
            else:
                self._sample(key, start, span)
            self._tell(start + len(span))

    def _sample(self, key: str, start: int, span: bytes) -> None:
        try:
            label, content = self._check(span)
        except (TarError, ValueError, DecodeError) as error:
            self.refused.append([sample_key(key), str(error)])
            return
        self.rows.append((start, len(span), zlib.crc32(span), name_key(sample_key(key)), label, content))

    def _check(self, span: bytes) -> tuple[int, int]:
        """Place of the sample's label among the distinct ones, and the hash of its image; everything counted. Raises
        what refuses the sample.
        """
        members, roles = parse_sample(span)[1], self.task.roles
        extension = image_extension(members, roles)
        text = member_text(members, roles.label) if roles.label else None
        image = decode(members[extension])
        height, width = image.shape[:2]
        said = annotations(members, roles.fields(), self.task.num_classes, width, height)
        self.tally.add(image, extension, said.class_counts(-1, self.task.num_classes), said.ignored)
        content = content_key(members[extension])
        if text is None:
            return -1, content
        self.counts[text] += 1
        return self.labels.setdefault(text, len(self.labels)), content

    def _tell(self, position: int) -> None:
        megabytes = position // _MB - self.advanced
        if megabytes:
            self.advanced += megabytes
            self.advance(megabytes)
