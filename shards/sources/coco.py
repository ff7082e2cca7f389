"""Boxes, outlines and captions as COCO writes them: one JSON file for all images.

Boxes are x, y, width, height with edges counted from 0, and become corners; where there is an outline alone, it is the
box around it. Classes are the categories in the order of their ids. Outlines stay beside their boxes, polygons and run
lengths (uncompressed then); a box is a crowd where `iscrowd` says so. Polygons of less than three points are left out,
as in detectron2. Images without annotations stay, as negatives. A file in which no annotation has a box (iNaturalist,
camera traps) is one of classes: a category an image.

For `--task segmentation` the outlines of an image are painted into one mask of classes instead (`outlines.py`). What no
object covers is of a class of its own, `background`, which comes first; a category of that name is the same class.

The file is read as a whole, but each annotation is packed the moment it is parsed: the peak is about three times the
file, 1.3 GB for the 450 MB of COCO's train2017, in the process that lists and only while it does. Those that read the
images get each its own annotations in its item.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shards.format.annotations import VOID
from shards.format.manifest import canonical
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.encoded import png
from shards.sources.frame import Frame, frame_of
from shards.sources.notes import Notes
from shards.sources.outlines import Drawn, box_of, painted, pixels, runs, sound
from shards.sources.source import Item, Refused, SourceOptions

_PROBED = 100
_BACKGROUND = "background"
_FIELDS = {
    "detection": {"boxes": "boxes.json"},
    "segmentation": {"mask": "mask.png"},
    "classification": {"label": "cls"},
}
_IN_FOLDER = ("annotations/instances_*.json", "_annotations.coco.json")


class _Image(NamedTuple):
    id: Any
    file_name: str
    size: tuple[int, int] | None


class _Note(NamedTuple):
    """What one annotation says of an image: [bbox, category id, crowd, outline] as JSON, or a caption. An outline is
    polygons, or run lengths as they stand there.
    """

    image_id: Any
    packed: bytes | str


class Coco:
    """The images that one file describes."""

    def __init__(
        self, path: Path, images: Path, captions: Path | None, frame: str | None = None, task: str | None = None
    ):
        """`task`: detection or segmentation; None: what the file has, boxes or classes."""
        self.path, self.images, self.captions, self.frame, self.ignored = path, images, captions, frame, 0
        self.classes: tuple[str, ...] = ()
        self.notes = Notes()
        self._places: dict[Any, int] = {}
        self._asked = task
        self._of(task or "detection")

    def _of(self, task: str) -> None:
        self.task, self.fields = task, {**_FIELDS[task], **({"side": "json"} if self.captions else {})}

    def items(self) -> Iterator[Item]:
        """Every image. Task and classes are known when the first item is."""
        self.notes = Notes()
        left_out: Counter[str] = Counter()
        content = _load(self.path, left_out)
        faults: list[str] = []
        images = _list(content, "images", _Image, "`id` and `file_name`", faults)
        notes = _list(content, "annotations", _Note, "`image_id` and `category_id`", faults)
        self._set_classes(content.get("categories"), faults)
        ids = {image.id for image in images}
        if len(ids) < len(images):
            faults.append(f"{len(images) - len(ids)} images have the id of another one")
        by_image, num = _grouped(notes, ids, faults), len(notes)
        del content, notes
        without_boxes = bool(by_image) and not any(_has_shape(note) for notes in by_image.values() for note in notes)
        if self._asked == "detection" and without_boxes:
            faults.append("no annotation has a box or an outline; without --task it is one of classes")
        if self._asked == "segmentation" and not any(_has_outline(one) for found in by_image.values() for one in found):
            faults.append(
                "no annotation has an outline (`segmentation`), so there are no masks for --task segmentation"
            )
        if faults:
            raise ConfigError([f"{self.path}: {fault}" for fault in faults])
        if not self._asked:
            self._of("classification" if without_boxes else "detection")
        if self.task == "classification":
            self.notes.tell("annotations without a box, which is all of them: read as classes, one an image", count=num)
        for what, count in left_out.items():
            self.notes.tell(what, count=count)
        captions = self._read_captions(ids)
        self._probe(images)
        for image in images:
            packed = by_image.pop(image.id, [])
            payload: dict[str, Any] = {"notes": [json.loads(note) for note in packed], "size": image.size}
            if self.captions:
                payload["captions"] = captions.pop(image.id, [])
            yield self._item(image, payload, sum(map(len, packed)))

    def read(self, item: Item) -> dict[str, bytes]:
        """The image, its boxes or its mask, its captions."""
        if "refused" in item.payload:
            raise Refused(item.payload["refused"])
        image = item.payload["image"]
        data = files.read(self.images, image)
        members = {files.extension(image): data}
        if self.task == "classification":
            members["cls"] = b"%d" % self._class(item.payload["notes"])
        else:
            size = item.payload["size"]
            of = "boxes" if self.task == "detection" else "outlines"
            drawn = frame_of(data, size and (size[0], size[1]), self.frame, of, self.notes)
            if self.task == "detection":
                members["boxes.json"] = canonical(self._boxes(item.payload["notes"], drawn))
            else:
                members["mask.png"] = png(self._mask(item.payload["notes"], drawn))
        if self.captions:
            members["json"] = canonical({"captions": item.payload["captions"]})
        return members

    def _item(self, image: _Image, payload: dict[str, Any], note_bytes: int) -> Item:
        try:
            name = files.relative(image.file_name, self.images)
        except Refused as error:
            return Item(f"image {image.id}", 0, "", payload={"refused": str(error)})
        size, stamp = files.measure(self.images / name)
        label = -1
        if self.task == "classification":
            with suppress(Refused):  # said when it is read
                label = self._class(payload["notes"])
        return Item(files.stem(name), size + note_bytes, stamp, label, payload={"image": name, **payload})

    def _class(self, notes: list[list[Any]]) -> int:
        """The class of an image that has categories and no boxes."""
        named = sorted({str(category) for _, category, *_ in notes})
        if len(named) != 1:
            raise Refused(f"it has {len(named)} categories ({files.some(named) or 'none'}), expected one")
        if notes[0][1] not in self._places:
            raise Refused(f"it has category {notes[0][1]!r}, which is none of the {len(self.classes)} known")
        return self._places[notes[0][1]]

    def _objects(self, notes: list[list[Any]], drawn: Frame) -> Iterator[Drawn]:
        """In the frame that they were drawn in."""
        for number, (box, category, crowd, outline) in enumerate(notes):
            if category not in self._places:
                raise Refused(f"box {number} has category {category!r}, which is none of the {len(self.classes)} known")
            label = self._places[category]
            if not box and outline:
                with sound(number):
                    box = box_of(outline, *drawn.drawn_on)
                yield Drawn(label, outline, box, bool(crowd))
                continue
            if not isinstance(box, list) or len(box) != 4 or not all(type(part) in (int, float) for part in box):
                raise Refused(f"box {number} is {json.dumps(box)[:60]}, expected x, y, width, height")
            x, y, width, height = box
            yield Drawn(label, outline, [x, y, x + width, y + height], bool(crowd))

    def _boxes(self, notes: list[list[Any]], drawn: Frame) -> dict[str, list]:
        objects = list(self._objects(notes, drawn))
        crowds, polygons, lengths = [int(one.crowd) for one in objects], [], []
        for number, one in enumerate(objects):
            inside = isinstance(one.outline, dict)
            polygons.append(None if inside or not one.outline else [drawn.points(points) for points in one.outline])
            with sound(number):
                lengths.append(runs(drawn.mask(pixels(one.outline, *drawn.drawn_on))) if inside else None)
        found = {"boxes": [drawn.box(one.box or ()) for one in objects], "labels": [one.label for one in objects]}
        more = {"crowd": crowds, "polygons": polygons, "runs": lengths}
        return found | {name: parts for name, parts in more.items() if any(parts)}

    def _mask(self, notes: list[list[Any]], drawn: Frame) -> np.ndarray:
        objects = list(self._objects(notes, drawn))
        if lacking := sum(not one.outline for one in objects):
            self.notes.tell("objects without an outline, whose boxes are void in the mask", count=lacking)
        return np.ascontiguousarray(drawn.mask(painted(objects, *drawn.drawn_on, self.classes.index(_BACKGROUND))))

    def _set_classes(self, categories: Any, faults: list[str]) -> None:
        known = {}
        for category in categories if isinstance(categories, list) else ():
            if isinstance(category, dict) and type(category.get("id")) is int and isinstance(category.get("name"), str):
                known[category["id"]] = category["name"]
        if not known or len(set(known.values())) != len(categories):
            faults.append("expected a list `categories` with an `id` and a `name` each, every one different")
            return
        names = [known[number] for number in sorted(known)]
        if self.task == "segmentation" and _BACKGROUND not in names:
            names.insert(0, _BACKGROUND)
        if self.task == "segmentation" and len(names) > VOID:
            faults.append(f"{len(names)} classes with {_BACKGROUND}; a mask of 8 bits has room for {VOID}")
        self.classes = tuple(names)
        self._places = {number: self.classes.index(name) for number, name in known.items()}

    def _read_captions(self, ids: set[Any]) -> dict[Any, list[str]]:
        if not self.captions:
            return {}
        faults: list[str] = []
        notes = _list(_load(self.captions, Counter()), "annotations", _Note, "`image_id` and `caption`", faults)
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
    return Coco(file, images, options.captions, options.frame, options.task)


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


def _load(path: Path, left_out: Counter[str]) -> dict[str, Any]:
    """The file's content, packed; `left_out` counts outlines that are not kept."""
    try:
        with open(path, "rb") as file:
            content = json.load(file, object_hook=partial(_pack, left_out))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a JSON object with images, annotations and categories (COCO)")
    return content


def _pack(left_out: Counter[str], found: dict[str, Any]) -> Any:
    """What is kept of a JSON object, called for each the moment it is parsed."""
    if "image_id" in found and isinstance(found.get("caption"), str):
        return _Note(_id(found["image_id"]), found["caption"])
    if "image_id" in found and "category_id" in found:
        outline = found.get("segmentation")
        if isinstance(outline, list):
            shapes = [s for s in outline if _is_polygon(s)]
            if len(shapes) < len(outline):
                left_out["polygons of less than three points left out"] += len(outline) - len(shapes)
            outline = shapes
        outline = outline if isinstance(outline, (list, dict)) else None
        box, crowd = found.get("bbox"), int(found.get("iscrowd") == 1)
        return _Note(_id(found["image_id"]), canonical([box, _id(found["category_id"]), crowd, outline]))
    if "file_name" in found and "id" in found:
        return _Image(_id(found["id"]), str(found["file_name"]), _size(found.get("width"), found.get("height")))
    return found


def _size(width: Any, height: Any) -> tuple[int, int] | None:
    """The size that the file names; none where it is no size."""
    sound = all(isinstance(side, (int, float)) and 0 < side < 1e9 for side in (width, height))
    return (int(width), int(height)) if sound else None


def _has_shape(note: bytes) -> bool:
    """Whether a packed annotation has a box or an outline."""
    return not note.startswith((b"[null,", b"[[],")) or _has_outline(note)


def _has_outline(note: bytes) -> bool:
    """The same of an outline alone."""
    return not note.endswith((b",null]", b",[]]"))


def _is_polygon(points: Any) -> bool:
    numbers = isinstance(points, list) and all(type(part) in (int, float) for part in points)
    return numbers and len(points) >= 6 and len(points) % 2 == 0


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
