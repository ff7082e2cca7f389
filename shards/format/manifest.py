"""What makes a folder of tars a data set: the manifest and the index of each split.

    train-000000.tar ...     samples; plain WebDataset tars
    train.index.npy          one row for each sample (INDEX); memory-mapped, never loaded, never unpickled
    train.content.npy        hash of each sample's encoded image (CONTENT), to find the same image in other data sets
    train.manifest.json      written last, in one rename: a split without it does not exist

The index holds each sample's key hash and label too, so splits by hash and by class read no tar. `version` hashes the
content alone (classes, fields, the tars' and the index's sha256): it survives renaming and moving, and changes with
any byte of a sample. Content hashes follow from the tars and are not part of it: data sets built before there were any
have none, and are what they were.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter, ValidationError

from shards.format.whole import write_json
from shards.settings import ConfigError

FORMAT = 1
CONTENT = np.dtype("<u8")
INDEX = np.dtype([("offset", "<u8"), ("length", "<u4"), ("crc32", "<u4"), ("key", "<u8"), ("label", "<i4")])


@dataclass(frozen=True)
class File:
    """One file of a split: its name inside the folder, size, sha256, and how many samples it holds."""

    path: str
    bytes: int
    samples: int
    sha256: str


@dataclass(frozen=True)
class Stats:
    """Class counts; smallest and largest width and height; mean and standard deviation of R, G, B in 0..1; how many of
    the counted boxes are crowds or difficult objects (0 in manifests of older builds).
    """

    class_counts: tuple[int, ...]
    width: tuple[int, int]
    height: tuple[int, int]
    channel_mean: tuple[float, float, float]
    channel_std: tuple[float, float, float]
    ignored: int = 0


@dataclass(frozen=True)
class Manifest:
    """One split of one data set. `parent` is the version it was derived from; `made_by` is for people; `content`: the
    hashes of its images, if there are any.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    fields: dict[str, str]
    shards: tuple[File, ...]
    index: File
    stats: Stats
    task: str = "classification"
    parent: str | None = None
    made_by: dict[str, str | int | float] = field(default_factory=dict)
    content: File | None = None
    format: int = FORMAT

    @property
    def num_samples(self) -> int:
        """Samples of all shards."""
        return self.index.samples

    @property
    def version(self) -> str:
        """sha256 of the canonical JSON of what decides a sample's bytes, place and label."""
        content = {
            "format": self.format,
            "task": self.task,
            "classes": self.classes,
            "fields": self.fields,
            "shards": [[shard.samples, shard.sha256] for shard in self.shards],
            "index": self.index.sha256,
        }
        return "sha256:" + hashlib.sha256(canonical(content)).hexdigest()


_MANIFEST = TypeAdapter(Manifest)


def canonical(content: object) -> bytes:
    """JSON with one spelling only: sorted keys, no spaces, ASCII."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def manifest_name(split: str) -> str:
    """The file name of a split's manifest; `train@0123456789ab` is an older version of `train`, by its first digits."""
    name, _, older = split.partition("@")
    return f"{name}.manifest.{older}.json" if older else f"{name}.manifest.json"


def manifest_path(folder: str | Path, split: str) -> Path:
    """Where the manifest of a split is."""
    return Path(folder) / manifest_name(split)


def older_split(manifest: Manifest) -> str:
    """The split name by which a manifest can still be opened after a newer one took its place."""
    return f"{manifest.split}@{manifest.version.removeprefix('sha256:')[:12]}"


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Commits a split whose shards and index are in place."""
    write_json(manifest_path(folder, manifest.split), {"version": manifest.version, **asdict(manifest)})


def read_manifest(folder: str | Path, split: str) -> Manifest:
    """The manifest of a split. Raises ConfigError that says what is there instead."""
    path = manifest_path(folder, split)
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(_what_is_there(Path(folder), split)) from None
    except OSError as error:
        raise ConfigError(f"{path}: not a readable manifest ({error}); build the shards again") from None
    return parse_manifest(data, path)


def parse_manifest(data: bytes, path: str | Path) -> Manifest:
    """The manifest in a file's content; `path` for messages. Raises ConfigError."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a readable manifest ({error}); build the shards again") from None
    stated = content.get("format") if isinstance(content, dict) else None
    if stated != FORMAT:
        raise ConfigError(f"{path}: manifest format {stated!r}, this version reads {FORMAT}")
    try:
        manifest = _MANIFEST.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: damaged manifest, {where}: {first['msg']}; build the shards again") from None
    faults = _disagreements(manifest, content.get("version"))
    if faults:
        raise ConfigError([f"{path}: {fault}" for fault in faults])
    return manifest


def content_name(split: str) -> str:
    """The file name of a split's content hashes."""
    return f"{split}.content.npy"


def write_rows(path: Path, parts: Iterable[np.ndarray], num_rows: int, kind: np.dtype = INDEX) -> None:
    """One array file out of arrays of `kind`, in order, on disk for good; never holds more than one of them."""
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (num_rows,)}
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(part.tobytes())
        file.flush()
        os.fsync(file.fileno())


def describe(path: Path, name: str, samples: int) -> File:
    """The manifest entry of a file on disk."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return File(name, path.stat().st_size, samples, digest)


def open_index(folder: str | Path, manifest: Manifest, path: str | Path = "") -> np.ndarray:
    """The index of a split, INDEX [num_samples], memory-mapped. `path`: where it is, if not beside the manifest.

    Raises ConfigError.
    """
    path = path or Path(folder) / manifest.index.path
    try:
        index = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise ConfigError(f"{path}: missing; the manifest beside it names it; build the shards again") from None
    except Exception as error:  # NumPy's reader of headers raises ValueError, SyntaxError, TokenError, ... on damage
        raise ConfigError(f"{path}: not a readable index ({error}); build the shards again") from None
    if index.dtype != INDEX or index.shape != (manifest.num_samples,):
        found = f"{index.shape} rows of {index.dtype}"
        raise ConfigError(f"{path}: expected {manifest.num_samples:,} rows of the index, found {found}; build again")
    return index


def open_content(folder: str | Path, manifest: Manifest, path: str | Path = "") -> np.ndarray | None:
    """Hash of each sample's encoded image, CONTENT [num_samples], memory-mapped; None if there are none.

    `path`: where they are, if not beside the manifest. Raises ConfigError if they are not what was written.
    """
    if manifest.content is None:
        return None
    path = Path(path or Path(folder) / manifest.content.path)
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        content = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        return None
    except Exception as error:  # as for the index
        raise ConfigError(f"{path}: not readable content hashes ({error}); build the shards again") from None
    if digest != manifest.content.sha256 or content.dtype != CONTENT or content.shape != (manifest.num_samples,):
        raise ConfigError(f"{path}: not the content hashes that the manifest names; copy it again, or build again")
    return content


def _disagreements(manifest: Manifest, version: str | None) -> list[str]:
    """What a manifest that parses still contradicts itself in."""
    faults = []
    for file in (*manifest.shards, manifest.index, *([manifest.content] if manifest.content else [])):
        # A manifest may come from anywhere: it must not lead out of its own folder.
        if file.path != os.path.basename(file.path) or file.path in ("", ".", ".."):
            faults.append(f"{file.path!r} is not the name of a file beside the manifest")
    if sum(shard.samples for shard in manifest.shards) != manifest.num_samples:
        faults.append("the shards' samples do not add up to the index's")
    if version != manifest.version:
        faults.append(f"edited by hand: its version should be {manifest.version}, not {version}")
    return faults


def splits_in(folder: str | Path) -> list[str]:
    """Every split that was built in a folder, and the older versions that were kept of it (`train@0123456789ab`)."""
    found = Path(folder).glob("[!.]*.manifest*.json")  # a draft that a killed process left begins with a dot
    names = (path.name.removesuffix(".json").partition(".manifest") for path in found)
    return sorted(split + older.replace(".", "@", 1) for split, _, older in names)


def _what_is_there(folder: Path, split: str) -> str:
    if not folder.is_dir():
        return f"{folder}: no such folder of shards"
    splits = splits_in(folder)
    if splits:
        return f"{folder}: no split {split!r}; it has {', '.join(splits)}"
    if (folder / f".build-{split}").is_dir():
        return f"{folder}: the build of split {split!r} was not finished; run the same `xfer shards build` again"
    inside = sorted(p for p in folder.iterdir() if p.is_dir())
    built = [p.name for p in inside if any(p.glob("*.manifest.json"))]
    if built:
        return f"{folder}: not a folder of shards, but these inside it are: {', '.join(built)}"
    if inside:
        return f"{folder}: a raw folder, not shards: run `xfer shards build {folder} OUT`"
    return f"{folder}: holds no manifest ({split}.manifest.json): nothing was built here"
