"""Boxes as Pascal VOC writes them: one XML file an image in `Annotations`, images in `JPEGImages`.

VOC counts pixels from 1 and means the last one to be inside: xmin 1, xmax 10 are ten pixels. Here boxes are edges that
count from 0, so a box becomes (xmin - 1, ymin - 1, xmax, ymax); detectron2 does the same. Tools that write VOC's form
but count from 0 give -1 at the border, which is within the pixel that boxes may reach beyond their image. Objects
marked `difficult` stay, as in detectron2 and torchvision when they train; the marks are kept beside the boxes.

The folders have other names in the field (`images` and `annots`, XML beside the images), and extensions other cases.
XML comes from anywhere: files with a DOCTYPE are refused, so nothing outside is read and no entity unfolds, and so are
files larger than any annotation. Any encoding that an XML file declares and Python knows is read. Costs about 0.1 ms
an image twice: once to find the classes, once to read.
"""

import codecs
import os
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from shards.format.fields import read_classes
from shards.format.manifest import canonical
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.frame import frame_of
from shards.sources.lists import find_list, read_list
from shards.sources.notes import Notes
from shards.sources.source import Item, Refused, SourceOptions

_LARGEST = 8_000_000
_NOTES = ("Annotations", "annotations/xmls", "annotations", "annots", "Annots", "xmls", "xml", "labels", "Labels")
_IMAGES = ("JPEGImages", "images", "Images", "imgs", "img", "jpegs")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_PROBED = 200
_DECLARED = re.compile(r"""^\s*<\?xml[^>]*?(\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["'])""")


class Note(NamedTuple):
    """Class, box (x0, y0, x1, y1 as edges from 0) and `difficult` of each object, and the size that is named."""

    objects: list[tuple[str, list[float], bool]]
    size: tuple[int, int] | None


class Voc:
    """The annotated images of one folder, or those of them that a list names."""

    task = "detection"

    def __init__(self, annotations: Path, images: Path, names: Path | None, given: tuple[str, ...], frame: str | None):
        self.annotations, self.images, self.names, self.frame = annotations, images, names, frame
        self.classes, self.ignored, self._given = given, 0, given
        self.fields, self.notes = {"boxes": "boxes.json"}, Notes()

    def items(self) -> Iterator[Item]:
        """Every annotated image; the classes are found on the way."""
        self.notes = Notes()
        found: set[str] = set()
        num_images, unreadable = 0, ""
        find_image = files.Finder(self.images)
        for name, note in self._listed() if self.names else self._annotated():
            payload: dict[str, str] = {"image": name, "note": note}
            try:
                image = find_image(name)
                num_images += image is not None
                payload["image"] = image or name
            except Refused as error:
                payload["refused"] = str(error)
            size, stamp = files.measure(self.images / payload["image"])
            note_size, note_stamp = files.measure(self.annotations / note)
            if not self._given:
                try:
                    found.update(label for label, _, _ in parse(files.read(self.annotations, note)).objects)
                except Refused as error:  # said again when it is read
                    unreadable = unreadable or f"; {note} cannot be read: {error}"
            yield Item(name, size + note_size, f"{stamp} {note_stamp}", payload=payload)
        if not self.names:
            self._tell_of_the_rest(num_images)
        self.classes = self._given or tuple(sorted(found))
        if not self.classes:
            where = f"{self.annotations}: no object in any annotation{unreadable}"
            raise ConfigError(f"{where}; {'repair it' if unreadable else 'name the classes with --classes'}")

    def read(self, item: Item) -> dict[str, bytes]:
        """The image and its boxes."""
        if "refused" in item.payload:
            raise Refused(item.payload["refused"])
        image, path = item.payload["image"], item.payload["note"]
        if not files.is_image(image):
            raise Refused(f"no image {image} in {self.images}")
        note = parse(files.read(self.annotations, path))
        unknown = sorted({label for label, _, _ in note.objects} - set(self.classes))
        if unknown:
            raise Refused(f"{path}: class {files.some(unknown)} is none of the {len(self.classes)} known")
        data = files.read(self.images, image)
        frame = frame_of(data, note.size, self.frame, "boxes", self.notes)
        boxes = {
            "boxes": [frame.box(box) for _, box, _ in note.objects],
            "labels": [self.classes.index(label) for label, _, _ in note.objects],
        }
        if any(difficult for _, _, difficult in note.objects):
            boxes["difficult"] = [int(difficult) for _, _, difficult in note.objects]
        return {files.extension(image): data, "boxes.json": canonical(boxes)}

    def _annotated(self) -> Iterator[tuple[str, str]]:
        """Name and annotation of each sample."""
        for entry in files.walk(self.annotations, self.notes):
            if files.extension(entry.name) == "xml":
                path = os.path.relpath(entry.path, self.annotations).replace(os.sep, "/")
                yield files.stem(path), path

    def _listed(self) -> Iterator[tuple[str, str]]:
        assert self.names
        find = files.Finder(self.annotations, ("xml",))
        for name in read_list(self.names, self.notes):
            yield name, find(name) or f"{name}.xml"

    def _tell_of_the_rest(self, num_images: int) -> None:
        """Images without annotation, and files that are neither."""
        left_out, there = files.LeftOut(), 0
        for entry in files.walk(self.images, self.notes if self.images != self.annotations else None):
            if files.is_image(entry.name):
                there += 1
            elif files.extension(entry.name) != "xml":
                left_out.add(entry.name)
        left_out.tell(self.notes)
        self.ignored = there - num_images
        if self.ignored:
            self.notes.tell("images without an annotation left out", count=self.ignored)


def parse(data: bytes) -> Note:
    """What an annotation says. Raises Refused."""
    if len(data) > _LARGEST:
        raise Refused(f"its annotation has {len(data):,} bytes, at most {_LARGEST:,} are read")
    text = _text(data)
    if "\0" in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise Refused("its annotation has a DOCTYPE, entities or NUL bytes; remove them")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise Refused(f"its annotation is not XML: {error}") from None
    if root.tag != "annotation":
        raise Refused(f"its annotation begins with <{root.tag}>, expected <annotation>")
    return Note([_object(number, node) for number, node in enumerate(root.findall("object"))], _size(root))


def open_voc(root: Path, options: SourceOptions) -> Voc:
    """Finds the folders. Raises ConfigError with every fault."""
    faults, names = [], None
    annotations, images = annotations_in(root), options.images
    if annotations is None:
        faults.append(
            f"{root}: no folder Annotations in it (nor {', '.join(_NOTES[1:])} with .xml files); expected "
            "Annotations/<name>.xml, JPEGImages/<name>.jpg"
        )
    if images is None:
        images = next((root / name for name in _IMAGES if (root / name).is_dir()), annotations)
        if images is None or not _holds(images, files.is_image):
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
    assert annotations
    assert images
    return Voc(annotations, images, names, read_classes(options.classes), options.frame)


def is_voc(path: Path) -> bool:
    """A folder with VOC's annotations: in a folder of their own, or beside their images."""
    return path.is_dir() and annotations_in(path) is not None


def annotations_in(root: Path) -> Path | None:
    """The folder of the XML files, if there is one; VOC's own name says enough."""
    if not root.is_dir():
        return None
    if (root / _NOTES[0]).is_dir():
        return root / _NOTES[0]
    for folder in [root / name for name in _NOTES[1:]]:
        if folder.is_dir() and _holds(folder, _is_xml):
            return folder
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if entry.is_file()]
    return root if any(map(_is_xml, names)) and any(map(files.is_image, names)) else None


def _is_xml(name: str) -> bool:
    return files.extension(name) == "xml"


def _holds(folder: Path, wanted: Callable[[str], bool]) -> bool:
    """Whether the first few files below a folder have such a name among them."""
    return any(wanted(entry.name) for entry in islice(files.walk(folder), _PROBED))


def _text(data: bytes) -> str:
    """The annotation as text, without the encoding that it declares. Raises Refused."""
    mark = next((name for bom, name in _MARKS.items() if data.startswith(bom)), None)
    declared = None if mark else _DECLARED.match(data[:200].decode("latin-1"))
    encoding = mark or (declared.group(2) if declared else "utf-8")
    try:
        text = data.decode(encoding)
    except LookupError:
        raise Refused(f"its annotation is not XML that can be read: unknown encoding {encoding!r}") from None
    except UnicodeError:
        raise Refused(
            f"its annotation is not XML in the encoding {encoding} ({'as it says' if declared else 'it names none'}); "
            'name the right one in its first line: <?xml version="1.0" encoding="..."?>'
        ) from None
    found = _DECLARED.match(text)
    return text[: found.start(1)] + text[found.end(1) :] if found else text


_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Width and height, where they are named; 0 is what tools write that do not know."""
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


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
