"""Any dataset object with `len(data)` and `data[i] -> (image, class)`: torchvision's, or your own.

    build(from_dataset(CIFAR10("raw"), classes=...), "shards/cifar")

An image that lies in a file of its own (torchvision lists them in `samples`, `_image_files`, ...) passes through
untouched; pixels become PNG. Listing asks for every item once, for nothing else tells whether its pixels changed. The
dataset goes to the processes that write, so it has to be picklable; transforms do not belong in it.
"""

import inspect
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from shards.format.fields import read_classes
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.encoded import png
from shards.sources.notes import Notes
from shards.sources.source import Item, Refused, SourceOptions

_FILE_LISTS = ("samples", "_samples", "imgs", "_image_files", "_images")


class MapStyle(Protocol):
    """What PyTorch calls a map-style dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Dataset:
    """The items of a dataset object; `data[i]` is (image, class index)."""

    task = "classification"

    def __init__(self, data: MapStyle, classes: Sequence[str]):
        self.data, self.classes, self.ignored = data, tuple(classes), 0
        self.fields, self.notes = {"label": "cls"}, Notes()
        self.paths = _image_paths(data)

    def items(self) -> Iterator[Item]:
        """Every item; the key is its number."""
        for i in range(len(self.data)):
            image, label = self._item(i)
            pixels = np.asarray(image)
            path = self.paths[i] if self.paths else None
            stamp = files.measure(path)[1] if path else f"{pixels.shape}:{zlib.crc32(pixels.tobytes()):08x}"
            yield Item(f"{i:08d}", pixels.nbytes, stamp, label, {"i": i})

    def read(self, item: Item) -> dict[str, bytes]:
        """The file of an image, or its pixels as PNG; and its class."""
        if not 0 <= item.label < len(self.classes):
            raise Refused(f"its class is {item.label}, expected 0 to {len(self.classes) - 1}")
        label = {"cls": b"%d" % item.label}
        path = self.paths[item.payload["i"]] if self.paths else None
        if path and files.is_image(path):
            return {files.extension(path): files.read(Path(), path), **label}
        return {"png": png(self._item(item.payload["i"])[0]), **label}

    def _item(self, i: int) -> tuple[Image.Image | np.ndarray, int]:
        """An item, its type checked: what is wrong with the first is wrong with the dataset. Raises ConfigError."""
        value = self.data[i]
        pair = isinstance(value, (tuple, list)) and len(value) == 2
        image, label = value if pair else (value, None)
        if not isinstance(image, (Image.Image, np.ndarray)) or not isinstance(label, (int, np.integer)):
            what = f"({type(image).__name__}, {type(label).__name__})" if pair else type(value).__name__
            raise ConfigError(
                f"item {i} of {type(self.data).__name__} is {what}; expected (PIL image or uint8 array, class index), "
                f"without transforms"
            )
        return image, int(label)


def from_dataset(data: MapStyle, classes: Sequence[str] = ()) -> Dataset:
    """A source for `build`. `classes`: names by class index; those of the dataset (`data.classes`) if none are given.

    Raises ConfigError.
    """
    names = classes or getattr(data, "classes", ())
    # Some have several names for a class: torchvision's ImageNet gives tuples.
    names = [", ".join(name) if isinstance(name, (tuple, list)) else str(name) for name in names]
    faults = []
    if len(set(names)) < max(2, len(names)):
        faults.append(f"classes: {', '.join(names[:5]) or 'none'}; expected two names or more, all different")
    own = getattr(data, "classes", ())
    own = [", ".join(name) if isinstance(name, (tuple, list)) else str(name) for name in own]
    moved = [name for place, name in enumerate(names) if name in own and own.index(name) != place]
    if moved:
        faults.append(
            f"classes: {moved[0]!r} has number {own.index(moved[0])} in the dataset ({', '.join(own[:5])}); "
            f"expected its order, or other names"
        )
    set_transforms = [name for name in ("transform", "target_transform") if getattr(data, name, None) is not None]
    if set_transforms:
        faults.append(f"{type(data).__name__} has a {set_transforms[0]}; expected the images as they are")
    if faults:
        raise ConfigError(faults)
    return Dataset(data, names)


def open_torchvision(root: Path, options: SourceOptions) -> Dataset:
    """A dataset of torchvision by the name of its class; nothing is ever downloaded. Raises ConfigError."""
    from torchvision import datasets

    known = [name for name in datasets.__all__ if name not in ("DatasetFolder", "VisionDataset", "FakeData")]
    faults = []
    if options.dataset not in known:
        faults.append(f"--dataset: {options.dataset!r}; expected one of torchvision's: {', '.join(known)}")
    if not root.is_dir():
        faults.append(f"{root}: no such folder; expected the root of a dataset of torchvision")
    if faults:
        raise ConfigError(faults)
    assert options.dataset
    opened, parameters = getattr(datasets, options.dataset), {}
    accepted = inspect.signature(opened).parameters
    if options.part:
        parameters = _part(options.part, accepted, options.dataset)
    if "download" in accepted:
        parameters["download"] = False
    try:
        data = opened(str(root), **parameters)
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"{root}: torchvision cannot open {options.dataset} there: {error}") from None
    return from_dataset(data, read_classes(options.classes))


def _part(part: str, accepted: Mapping[str, Any], name: str) -> dict[str, Any]:
    if "split" in accepted:
        return {"split": part}
    if "train" in accepted and part in ("train", "test"):
        return {"train": part == "train"}
    has = "train or test" if "train" in accepted else "no parts"
    raise ConfigError(f"--part: {part!r}; torchvision's {name} has {has}")


def _image_paths(data: MapStyle) -> list[str] | None:
    """The file of each item, if the dataset lists them."""
    for name in _FILE_LISTS:
        listed = getattr(data, name, None)
        if isinstance(listed, (list, tuple)) and len(listed) == len(data) > 0:
            paths = [entry[0] if isinstance(entry, (list, tuple)) and entry else entry for entry in listed]
            if all(isinstance(path, (str, Path)) and os.path.isfile(path) for path in paths):
                return [str(path) for path in paths]
    return None
