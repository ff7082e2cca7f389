"""Images and masks in two folders, a mask for each image with the same name: `images/a.jpg`, `masks/a.png`.

Masks are PNG: class indices (8-bit grey, or a palette of any depth), or colours with a `label_colors.txt`. CamVid's own
names (`a_L.png`) and `a_mask.png` are found too. Masks of indices do not say what their classes are called: `--classes`
does. An index named by `--void` becomes 255, "no class"; the other indices keep their numbers. Where classes have other
values than 0, 1, 2, ... (often 0 and 255), `--values` names them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from shards.format.annotations import VOID, parse_mask
from shards.format.fields import read_classes
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.colors import FILE, Painter, class_names_of, read_colors
from shards.sources.encoded import png as encode
from shards.sources.frame import OtherSize, frame_of
from shards.sources.lists import find_list, read_list
from shards.sources.notes import Notes
from shards.sources.source import Item, Refused, SourceOptions

_SUFFIXES = ("", "_L", "_mask")


class Masks:
    """Images of one folder with their masks in another, or those of them that a list names."""

    task = "segmentation"

    def __init__(
        self,
        images: Path,
        masks: Path,
        names: Path | None,
        classes: tuple[str, ...],
        painter: Painter,
        frame: str | None = None,
    ):
        self.frame, self._find_mask = frame, files.Finder(masks, ("png",))
        self.images, self.masks, self.names = images, masks, names
        self.classes, self.painter, self.ignored = classes, painter, 0
        self.fields, self.notes = {"mask": "mask.png"}, Notes()

    def items(self) -> Iterator[Item]:
        """Every image, whether it has a mask or not."""
        self.notes = Notes()
        num_masks = 0
        for name, image in self._listed() if self.names else self._found():
            payload: dict[str, str | None] = {"image": image or name, "mask": None}
            try:
                payload["mask"] = self._mask_of(name)
            except Refused as error:
                payload["refused"] = str(error)
            num_masks += payload["mask"] is not None
            size, stamp = files.measure(self.images / (image or name))
            mask_size, mask_stamp = files.measure(self.masks / (payload["mask"] or name))
            yield Item(name, size + mask_size, f"{stamp} {mask_stamp}", payload=payload)
        if not self.names:
            masks = (entry for entry in files.walk(self.masks, self.notes) if files.extension(entry.name) == "png")
            self.ignored = sum(1 for _ in masks) - num_masks
            if self.ignored:
                self.notes.tell("masks without an image left out", count=self.ignored)

    def read(self, item: Item) -> dict[str, bytes]:
        """The image and its mask as class indices."""
        if "refused" in item.payload:
            raise Refused(item.payload["refused"])
        image, mask = item.payload["image"], item.payload["mask"]
        if not files.is_image(image):
            raise Refused(f"no image {image} in {self.images}")
        if mask is None:
            other = files.find_beside(self.masks, [f"{item.key}{suffix}" for suffix in _SUFFIXES])
            found = f"; {other} is there, but masks have to be PNG: what JPEG blurs are no classes" if other else ""
            raise Refused(f"no mask {item.key}.png in {self.masks}{found}")
        data = files.read(self.images, image)
        index = self._upright(self.painter.index(files.read(self.masks, mask), self.notes), data)
        return {files.extension(image): data, "mask.png": index}

    def _upright(self, mask: bytes, image: bytes) -> bytes:
        """The mask, turned as the EXIF tag of its image says, if it was drawn on the stored pixels. Raises Refused."""
        size = int.from_bytes(mask[16:20], "big"), int.from_bytes(mask[20:24], "big")
        try:
            frame = frame_of(image, size, self.frame, "mask", self.notes)
        except OtherSize:
            return mask  # refused with all other masks of a wrong size
        return encode(np.ascontiguousarray(frame.mask(parse_mask(mask)))) if frame.turns else mask

    def _listed(self) -> Iterator[tuple[str, str | None]]:
        assert self.names
        find_image = files.Finder(self.images)
        for name in read_list(self.names, self.notes):
            if files.is_image(name) and (self.images / name).is_file():
                yield files.stem(name), name
            else:
                stem = files.stem(name) if files.is_image(name) else name
                yield stem, find_image(stem)

    def _found(self) -> Iterator[tuple[str, str | None]]:
        masks = os.path.realpath(self.masks) + os.sep
        left_out = files.LeftOut()
        for entry in files.walk(self.images, self.notes):
            if not files.is_image(entry.name):
                left_out.add(entry.name)
            if files.is_image(entry.name) and not os.path.realpath(entry.path).startswith(masks):
                image = os.path.relpath(entry.path, self.images).replace(os.sep, "/")
                yield files.stem(image), image
        left_out.tell(self.notes)

    def _mask_of(self, name: str) -> str | None:
        for suffix in _SUFFIXES:
            found = self._find_mask(f"{name}{suffix}")
            if found:
                return found
        return None


def open_masks(root: Path, options: SourceOptions) -> Masks:
    """Finds folders, colours and classes. Raises ConfigError with every fault."""
    masks = options.masks or root / "masks"
    images = options.images or (root / "images" if (root / "images").is_dir() else root)
    faults = [
        f"{flag}: {folder}: no such folder"
        for flag, folder in (("--images", images), ("--masks", masks))
        if not folder.is_dir()
    ]
    names, colors, classes = None, {}, ()
    try:
        colors = next(
            (read_colors(place / FILE) for place in (root, masks, masks.parent) if (place / FILE).is_file()), {}
        )
        classes = read_classes(options.classes) or class_names_of(colors)
        names = find_list(root, options.list) if options.list else None
    except ConfigError as error:
        faults += error.faults
    if not classes and not faults:
        faults.append(f"{root}: what are the classes called? Name them with --classes, or put a {FILE} there")
    if len(classes) > VOID:
        faults.append(f"--classes: {len(classes)} classes; a mask of 8 bits has room for {VOID}")
    values = [value.strip() for given in options.values for value in given.split(",")]
    numbers = {int(value) for value in values if value.isascii() and value.isdigit() and len(value) < 4}
    if values and (len(numbers) != len(classes) or len(values) != len(numbers) or max(numbers) > VOID):
        faults.append(f"--values: {','.join(values)}; expected {len(classes)} numbers, 0 to {VOID}, one for each class")
    if options.void is not None and not 0 <= options.void <= VOID:
        faults.append(f"--void: {options.void}; expected a class index, 0 to {VOID}")
    if faults:
        raise ConfigError(faults)
    painter = Painter(colors, classes, options.void, tuple(map(int, values)))
    return Masks(images, masks, names, classes, painter, options.frame)


def is_masks(path: Path) -> bool:
    """A folder with images and masks side by side."""
    return (path / "images").is_dir() and (path / "masks").is_dir()
