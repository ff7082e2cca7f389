"""Images in class folders: <root>/<class>/.../<image>.

The class is the first folder, the key the relative path without extension. Opening looks for one image in each class
folder; listing goes through all of them and keeps none.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from shards.format.fields import IMAGES
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.source import Item, SourceOptions

_FITTED = {"train", "training"}
_HELD_OUT = {"val", "valid", "validation", "dev", "test", "testing"}
_LAYOUT = "expected <folder>/<class>/<image>, one sub-folder for each class, images " + ", ".join(IMAGES)


class Folder:
    """The images below `root`, labelled by class folder."""

    task = "classification"

    def __init__(self, root: Path, classes: tuple[str, ...]):
        self.root, self.classes, self.ignored = root, classes, 0
        self.fields = {"label": "cls"}

    def items(self) -> Iterator[Item]:
        """Every image."""
        self.ignored = sum(not entry.is_dir() for entry in os.scandir(self.root) if not entry.name.startswith("."))
        for label, name in enumerate(self.classes):
            for entry in files.walk(self.root / name):
                if not files.is_image(entry.name):
                    self.ignored += 1
                    continue
                size, stamp = files.measure(entry.path)
                path = os.path.relpath(entry.path, self.root).replace(os.sep, "/")
                yield Item(files.stem(path), size, stamp, label, {"image": path})

    def read(self, item: Item) -> dict[str, bytes]:
        """The image and its class."""
        path = item.payload["image"]
        return {files.extension(path): files.read(self.root, path), "cls": b"%d" % item.label}


def open_folder(root: Path, options: SourceOptions) -> Folder:
    """Checks that `root` is a folder of class folders. Raises ConfigError with every fault."""
    if not root.is_dir():
        raise ConfigError(f"{root}: {'is a file' if root.exists() else 'no such folder'}; {_LAYOUT}")
    classes, loose = [], []
    for entry in os.scandir(root):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            classes.append(entry.name)
        elif files.is_image(entry.name):
            loose.append(entry.name)
    faults = _faults(root, sorted(classes), sorted(loose))
    if faults:
        raise ConfigError(faults)
    return Folder(root, tuple(sorted(classes)))


def _faults(root: Path, classes: list[str], loose: list[str]) -> list[str]:
    empty = [name for name in classes if not any(files.is_image(entry.name) for entry in files.walk(root / name))]
    if len(empty) == len(classes):
        where = f"{len(loose)} images lie directly in it" if loose else "no images in it"
        return [f"{root}: {where}; {_LAYOUT}"]
    faults = [f"{root}: class folder {name!r} holds no images; remove it, or fill it" for name in empty]
    if loose:
        faults.append(f"{root}: {len(loose)} images lie beside the class folders ({files.some(loose)}); {_LAYOUT}")
    if len(classes) == 1:
        faults.append(f"{root}: only one class, {classes[0]!r}; a classifier needs two; {_LAYOUT}")
    return faults + _splits(root, classes)


def _splits(root: Path, classes: list[str]) -> list[str]:
    """One name of a split may well be a class (a train is a vehicle); train beside val or test is a layout."""
    splits = [name for name in classes if name.strip().lower() in _FITTED | _HELD_OUT]
    lower = {name.strip().lower() for name in splits}
    if len(splits) < len(classes) and not (lower & _FITTED and lower & _HELD_OUT):
        return []
    others = [name for name in classes if name not in splits]
    beside = f"; beside them: {files.some(others)}" if others else ""
    return [
        f"{root}: its folders are splits ({', '.join(splits)}), not classes{beside}; build each on its own with "
        "--split, or rename the folders if they are classes"
    ]
