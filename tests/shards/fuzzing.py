"""Damage and malice by the thousand: files are mutated, then read by every way in; what comes of it is counted.

A way in may answer with what was written, or with an error that has a name. All else is a finding: another exception,
a sample that nobody wrote, more than `SECONDS` for one mutation, a file opened outside the folder. Mutations know the
formats: a header changed at random fails its checksum, so checksums are corrected too, and numbers and names in headers
and JSON become those that break parsers. Everything follows from one seed.
"""

import os
import random
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from shards.decode import DecodeError, decode
from shards.format.annotations import annotations
from shards.format.fields import Roles
from shards.format.tar import BLOCK, TarError, parse_sample, scan
from shards.ingest.build import BuildError, build
from shards.ingest.index import index
from shards.loading.open import open_subset
from shards.loading.reader import DamagedSampleError, Reader
from shards.settings import ConfigError
from shards.sources import Refused, SourceOptions, open_source
from tests.shards.foreign import energon_folder, plain_tar, webdataset_tars
from tests.shards.images import encoded, image_folder
from tests.shards.sources.test_foreign import int64, litdata, parquet, saved, table

SECONDS = 5.0
NAMED = (TarError, ConfigError, BuildError, DamagedSampleError, DecodeError, Refused)
EVIL_NAMES = (
    b"../../x.jpg",
    b"/etc/x.jpg",
    b"a/../../x.cls",
    b"x" * 99,
    b"\xff\xfe.jpg",
    b".jpg",
    b"a\nb.jpg",
    b"c:\\x.jpg",
)
EVIL_SIZES = (
    b"77777777777\0",
    b"00000000000\0",
    b"-0000000001\0",
    b"1_000\0      ",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
)
EVIL_JSON = (
    b"-1",
    b"1e999",
    b"99999999999999999999",
    b"null",
    b"[]",
    b"{}",
    b'"../../x"',
    b'"/etc/passwd"',
    b"[" * 9999,
)
KINDS = (b"0", b"1", b"2", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"\0", b"Z")

_LIBRARIES = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]), "/proc/", "/sys/", "/usr/", "/etc/ld")

Mutation = Callable[[bytearray, random.Random, bytes], bytes]


class Finding(Exception):
    """What must not happen."""


@dataclass
class Target:
    """A folder, which of its files are mutated, and a way in that reads it; `writes`: it leaves files there."""

    folder: Path
    pattern: str
    read: Callable[[Path], object]
    writes: bool = False


@dataclass
class Tally:
    """Outcomes by target and by mutation, and what must not have happened."""

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    mutations: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def targets(tmp: Path) -> dict[str, Target]:
    """Every way in, with small sound folders to start from."""
    image_folder(tmp / "raw", per_class=3)
    build(tmp / "raw", tmp / "built", shard_mb=0.006, processes=1)
    boxes = b'{"boxes": [[1, 2, 9, 9]], "labels": [1]}'
    entries = [
        entry
        for n in range(4)
        for entry in ((f"{n}.jpg", encoded(n)), (f"{n}.boxes.json", boxes), (f"{n}.{'long' * 40}.txt", b"x"))
    ]
    plain_tar(tmp / "boxes" / "x.tar", entries)
    tars = webdataset_tars(tmp / "tars", "jpg+json", 6, maxcount=3)
    shutil.copytree(tars, tmp / "indexed")
    index(tmp / "indexed")
    prepared = energon_folder(tmp / "energon")
    lit = litdata(tmp / "lit", {"image": "jpeg", "label": "int"}, [[encoded(n), int64(n % 3)] for n in range(6)], 3)
    columns = parquet(tmp / "parquet" / "x.parquet", table(6, metadata=True), row_group_size=3).parent
    arrow = saved(tmp / "saved", table(6))
    return {
        "scan a tar": Target(tars, "*.tar", _scan),
        "read a shard": Target(tmp / "built", "*.tar", _reader(tmp / "built")),
        "read with its manifest": Target(tmp / "built", "*.manifest.json", _reader(tmp / "built")),
        "read with its index": Target(tmp / "built", "*.npy", _reader(tmp / "built")),
        "read an indexed tar": Target(tmp / "indexed", "*.tar", _reader(tmp / "indexed")),
        "index tars": Target(tars, "*.tar", partial(index, max_refused=0.9), writes=True),
        "index tars with boxes": Target(
            tmp / "boxes",
            "*.tar",
            partial(index, classes=("a", "b"), given=Roles(("jpg",)), max_refused=0.9),
            writes=True,
        ),
        "index after Energon": Target(prepared, ".nv-meta/*.yaml", index, writes=True),
        "pack tars anew": Target(tars, "*.tar", _source("webdataset")),
        "litData's index": Target(lit, "index.json", _source("litdata")),
        "litData's chunks": Target(lit, "*.bin", _source("litdata")),
        "Parquet": Target(columns, "*.parquet", _source("parquet")),
        "Hugging Face's Arrow": Target(arrow, "*.arrow", _source("huggingface")),
        "Hugging Face's JSON": Target(arrow, "*.json", _source("huggingface")),
    }


def run(chosen: dict[str, Target], work: Path, count: int, seed: int, first: int = 0) -> Tally:
    """Mutations `first`, `first + 1`, ... spread over the targets, in copies of their folders below `work`."""
    tally, watch = Tally(), _watch(work)
    weights = [1 if target.writes else 4 for target in chosen.values()]
    for number in range(first, first + count):
        rng = random.Random(seed * 1_000_003 + number)
        (name,) = rng.choices(list(chosen), weights)
        target, mutation = chosen[name], rng.choice(list(MUTATIONS))
        folder = work / target.folder.name
        if not folder.exists():
            shutil.copytree(target.folder, folder)
        files = sorted(folder.glob(target.pattern))
        path, other = rng.choice(files), rng.choice(files).read_bytes()
        sound = path.read_bytes()
        path.write_bytes(MUTATIONS[mutation](bytearray(sound), rng, other))
        outcome, finding = _outcome(target, folder, watch)
        tally.outcomes[name, outcome] += 1
        tally.mutations[mutation] += 1
        if finding:
            tally.findings.append(f"{name}, {mutation}, {path.name}, seed {seed}, number {number}: {finding}")
        path.write_bytes(sound)
        if target.writes:
            shutil.rmtree(folder)
    return tally


def _outcome(target: Target, folder: Path, watch: "_Watch") -> tuple[str, str]:
    """What came of reading the folder, and what must not have happened."""
    try:
        with watch.watching(), _limited(SECONDS):
            target.read(folder)
        outcome, finding = "as written", ""
    except NAMED as error:
        outcome, finding = type(error).__name__, ""
    except Exception as error:
        outcome, finding = "finding", f"{type(error).__name__}: {error}"
    if watch.strays:
        outcome, finding = "finding", f"{finding} opened {sorted(watch.strays)}"
        watch.strays.clear()
    return outcome, finding


def _scan(folder: Path) -> None:
    for tar in sorted(folder.glob("*.tar")):
        data = tar.read_bytes()
        for _, offset, length, _ in scan(tar):
            parse_sample(data[offset : offset + length])


def _reader(pristine: Path) -> Callable[[Path], None]:
    """Reads every sample as training does. What is delivered must have been written: key, class and image."""
    sound = open_subset(pristine)
    samples = [Reader([sound]).read(0, *sound.locate(i)) for i in range(sound.num_samples)]
    written = {(sample.key, sample.label, sample.image) for sample in samples}

    def read(folder: Path) -> None:
        subset, faults = open_subset(folder), []
        reader = Reader([subset])
        for i in range(min(subset.num_samples, 100)):
            try:
                sample = reader.read(0, *subset.locate(i))
                if (sample.key, sample.label, sample.image) not in written:
                    raise Finding(f"{sample.key}, class {sample.label}: nobody wrote this")
                decode(sample.image)
                annotations(sample.fields, subset.manifest.fields, len(subset.classes))
            except (DamagedSampleError, DecodeError) as error:
                reader.name(0, *subset.locate(i))
                faults.append(error)
        if faults:
            raise faults[0]

    return read


def _source(kind: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        source, refused = open_source(folder, SourceOptions(kind=kind))[1], []
        for count, item in enumerate(source.items()):
            if count > 10_000:
                raise Finding("lists more samples than its files can hold")
            try:
                source.read(item)
            except Refused as error:
                refused.append(error)
        if refused:
            raise refused[0]

    return read


def _flip(data: bytearray, rng: random.Random, other: bytes) -> bytes:
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _truncate(data: bytearray, rng: random.Random, other: bytes) -> bytes:
    return bytes(data[: rng.randrange(len(data) + 1)])


def _zero(data: bytearray, rng: random.Random, other: bytes) -> bytes:
    at = rng.randrange(len(data) + 1) // BLOCK * BLOCK
    length = rng.choice((1, 8, BLOCK, 4 * BLOCK))
    data[at : at + length] = bytes(len(data[at : at + length]))
    return bytes(data)


def _move(data: bytearray, rng: random.Random, other: bytes) -> bytes:
    """Cuts blocks out, or puts them somewhere, once or a hundred times."""
    unit = rng.choice((1, 8, BLOCK))
    at, length = rng.randrange(len(data) + 1) // unit * unit, unit * rng.randint(1, 4)
    piece = bytes(data[at : at + length])
    if rng.random() < 0.7:
        del data[at : at + length]
    if rng.random() < 0.7:
        to = rng.randrange(len(data) + 1) // unit * unit
        data[to:to] = piece * rng.choice((1, 1, 2, 100))
    return bytes(data)


def _swap(data: bytearray, rng: random.Random, other: bytes) -> bytes:
    """Another file of the folder in its place, or the end of one behind the beginning of the other."""
    at = rng.choice((0, rng.randrange(len(data) + 1) // BLOCK * BLOCK))
    return bytes(data[:at]) + other[at:] + (other if rng.random() < 0.2 else b"")


def _extreme(data: bytearray, rng: random.Random, other: bytes) -> bytes:
    """Some bytes become a number that overflows."""
    value = rng.choice((b"\xff", b"\x00", b"\x7f", b"\x80")) * rng.choice((1, 2, 4, 8))
    at = rng.randrange(max(1, len(data) - len(value)))
    data[at : at + len(value)] = value
    return bytes(data)


def _header(data: bytearray, rng: random.Random, other: bytes) -> bytes:
    """A field of a tar header changes, and its checksum with it."""
    heads = [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return _text(data, rng, other)
    at = rng.choice(heads)
    head = bytearray(data[at : at + BLOCK].ljust(BLOCK, b"\0"))
    _spoil(head, rng)
    data[at : at + BLOCK] = head
    return bytes(data)


def _insert(data: bytearray, rng: random.Random, other: bytes) -> bytes:
    """A header of any kind that nobody wrote, before one that somebody did; now and then a thousand."""
    heads = [at for at in range(0, len(data), BLOCK) if data[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return _text(data, rng, other)
    head = bytearray(data[heads[0] : heads[0] + BLOCK])
    content = rng.choice(
        (
            b"",
            b"30 path=../../../../tmp/evil.jpg\n",
            b"99999 path=x\n",
            b"20 size=99999999999\n",
            b"0 path=x\n" * 50,
            b"1 =\n",
            b"12 path=x.jpg" * 40,
            bytes(rng.randrange(256) for _ in range(300)),
        )
    )
    head[124:136] = b"%011o\0" % len(content)
    head[156:157] = rng.choice(KINDS)
    if rng.random() < 0.5:
        _spoil(head, rng)
    _mend(head)
    piece = bytes(head) + content.ljust(-(-len(content) // BLOCK) * BLOCK, b"\0")
    at = rng.choice(heads)
    data[at:at] = piece * (1000 if rng.random() < 0.02 else rng.choice((1, 2)))
    return bytes(data)


def _text(data: bytearray, rng: random.Random, other: bytes) -> bytes:
    """A number, word or name in a text becomes one that breaks parsers."""
    found = list(re.finditer(rb'-?\d+|"[^"\n]{0,99}"|null|(?<=: )[^\s,]+', bytes(data)))
    if not found:
        return _extreme(data, rng, other)
    place = rng.choice(found)
    data[place.start() : place.end()] = rng.choice(EVIL_JSON)
    return bytes(data)


def _spoil(head: bytearray, rng: random.Random) -> None:
    match rng.randrange(4):
        case 0:
            head[124:136] = rng.choice(EVIL_SIZES)
        case 1:
            head[:100] = rng.choice(EVIL_NAMES).ljust(100, b"\0")
        case 2:
            head[156:157] = rng.choice(KINDS)
        case 3:
            head[345:500] = rng.choice(EVIL_NAMES).ljust(155, b"\0")
    _mend(head)


def _mend(head: bytearray) -> None:
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)


MUTATIONS: dict[str, Mutation] = {
    "bits flipped": _flip,
    "cut short": _truncate,
    "zeroed": _zero,
    "moved": _move,
    "swapped": _swap,
    "extreme numbers": _extreme,
    "header changed": _header,
    "header inserted": _insert,
    "text changed": _text,
}


@cache
def _watch(work: Path) -> "_Watch":
    """One for each folder: Python's audit hooks cannot be removed."""
    return _Watch(work)


class _Watch:
    """Notes what is opened or made outside a folder, but for what Python and its libraries read of their own."""

    def __init__(self, folder: Path):
        self.folder, self.on, self.strays = os.path.realpath(folder), False, set[str]()
        sys.addaudithook(self._hook)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.on or event not in ("open", "os.rename", "os.mkdir", "os.symlink", "os.link"):
            return
        for path in arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]:
            name = os.path.realpath(os.fsdecode(path)) if isinstance(path, (str, bytes, os.PathLike)) else self.folder
            writes = event != "open" or bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            if not name.startswith((self.folder, "/dev/")) and (writes or not name.startswith(_LIBRARIES)):
                self.strays.add(name)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises Finding in the block if it takes longer."""

    def late(number: int, frame: object) -> None:
        raise Finding(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
