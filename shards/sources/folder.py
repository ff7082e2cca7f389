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
from shards.sources.notes import Notes
from shards.sources.source import Item, SourceOptions

_FITTED = {"train", "training"}
_HELD_OUT = {"val", "valid", "validation", "dev", "test", "testing"}
_PICTURES = {"images", "image", "imgs", "img", "jpegimages", "photos", "pictures"}
_SAID = {"labels", "label", "masks", "mask", "annotations", "annots", "annotation", "segmentationclass", "gt", "boxes"}
_LAYOUT = "expected <folder>/<class>/<image>, one sub-folder for each class, images " + ", ".join(IMAGES)


class Folder:
    """The images below `root`, labelled by class folder."""

    task = "classification"

    def __init__(self, root: Path, classes: tuple[str, ...]):
        self.root, self.classes, self.ignored = root, classes, 0
        self.fields, self.notes = {"label": "cls"}, Notes()

    def items(self) -> Iterator[Item]:
        """Every image."""
        self.notes, left_out = Notes(), files.LeftOut()
        for entry in os.scandir(self.root):
            if files.is_hidden(entry.name):
                self.notes.tell(files.HIDDEN, entry.name)
            elif not entry.is_dir():
                left_out.add(entry.name)
        for label, name in enumerate(self.classes):
            for entry in files.walk(self.root / name, self.notes):
                if not files.is_image(entry.name):
                    left_out.add(entry.name)
                    continue
                size, stamp = files.measure(entry.path)
                path = os.path.relpath(entry.path, self.root).replace(os.sep, "/")
                yield Item(files.stem(path), size, stamp, label, {"image": path})
        self.ignored = left_out.total
        left_out.tell(self.notes)

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
        if files.is_hidden(entry.name):
            continue
        if entry.is_dir():
            classes.append(entry.name)
        elif files.is_image(entry.name):
            loose.append(entry.name)
    faults = _faults(root, sorted(classes), sorted(loose))
    layout = None if options.kind else _images_and_more(root, sorted(classes))
    if layout:
        faults = [layout]
    if faults:
        raise ConfigError(faults)
    return Folder(root, tuple(sorted(classes)))


def _images_and_more(root: Path, classes: list[str]) -> str | None:
    """Images in one folder and what is known about them in another are no two classes, however they look."""
    pictures = [name for name in classes if name.lower() in _PICTURES]
    said = [name for name in classes if name.lower() in _SAID]
    if not pictures or not said:
        return None
    held = _without_images(root / said[0]) or "images"
    return (
        f"{root}: {pictures[0]!r} and {said[0]!r} look like images and what is known about them ({held}), not like "
        f"classes: masks are built with --masks {root / said[0]} (and --images), boxes by naming their COCO file, or "
        "with --kind voc; if these are classes, say --kind folder"
    )


def _faults(root: Path, classes: list[str], loose: list[str]) -> list[str]:
    empty = {name: held for name in classes if (held := _without_images(root / name)) is not None}
    if len(empty) == len(classes):
        held = "".join(f"; {name!r} holds {what}" for name, what in list(empty.items())[: files.SHOWN] if what)
        where = f"{len(loose)} images lie directly in it" if loose else "no images in it"
        return [f"{root}: {where}{held}; {_LAYOUT}"]
    faults = []
    for name, held in empty.items():
        advice = (
            f" but {held}; convert them, or move the folder away if it is no class"
            if held
            else "; remove it, or fill it"
        )
        faults.append(f"{root}: class folder {name!r} holds no images{advice}")
    if loose:
        faults.append(f"{root}: {len(loose)} images lie beside the class folders ({files.some(loose)}); {_LAYOUT}")
    if len(classes) == 1:
        faults.append(f"{root}: only one class, {classes[0]!r}; a classifier needs two; {_LAYOUT}")
    return faults + _splits(root, classes)


def _without_images(folder: Path) -> str | None:
    """What a folder without an image holds instead, in words; None if it has an image."""
    held = files.LeftOut()
    for entry in files.walk(folder):
        if files.is_image(entry.name):
            return None
        held.add(entry.name)
    return str(held)


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
