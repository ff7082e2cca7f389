"""Images and masks in two folders, a mask for each image with the same name: `images/a.jpg`, `masks/a.png`.

Masks are PNG: class indices (8-bit grey, or a palette of any depth), or colours with a `label_colors.txt`. CamVid's
own names (`a_L.png`) and `a_mask.png` are found too. Masks of indices do not say what their classes are called:
`--classes` does. An index named by `--void` becomes 255, "no class"; the other indices keep their numbers.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from shards.format.annotations import VOID
from shards.format.fields import read_classes
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.colors import FILE, Painter, class_names_of, read_colors
from shards.sources.lists import find_list, read_list
from shards.sources.source import Item, Refused, SourceOptions

_SUFFIXES = ("", "_L", "_mask")


class Masks:
    """Images of one folder with their masks in another, or those of them that a list names."""

    task = "segmentation"

    def __init__(self, images: Path, masks: Path, names: Path | None, classes: tuple[str, ...], painter: Painter):
        self.images, self.masks, self.names = images, masks, names
        self.classes, self.painter, self.ignored = classes, painter, 0
        self.fields = {"mask": "mask.png"}

    def items(self) -> Iterator[Item]:
        """Every image, whether it has a mask or not."""
        num_masks = 0
        for name, image in self._listed() if self.names else self._found():
            mask = self._mask_of(name)
            num_masks += mask is not None
            size, stamp = files.measure(self.images / (image or name))
            mask_size, mask_stamp = files.measure(self.masks / (mask or name))
            yield Item(name, size + mask_size, f"{stamp} {mask_stamp}", payload={"image": image or name, "mask": mask})
        if not self.names:
            self.ignored = sum(files.extension(entry.name) == "png" for entry in files.walk(self.masks)) - num_masks

    def read(self, item: Item) -> dict[str, bytes]:
        """The image and its mask as class indices."""
        image, mask = item.payload["image"], item.payload["mask"]
        if not files.is_image(image):
            raise Refused(f"no image {image} in {self.images}")
        if mask is None:
            raise Refused(f"no mask {item.key}.png in {self.masks}")
        data = files.read(self.images, image)
        return {files.extension(image): data, "mask.png": self.painter.index(files.read(self.masks, mask))}

    def _listed(self) -> Iterator[tuple[str, str | None]]:
        assert self.names
        for name in read_list(self.names):
            stem = files.stem(name) if files.is_image(name) else name
            yield stem, files.find_image(self.images, stem)

    def _found(self) -> Iterator[tuple[str, str | None]]:
        masks = os.path.realpath(self.masks) + os.sep
        for entry in files.walk(self.images):
            if files.is_image(entry.name) and not os.path.realpath(entry.path).startswith(masks):
                image = os.path.relpath(entry.path, self.images).replace(os.sep, "/")
                yield files.stem(image), image

    def _mask_of(self, name: str) -> str | None:
        for suffix in _SUFFIXES:
            if os.path.isfile(os.path.join(self.masks, f"{name}{suffix}.png")):
                return f"{name}{suffix}.png"
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
    if options.void is not None and not 0 <= options.void <= VOID:
        faults.append(f"--void: {options.void}; expected a class index, 0 to {VOID}")
    if faults:
        raise ConfigError(faults)
    return Masks(images, masks, names, classes, Painter(colors, classes, options.void))


def is_masks(path: Path) -> bool:
    """A folder with images and masks side by side."""
    return (path / "images").is_dir() and (path / "masks").is_dir()
