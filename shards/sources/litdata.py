"""Folders that litData's `optimize` wrote, read without it.

    index.json      {"chunks": [{"filename", "chunk_size", ...}], "config": {"data_format", "data_spec", ...}}
    chunk-0-0.bin   uint32 n, uint32 [n + 1] where each item begins, then the items:
                    uint32 [leaves] sizes, then the leaves one after the other

Checked against litData 0.2.76. Pickled leaves are never read: they are passed over, and refused by name where the image
or the class would be one.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from shards.format.fields import number_labels, read_classes
from shards.format.manifest import canonical
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.encoded import image_extension, png
from shards.sources.notes import Notes
from shards.sources.source import Item, Refused, SourceOptions

_IMAGES, _LABELS, _SIDES = (
    ("jpeg", "image", "pil", "bytes", "file"),
    ("int", "str", "text"),
    ("int", "float", "str", "text"),
)
_LABEL_NAMES = ("label", "labels", "class", "cls", "category", "target", "1")
_LARGEST_LABEL = 4096


@dataclass(frozen=True)
class Leaf:
    """A part of each item: its name, place, and the name of its serialiser."""

    name: str
    place: int
    kind: str


class LitData:
    """The items of `chunks`, (file name, items) each."""

    task = "classification"

    def __init__(
        self,
        root: Path,
        chunks: tuple[tuple[str, int], ...],
        num_leaves: int,
        image: Leaf,
        label: Leaf,
        side: tuple[Leaf, ...],
        given: tuple[str, ...],
    ):
        self.root, self.chunks, self.num_leaves, self.ignored = root, chunks, num_leaves, 0
        self.notes = Notes()
        self.image, self.label, self.side = image, label, side
        self.fields = {"label": "cls", **({"side": "json"} if side else {})}
        texts = sorted({text for chunk in chunks for *_, text in self._walk(*chunk) if text is not None})
        if not texts:
            raise ConfigError(f"{root}: no item has a class")
        self.numbering = number_labels(texts, given, f"{root}, {label.name}", numeric=label.kind == "int")
        self.classes = self.numbering.classes

    def items(self) -> Iterator[Item]:
        """Every item; the key is chunk and place."""
        self.notes = Notes()
        for note in self.numbering.notes:
            self.notes.tell(note, count=0)
        for name, count in self.chunks:
            stamp = files.measure(self.root / name)[1]
            for number, (start, end, text) in enumerate(self._walk(name, count)):
                label = -1 if text is None else self.numbering.places[text]
                payload = {"chunk": name, "start": start, "end": end}
                yield Item(f"{files.stem(name)}/{number:07d}", end - start, f"{stamp}:{number}", label, payload)

    def read(self, item: Item) -> dict[str, bytes]:
        """The image, class and side inputs of an item."""
        if item.label < 0:
            raise Refused(f"its {self.label.name} is no class")
        with open(self.root / item.payload["chunk"], "rb") as file:
            leaves = self._leaves(file, item.payload["start"], item.payload["end"])
            image = _image(_part(file, leaves[self.image.place]), self.image.kind)
            side = {leaf.name: _value(_part(file, leaves[leaf.place]), leaf.kind) for leaf in self.side}
        return {**image, "cls": b"%d" % item.label, **({"json": canonical(side)} if side else {})}

    def _walk(self, name: str, count: int) -> Iterator[tuple[int, int, str | None]]:
        """(first byte, end, class as text) of each item of a chunk. Raises ConfigError."""
        path = self.root / name
        try:
            with open(path, "rb") as file:
                size = path.stat().st_size
                head = file.read(4)
                if len(head) < 4 or struct.unpack("<I", head)[0] != count or size < 4 * (count + 2):
                    raise ConfigError(f"{path}: does not hold the {count:,} items that index.json tells of")
                starts = struct.unpack(f"<{count + 1}I", file.read(4 * (count + 1)))
                for start, end in pairwise(starts):
                    if not 4 * (count + 2) <= start <= end <= size:
                        raise ConfigError(f"{path}: cut or damaged: an item from byte {start:,} to {end:,} of {size:,}")
                    yield start, end, self._text(file, start, end)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from None

    def _text(self, file: BinaryIO, start: int, end: int) -> str | None:
        """The class of an item as text; None if there is none to read."""
        try:
            first, last = self._leaves(file, start, end)[self.label.place]
            if last - first > _LARGEST_LABEL:
                return None
            text = str(_value(_part(file, (first, last)), self.label.kind)).strip()
        except Refused:
            return None
        unknown = self.label.kind == "int" and text.startswith("-")
        return text if text and text.isprintable() and not unknown else None

    def _leaves(self, file: BinaryIO, start: int, end: int) -> list[tuple[int, int]]:
        """First byte and end of each leaf of an item. Raises Refused."""
        file.seek(start)
        head = file.read(min(4 * self.num_leaves, end - start))
        if len(head) < 4 * self.num_leaves:
            raise Refused("its item is cut short")
        places, at = [], start + len(head)
        for size in struct.unpack(f"<{self.num_leaves}I", head):
            places.append((at, at + size))
            at += size
        if at != end:
            raise Refused("the sizes of its parts do not add up")
        return places


def open_litdata(root: Path, options: SourceOptions) -> LitData:
    """Raises ConfigError with every fault."""
    try:
        content = json.loads((root / "index.json").read_bytes())
        chunks, config = content["chunks"], content["config"]
        leaves = _named_leaves(config["data_spec"], config["data_format"])
        listed = tuple((str(chunk["filename"]), int(chunk["chunk_size"])) for chunk in chunks)
    except OSError as error:
        raise ConfigError(f"{root / 'index.json'}: {error.strerror}; expected a folder written by litData") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(f"{root / 'index.json'}: not the index of litData chunks: {error!r}") from None
    faults = [
        f"{root}: its chunks are not plain: {key} {config[key]!r}; optimize it again without"
        for key in ("compression", "encryption")
        if config.get(key)
    ]
    if config.get("item_loader") not in (None, "PyTreeLoader"):
        faults.append(f"{root}: written for {config['item_loader']}; expected items of an image and a class")
    faults += [f"{root / 'index.json'}: {name!r} is no file beside it" for name, _ in listed if Path(name).name != name]
    faults += [f"{root / 'index.json'}: {name} holds {count} items" for name, count in listed if count < 0]
    image = _choose(leaves, options.image, _IMAGES, None, "--image", faults)
    label = _choose(leaves, options.label, _LABELS, _LABEL_NAMES, "--label", faults)
    side = [_choose(leaves, name, _SIDES, None, "--side", faults) for name in options.side]
    if faults:
        raise ConfigError(faults)
    assert image
    assert label
    return LitData(
        root, listed, len(leaves), image, label, tuple(leaf for leaf in side if leaf), read_classes(options.classes)
    )


def _named_leaves(spec: str, kinds: list[str]) -> list[Leaf]:
    """The leaves' names by PyTorch's tree spec: `image`, or `meta.label` deeper in it."""
    _, tree = json.loads(spec)
    names = list(_names(tree, ""))
    if len(names) != len(kinds):
        raise ValueError(f"{len(names)} names for {len(kinds)} parts")
    return [Leaf(name, place, str(kind)) for place, (name, kind) in enumerate(zip(names, kinds, strict=True))]


def _names(tree: dict[str, Any], path: str) -> Iterator[str]:
    children = tree.get("children_spec") or []
    if not children and tree.get("type") is None:
        yield path or "0"
        return
    context = tree.get("context")
    keys = json.loads(context) if isinstance(context, str) else context
    for place, child in enumerate(children):
        key = keys[place] if isinstance(keys, list) and place < len(keys) else place
        yield from _names(child, f"{path}.{key}" if path else str(key))


def _choose(
    leaves: list[Leaf],
    given: str | None,
    kinds: tuple[str, ...],
    names: tuple[str, ...] | None,
    option: str,
    faults: list[str],
) -> Leaf | None:
    """The part that is named, or the only one it can be; `names`: the likeliest first."""
    there = ", ".join(f"{leaf.name} ({leaf.kind})" for leaf in leaves)
    fitting = [leaf for leaf in leaves if leaf.kind.partition(":")[0] in kinds]
    found = [leaf for leaf in leaves if leaf.name == given] if given else fitting
    found = found or [leaf for leaf in leaves if names and not given and leaf.name in names]
    if not given and names and len(found) > 1:
        found = [leaf for name in names for leaf in found if leaf.name == name][:1] or found
    if len(found) == 1 and found[0] in fitting:
        return found[0]
    if found and found[0] not in fitting:
        why = "pickled, and reading it can run any code" if "pickle" in found[0].kind else f"stored as {found[0].kind}"
        faults.append(f"{option}: {found[0].name} is {why}; expected {', '.join(kinds)}; there are {there}")
    else:
        faults.append(f"{option}: {'several' if found else 'none'} to choose from; there are {there}; say which")
    return None


def _part(file: BinaryIO, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    return file.read(place[1] - place[0])


def _value(data: bytes, kind: str) -> int | float | str:
    """A number or text as litData stores it. Raises Refused."""
    try:
        match kind:
            case "int":
                return struct.unpack("<q", data)[0]
            case "float":
                return struct.unpack("<d", data)[0]
        return data.decode()
    except (struct.error, UnicodeDecodeError):
        raise Refused(f"{data[:20]!r} is no {kind}") from None


def _image(data: bytes, kind: str) -> dict[str, bytes]:
    """An encoded image as it is; raw pixels as PNG. Raises Refused."""
    if kind != "pil":
        return {image_extension(data): data}
    try:
        width, height, length = struct.unpack("<3I", data[:12])
        mode = data[12 : 12 + length].decode()
        if width * height > 8 * len(data):
            raise ValueError(f"{width} x {height} pixels in {len(data):,} bytes")
        return {"png": png(Image.frombytes(mode, (width, height), data[12 + length :]))}
    except (struct.error, ValueError, MemoryError) as error:
        raise Refused(f"its pixels cannot be read: {error}") from None
