"""Boxes as Pascal VOC writes them: one XML file an image in `Annotations`, images in `JPEGImages`.

VOC counts pixels from 1 and means the last one to be inside: xmin 1, xmax 10 are ten pixels. Here boxes are edges that
count from 0, so a box becomes (xmin - 1, ymin - 1, xmax, ymax); detectron2 does the same. Tools that write VOC's form
but count from 0 give -1 at the border, which is within the pixel that boxes may reach beyond their image. Objects
marked `difficult` stay, as in detectron2 and torchvision when they train; the marks are kept beside the boxes.

XML comes from anywhere: files with a DOCTYPE are refused, so nothing outside is read and no entity unfolds, and so are
files larger than any annotation. Costs about 0.1 ms an image twice: once to find the classes, once to read.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

from shards.format.fields import read_classes
from shards.format.manifest import canonical
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.lists import find_list, read_list
from shards.sources.source import Item, Refused, SourceOptions

_LARGEST = 8_000_000
_IMAGES = ("JPEGImages", "images", "Images")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Voc:
    """The annotated images of one folder, or those of them that a list names."""

    task = "detection"

    def __init__(self, root: Path, images: Path, names: Path | None, classes: tuple[str, ...]):
        self.notes, self.images, self.names, self.classes, self.ignored = (
            root / "Annotations",
            images,
            names,
            classes,
            0,
        )
        self.fields = {"boxes": "boxes.json"}
        self._given = classes

    def items(self) -> Iterator[Item]:
        """Every annotated image; the classes are found on the way."""
        found: set[str] = set()
        num_images = 0
        for name in read_list(self.names) if self.names else self._annotated():
            note = f"{name}.xml"
            image = files.find_image(self.images, name)
            num_images += image is not None
            size, stamp = files.measure(self.images / (image or name))
            note_size, note_stamp = files.measure(self.notes / note)
            if not self._given:
                with suppress(Refused):  # said when it is read
                    found.update(label for label, _, _ in parse(files.read(self.notes, note)))
            yield Item(name, size + note_size, f"{stamp} {note_stamp}", payload={"image": image or name, "note": note})
        if not self.names:
            self.ignored = sum(files.is_image(entry.name) for entry in files.walk(self.images)) - num_images
        self.classes = self._given or tuple(sorted(found))
        if not self.classes:
            raise ConfigError(f"{self.notes}: no object in any annotation; name the classes with --classes")

    def read(self, item: Item) -> dict[str, bytes]:
        """The image and its boxes."""
        image, note = item.payload["image"], item.payload["note"]
        if not files.is_image(image):
            raise Refused(f"no image {image} in {self.images}")
        objects = parse(files.read(self.notes, note))
        unknown = sorted({label for label, _, _ in objects} - set(self.classes))
        if unknown:
            raise Refused(f"{note}: class {files.some(unknown)} is none of the {len(self.classes)} known")
        boxes = {
            "boxes": [box for _, box, _ in objects],
            "labels": [self.classes.index(label) for label, _, _ in objects],
        }
        if any(difficult for _, _, difficult in objects):
            boxes["difficult"] = [int(difficult) for _, _, difficult in objects]
        return {files.extension(image): files.read(self.images, image), "boxes.json": canonical(boxes)}

    def _annotated(self) -> Iterator[str]:
        for entry in files.walk(self.notes):
            if files.extension(entry.name) == "xml":
                yield files.stem(os.path.relpath(entry.path, self.notes).replace(os.sep, "/"))


def parse(data: bytes) -> list[tuple[str, list[float], bool]]:
    """Class, box (x0, y0, x1, y1 as edges from 0) and `difficult` of each object in an annotation. Raises Refused."""
    if len(data) > _LARGEST:
        raise Refused(f"its annotation has {len(data):,} bytes, at most {_LARGEST:,} are read")
    # Without NUL bytes the encoding is one in which ASCII is itself, so these names cannot hide.
    if b"\0" in data or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise Refused("its annotation has a DOCTYPE, entities or NUL bytes; remove them")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise Refused(f"its annotation is not XML: {error}") from None
    if root.tag != "annotation":
        raise Refused(f"its annotation begins with <{root.tag}>, expected <annotation>")
    return [_object(number, node) for number, node in enumerate(root.findall("object"))]


def open_voc(root: Path, options: SourceOptions) -> Voc:
    """Checks that the folders are there. Raises ConfigError with every fault."""
    faults, names, images = [], None, options.images
    if not (root / "Annotations").is_dir():
        faults.append(f"{root}: no folder Annotations in it; expected Annotations/<name>.xml, JPEGImages/<name>.jpg")
    if images is None:
        images = next((root / name for name in _IMAGES if (root / name).is_dir()), None)
        if images is None:
            faults.append(f"{root}: no folder of images ({', '.join(_IMAGES)}) in it; name it with --images")
    elif not images.is_dir():
        faults.append(f"--images: {images}: no such folder")
    if options.list:
        try:
            names = find_list(root, options.list)
        except ConfigError as error:
            faults += error.faults
    if faults:
        raise ConfigError(faults)
    assert images
    return Voc(root, images, names, read_classes(options.classes))


def _object(number: int, node: ElementTree.Element) -> tuple[str, list[float], bool]:
    label = (node.findtext("name") or "").strip()
    if not label:
        raise Refused(f"object {number} of its annotation has no <name>")
    texts = [node.findtext(f"bndbox/{corner}") for corner in _CORNERS]
    try:
        x0, y0, x1, y1 = (float(text or "") for text in texts)
    except ValueError:
        raise Refused(f"object {number} of its annotation has corners {texts}, expected four numbers") from None
    return label, [x0 - 1, y0 - 1, x1, y1], (node.findtext("difficult") or "0").strip() == "1"
