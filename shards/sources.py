"""Where samples come from before they are shards: `SOURCES` maps the kind of a source to the function that lists it.

A listing is cheap (names and sizes, no image is opened), sorted, and complete with its faults; bytes are read later,
by the process that writes them into a shard.

    folder      <root>/<class>/.../<image>      class = first folder, key = relative path without extension
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from shards.settings import ConfigError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp")
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test", "testing"}
_LAYOUT = "expected <folder>/<class>/<image>, one sub-folder for each class, images " + ", ".join(EXTENSIONS)
_SHOWN = 5


@dataclass(frozen=True)
class Item:
    """One sample to be: its key, class index, encoded kind (`jpg`), and file with size and change time for the plan."""

    key: str
    label: int
    extension: str
    path: str
    size: int
    changed_ns: int

    def read(self) -> bytes:
        """The encoded image, untouched."""
        return Path(self.path).read_bytes()


@dataclass(frozen=True)
class Listing:
    """All items of a source in key order, its class names in label order, and how many files were not images."""

    items: tuple[Item, ...]
    classes: tuple[str, ...]
    ignored: int


def list_folder(root: str | Path) -> Listing:
    """Images in class folders. Raises ConfigError with every fault."""
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"{root}: {'is a file' if root.exists() else 'no such folder'}; {_LAYOUT}")
    entries = sorted((e for e in os.scandir(root) if not e.name.startswith(".")), key=lambda e: e.name)
    folders = [entry for entry in entries if entry.is_dir()]
    loose = [entry.name for entry in entries if not entry.is_dir() and _extension(entry.name) in EXTENSIONS]
    found = {folder.name: list(_files(folder.path)) for folder in folders}
    images = {name: [f for f in files if _extension(f) in EXTENSIONS] for name, files in found.items()}
    faults = _faults(root, images, loose)
    if faults:
        raise ConfigError(faults)
    items = [_item(root, path, label) for label, name in enumerate(images) for path in images[name]]
    items.sort(key=lambda item: item.key)
    twice = _same_key(items)
    if twice:
        raise ConfigError(twice)
    ignored = sum(map(len, found.values())) - len(items) + sum(not entry.is_dir() for entry in entries)
    return Listing(tuple(items), tuple(images), ignored)


SOURCES: dict[str, Callable[[str | Path], Listing]] = {"folder": list_folder}


def _extension(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def _files(folder: str) -> Iterator[str]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(here, name) for name in sorted(names) if not name.startswith("."))


def _item(root: Path, path: str, label: int) -> Item:
    stat = os.stat(path)
    stem = os.path.splitext(os.path.relpath(path, root))[0]
    return Item(stem.replace(os.sep, "/"), label, _extension(path), path, stat.st_size, stat.st_mtime_ns)


def _faults(root: Path, images: dict[str, list[str]], loose: list[str]) -> list[str]:
    if not any(images.values()):
        where = f"{len(loose)} images lie directly in it" if loose else "no images in it"
        return [f"{root}: {where}; {_LAYOUT}"]
    faults = [
        f"{root}: class folder {name!r} holds no images; remove it, or fill it" for name, f in images.items() if not f
    ]
    if loose:
        faults.append(f"{root}: {len(loose)} images lie beside the class folders ({_some(loose)}); {_LAYOUT}")
    if len(images) == 1:
        faults.append(f"{root}: only one class, {next(iter(images))!r}; a classifier needs two; {_LAYOUT}")
    if {name.lower() for name in images} <= _SPLIT_NAMES:
        names = ", ".join(images)
        faults.append(f"{root}: its folders are splits ({names}), not classes; build each on its own with --split")
    unreadable = [ascii(path) for files in images.values() for path in files if not _is_text(path)]
    if unreadable:
        faults.append(f"{root}: file names that are not UTF-8 ({_some(unreadable)}); rename them")
    return faults


def _same_key(items: list[Item]) -> list[str]:
    pairs = [(a, b) for a, b in pairwise(items) if a.key == b.key]
    more = [f"and {len(pairs) - _SHOWN} more such pairs"] if len(pairs) > _SHOWN else []
    why = "differ only in their extension and would be one sample; rename or remove one"
    return [f"{a.path} and {b.path} {why}" for a, b in pairs[:_SHOWN]] + more


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
