"""Boxes, polygons and captions as COCO writes them: one JSON file for all images.

Boxes are x, y, width, height with edges counted from 0, and become corners. Classes are the categories in the order of
their ids. Polygons stay; a mask in run lengths is left out, its box stays and is a crowd where `iscrowd` says so.
Polygons of less than three points are left out, as in detectron2. Images without annotations stay, as negatives.

The file is read as a whole, but each annotation is packed the moment it is parsed: the peak is about three times the
file, 1.3 GB for the 450 MB of COCO's train2017, in the process that lists and only while it does. Those that read the
images get each its own annotations in its item.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from shards.format.manifest import canonical
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.source import Item, Refused, SourceOptions

_PROBED = 100
_IN_FOLDER = ("annotations/instances_*.json", "_annotations.coco.json")


class _Image(NamedTuple):
    id: Any
    file_name: str


class _Note(NamedTuple):
    """What one annotation says of an image: [bbox, category id, crowd, polygons] as JSON, or a caption."""

    image_id: Any
    packed: bytes | str


class Coco:
    """The images that one file describes."""

    task = "detection"

    def __init__(self, path: Path, images: Path, captions: Path | None):
        self.path, self.images, self.captions, self.ignored = path, images, captions, 0
        self.fields = {"boxes": "boxes.json", **({"side": "json"} if captions else {})}
        self.classes: tuple[str, ...] = ()
        self._places: dict[Any, int] = {}

    def items(self) -> Iterator[Item]:
        """Every image. The classes are known when the first item is."""
        content = _load(self.path)
        faults: list[str] = []
        images = _list(content, "images", _Image, "`id` and `file_name`", faults)
        notes = _list(content, "annotations", _Note, "`image_id` and `category_id`", faults)
        self._set_classes(content.get("categories"), faults)
        ids = {image.id for image in images}
        if len(ids) < len(images):
            faults.append(f"{len(images) - len(ids)} images have the id of another one")
        by_image = _grouped(notes, ids, faults)
        del content, notes
        if faults:
            raise ConfigError([f"{self.path}: {fault}" for fault in faults])
        captions = self._read_captions(ids)
        self._probe(images)
        for image in images:
            packed = by_image.pop(image.id, [])
            payload = {"notes": [json.loads(note) for note in packed]}
            if self.captions:
                payload["captions"] = captions.pop(image.id, [])
            yield self._item(image, payload, sum(map(len, packed)))

    def read(self, item: Item) -> dict[str, bytes]:
        """The image, its boxes, its captions."""
        if "refused" in item.payload:
            raise Refused(item.payload["refused"])
        image = item.payload["image"]
        members = {files.extension(image): files.read(self.images, image)}
        members["boxes.json"] = canonical(self._boxes(item.payload["notes"]))
        if self.captions:
            members["json"] = canonical({"captions": item.payload["captions"]})
        return members

    def _item(self, image: _Image, payload: dict[str, list[Any]], note_bytes: int) -> Item:
        try:
            name = files.relative(image.file_name, self.images)
        except Refused as error:
            return Item(f"image {image.id}", 0, "", payload={"refused": str(error)})
        size, stamp = files.measure(self.images / name)
        return Item(files.stem(name), size + note_bytes, stamp, payload={"image": name, **payload})

    def _boxes(self, notes: list[list[Any]]) -> dict[str, list]:
        boxes, labels, crowds, shapes = [], [], [], []
        for number, (box, category, crowd, polygons) in enumerate(notes):
            if not isinstance(box, list) or len(box) != 4 or not all(type(part) in (int, float) for part in box):
                raise Refused(f"box {number} is {json.dumps(box)[:60]}, expected x, y, width, height")
            if category not in self._places:
                raise Refused(f"box {number} has category {category!r}, which is none of the {len(self.classes)} known")
            x, y, width, height = box
            boxes.append([x, y, x + width, y + height])
            labels.append(self._places[category])
            crowds.append(crowd)
            shapes.append(polygons or None)
        always = {"boxes": boxes, "labels": labels}
        return always | ({"crowd": crowds} if any(crowds) else {}) | ({"polygons": shapes} if any(shapes) else {})

    def _set_classes(self, categories: Any, faults: list[str]) -> None:
        known = {}
        for category in categories if isinstance(categories, list) else ():
            if isinstance(category, dict) and type(category.get("id")) is int and isinstance(category.get("name"), str):
                known[category["id"]] = category["name"]
        if not known or len(set(known.values())) != len(categories):
            faults.append("expected a list `categories` with an `id` and a `name` each, every one different")
            return
        self.classes = tuple(known[number] for number in sorted(known))
        self._places = {number: place for place, number in enumerate(sorted(known))}

    def _read_captions(self, ids: set[Any]) -> dict[Any, list[str]]:
        if not self.captions:
            return {}
        faults: list[str] = []
        notes = _list(_load(self.captions), "annotations", _Note, "`image_id` and `caption`", faults)
        captions: dict[Any, list[str]] = {}
        for note in notes:
            if note.image_id in ids and isinstance(note.packed, str):
                captions.setdefault(note.image_id, []).append(note.packed)
        if not captions and not faults:
            faults.append(f"no captions of the images in {self.path}")
        if faults:
            raise ConfigError([f"--captions: {self.captions}: {fault}" for fault in faults])
        return captions

    def _probe(self, images: list[_Image]) -> None:
        """Raises ConfigError if the folder is not that of the images."""
        first = images[:_PROBED]
        if first and not any((self.images / image.file_name).is_file() for image in first):
            raise ConfigError(
                f"{self.images}: {first[0].file_name!r} is not in it, nor any of the {len(first)} images that "
                f"{self.path.name} names first; say where they are with --images"
            )


def open_coco(path: Path, options: SourceOptions) -> Coco:
    """Finds the file and the images. Raises ConfigError with every fault."""
    faults = []
    file = _the_file(path)
    images = options.images or _images_of(path, file)
    if not images.is_dir():
        faults.append(f"--images: {images}: no such folder")
    if options.captions and not options.captions.is_file():
        faults.append(f"--captions: {options.captions}: no such file")
    if faults:
        raise ConfigError(faults)
    return Coco(file, images, options.captions)


def is_coco(path: Path) -> bool:
    """A .json file, or a folder with one in COCO's places."""
    return path.suffix == ".json" if path.is_file() else any(any(path.glob(pattern)) for pattern in _IN_FOLDER)


def _the_file(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(file for pattern in _IN_FOLDER for file in path.glob(pattern))
    if len(found) == 1:
        return found[0]
    named = files.some([str(file.relative_to(path)) for file in found]) or "none"
    raise ConfigError(f"{path}: expected one file {' or '.join(_IN_FOLDER)} in it, found {named}; name the file")


def _images_of(path: Path, file: Path) -> Path:
    """The folder of the images: `val2017` for `annotations/instances_val2017.json`, else that of the file."""
    if file.parent.name != "annotations":
        return file.parent
    part, root = file.stem.removeprefix("instances_"), file.parent.parent
    likely = (root / part, root / "images" / part, root / "images", file.parent)
    return next(folder for folder in likely if folder.is_dir())


def _load(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = json.load(file, object_hook=_pack)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a JSON object with images, annotations and categories (COCO)")
    return content


def _pack(found: dict[str, Any]) -> Any:
    """What is kept of a JSON object, called for each the moment it is parsed."""
    if "image_id" in found and isinstance(found.get("caption"), str):
        return _Note(_id(found["image_id"]), found["caption"])
    if "image_id" in found and "category_id" in found:
        shapes = found.get("segmentation")
        shapes = (
            [s for s in shapes if isinstance(s, list) and len(s) >= 6 and len(s) % 2 == 0]
            if isinstance(shapes, list)
            else None
        )
        crowd = int(found.get("iscrowd") == 1)
        return _Note(_id(found["image_id"]), canonical([found.get("bbox"), _id(found["category_id"]), crowd, shapes]))
    if "file_name" in found and "id" in found:
        return _Image(_id(found["id"]), str(found["file_name"]))
    return found


def _id(value: Any) -> Any:
    """An id that can be looked up."""
    return value if isinstance(value, (int, str)) else str(value)


def _list(content: dict[str, Any], name: str, kind: type, what: str, faults: list[str]) -> list[Any]:
    entries = content.get(name)
    if isinstance(entries, list) and all(isinstance(entry, kind) for entry in entries):
        return entries
    faults.append(f"expected a list `{name}`, each entry with {what} (COCO)")
    return []


def _grouped(notes: list[_Note], ids: set[Any], faults: list[str]) -> dict[Any, list[bytes]]:
    by_image: dict[Any, list[bytes]] = {}
    unknown = 0
    for note in notes:
        if note.image_id not in ids:
            unknown += 1
        elif isinstance(note.packed, bytes):
            by_image.setdefault(note.image_id, []).append(note.packed)
        else:
            faults.append("it holds captions, not boxes; give it as --captions beside an instances file")
            break
    if unknown:
        faults.append(f"{unknown} annotations are of images that it does not name")
    return by_image
