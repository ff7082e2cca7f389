"""Where samples come from before they are shards: `SOURCES` maps the kind of a source to how it is opened.

    huggingface   a folder that Dataset.save_to_disk left
    parquet       .parquet files with a column of images
    litdata       a folder that litData's optimize left
    webdataset    tars, packed anew; `xfer shards index` uses them as they are
    torchvision   --dataset CIFAR10 below SOURCE, its root
    voc           Annotations/*.xml and JPEGImages, as Pascal VOC has them, or annotations/*.xml and images
    coco          instances_*.json, images beside it or in --images
    masks         images and masks, two folders with the same names
    table         a .csv, .tsv or .jsonl with a row for each image, or a folder with one
    folder        <root>/<class>/.../<image>

Those that have no side inputs can be given a table of them (`--side-table`, shards/sources/side.py).

A kind says which options it uses and by what it is recognised. Taken is the first that recognises SOURCE and uses all
options that were given. If there is none, an option that one kind alone uses says enough about a folder: `--masks`.
To add one: a file here with an open function, and a row in `SOURCES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from shards.settings import ConfigError
from shards.sources import yolo
from shards.sources.folder import open_folder
from shards.sources.source import TASKS, Item, Refused, Source, SourceOptions, flag

__all__ = ["SOURCES", "TASKS", "Item", "Kind", "Refused", "Source", "SourceOptions", "open_source"]


@dataclass(frozen=True)
class Kind:
    """How a kind of source is opened, the options it uses, by what it is recognised, and how it looks, in words.

    `open(path, options)` raises ConfigError with every fault; imports that are heavy wait inside it.
    """

    open: Callable[[Path, SourceOptions], Source]
    options: frozenset[str]
    recognised: Callable[[Path], bool]
    looks: str


def _holds(*patterns: str) -> Callable[[Path], bool]:
    """Recognises a file of such a name, or a folder with one in it."""
    return lambda path: any(path.match(p) if path.is_file() else any(path.glob(p)) for p in patterns)


def _later(module: str, function: str) -> Callable[..., Any]:
    """A function whose module is imported when it is called: `--help` must not wait for pyarrow."""
    return lambda *arguments: getattr(import_module(f"shards.sources.{module}"), function)(*arguments)


_OF_SIDE_TABLES: dict[str, Any] = {"side_table": None, "side": (), "image": None, "encoding": None}
"""The options that are of a table of side inputs where there is one, and without which the source is opened."""
_TABLE = frozenset({"part", "image", "label", "side", "classes"})

SOURCES: dict[str, Kind] = {
    "huggingface": Kind(
        _later("columnar", "open_saved"),
        _TABLE,
        _holds("state.json", "dataset_dict.json"),
        "a folder with a state.json",
    ),
    "parquet": Kind(
        _later("columnar", "open_parquet"), _TABLE, _holds("*.parquet", "data/*.parquet"), "one or more .parquet files"
    ),
    "litdata": Kind(
        _later("litdata", "open_litdata"),
        _TABLE - {"part"},
        _holds("chunk-*.bin"),
        "a folder with an index.json and chunk-*.bin",
    ),
    "webdataset": Kind(_later("webdataset", "open_webdataset"), _TABLE, _holds("*.tar"), "a folder of .tar files"),
    "torchvision": Kind(
        _later("mapstyle", "open_torchvision"),
        frozenset({"dataset", "part", "classes"}),
        lambda path: False,
        "only with --kind torchvision --dataset NAME",
    ),
    "voc": Kind(
        _later("voc", "open_voc"),
        frozenset({"images", "list", "classes", "bad_boxes", "frame"}),
        _later("voc", "is_voc"),
        "a folder with Annotations/*.xml and JPEGImages (Pascal VOC), or annotations/*.xml and images",
    ),
    "coco": Kind(
        _later("coco", "open_coco"),
        frozenset({"images", "task", "captions", "bad_boxes", "frame"}),
        _later("coco", "is_coco"),
        "an instances_*.json, or a folder with one in annotations/ (COCO)",
    ),
    "masks": Kind(
        _later("masks", "open_masks"),
        frozenset({"images", "masks", "list", "classes", "void", "values", "frame"}),
        _later("masks", "is_masks"),
        "a folder with images/ and masks/, or any with --masks",
    ),
    "table": Kind(
        _later("table", "open_table"),
        frozenset({"images", "image", "label", "side", "classes", "encoding"}),
        _later("table", "is_table"),
        "a .csv, .tsv or .jsonl with a row for each image, or a folder with one",
    ),
    "folder": Kind(open_folder, frozenset(), Path.is_dir, "a folder with one sub-folder of images for each class"),
}


def open_source(path: Path, options: SourceOptions) -> tuple[str, Source]:
    """The kind of the source and the source itself, not listed yet. Raises ConfigError with every fault."""
    own = options if options.side_table is None else replace(options, **_OF_SIDE_TABLES)
    name = options.kind or detect(path, own)
    if name not in SOURCES:
        raise ConfigError(f"--kind: {name!r}; known here: {', '.join(SOURCES)}")
    if options.side_table is not None and "side" in SOURCES[name].options:
        raise ConfigError(f"--side-table: a source of kind {name!r} has side inputs of its own, which --side names")
    unused = own.given().keys() - SOURCES[name].options - {"kind"}
    if unused:
        raise ConfigError([f"{flag(option)}: {_who_uses(option, name)}" for option in sorted(unused)])
    from shards.sources.side import with_side  # here: `xfer --help` does not wait for NumPy

    return name, with_side(SOURCES[name].open(path, own), name, options)


def detect(path: Path, options: SourceOptions) -> str:
    """The kind of `path`, by how it looks and by which options were given. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    recognised = [name for name, kind in SOURCES.items() if kind.recognised(path)]
    users = [name for name, kind in SOURCES.items() if options.given().keys() <= kind.options]
    fitting = [name for name in recognised if name in users]
    # Every folder could be one of class folders, so that alone says less than an option that a single kind uses.
    likely = fitting or (users if len(users) == 1 and recognised in ([], ["folder"]) else recognised)
    if likely:
        refused = yolo.fault(path) if likely[0] == "folder" and path.is_dir() else None
        if refused:
            raise ConfigError(refused)
        return likely[0]
    known = "".join(f"\n  {name:<12}{kind.looks}" for name, kind in SOURCES.items())
    raise ConfigError(f"{path}: looks like no kind of source; these are known:{known}\nsay which with --kind")


def _who_uses(option: str, kind: str) -> str:
    users = [name for name, row in SOURCES.items() if option in row.options]
    table = "; columns of a table beside it: with --side-table" if option == "side" else ""
    return f"a source of kind {kind!r} does not use it; used by {', '.join(users) or 'none'}{table}"
