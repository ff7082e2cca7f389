"""What a source is: it lists its samples, then gives their bytes one by one.

Listing is cheap (names, sizes, labels; no image is opened) and streamed: nobody ever holds all items, so ten million
cost no more memory than ten thousand. Bytes are read later, by the process that writes them into a shard; for that a
source must be picklable. `task`, `classes`, `fields`, `ignored` and the `notes` of listing are final once `items` has
run to its end.

What makes the whole source unusable is a `ConfigError`, from the function that opens it or from `items`, with every
fault. What makes one sample unusable is `Refused`, from `read`: the build goes on and reports it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from shards.sources.notes import Notes

TASKS = ("classification", "detection", "segmentation", "captioning")


class Refused(Exception):
    """Why a sample is left out, for a person who has to fix it."""


@dataclass(frozen=True)
class Item:
    """One sample to be.

    `size` estimates the bytes of all members; `stamp` changes when the content does; `payload` is what `read` needs,
    as JSON: file names in it are relative, so that a folder can be moved and its build goes on.
    """

    key: str
    size: int
    stamp: str
    label: int = -1
    payload: dict[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Where the sample is in the source, for a message about it."""
        return str(self.payload.get("image", self.payload))


class Source(Protocol):
    """Samples of one task. `fields` names the extension of each role besides the image: {"label": "cls"}."""

    @property
    def task(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def fields(self) -> dict[str, str]: ...
    @property
    def ignored(self) -> int:
        """Files that are no samples and were passed over."""
        ...

    @property
    def notes(self) -> Notes:
        """What was left out, or read otherwise than it stands there; `items` begins anew, `read` adds to them."""
        ...

    def items(self) -> Iterator[Item]:
        """Every sample, in any order; can be called again. Raises ConfigError, at the latest at the end."""
        ...

    def read(self, item: Item) -> dict[str, bytes]:
        """Members by extension: exactly one image, untouched, and those that `fields` names. Raises Refused."""
        ...


@dataclass(frozen=True)
class SourceOptions:
    """What can be said about a source. A kind that does not use an option refuses it.

    Parameters
    ----------
    kind
        What SOURCE is; found out from how it looks if not given.
    images
        Folder that file names in a table or in annotations start from; the folder of SOURCE if not given.
    image
        Column with the image.
    label
        Column with the class.
    side
        Columns kept as side inputs (`--side age,text`): numbers stay numbers, everything else is text.
    side_table
        A table of side inputs (.csv, .tsv, .jsonl) for a SOURCE that has none, a row for each image by its name:
        column --image, or one called so; kept are the columns of --side, or all others.
    masks
        Folder of masks, one for each image, with the same name.
    void
        Class index in the masks that means "no class"; it is stored as 255.
    values
        Pixel values of the classes in the masks, in the order of the classes, where they are not 0, 1, 2, ...
        (`--values 0,255`).
    classes
        Class names in order (`--classes cat,dog`), or a file with one name a line.
    list
        Only the samples named in this list of `ImageSets/` (`--list train`), or in this file.
    task
        What COCO's annotations become: `detection`, boxes, if not given; `segmentation`, a mask of classes from the
        outlines, polygons or run lengths; what no object covers is `background`.
    captions
        COCO captions (json) of the same images.
    bad_boxes
        What becomes of an image with an empty box or one outside of it: `refuse` the image, or `drop` the box.
    encoding
        How a table's text is encoded (`--encoding latin-1`), if not as UTF-8.
    frame
        Whether boxes and masks were drawn on images as they are `stored`, or `upright`, as their EXIF tags turn them;
        found out from the sizes that annotations name if not given.
    part
        Which part of SOURCE, where it has several (`--part train`).
    dataset
        Name of the class in torchvision.datasets (`--dataset CIFAR10`).
    """

    kind: str | None = None
    images: Path | None = None
    image: str | None = None
    label: str | None = None
    side: tuple[str, ...] = ()
    side_table: Path | None = None
    masks: Path | None = None
    void: int | None = None
    values: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    list: str | None = None
    task: str | None = None
    captions: Path | None = None
    bad_boxes: str | None = None
    encoding: str | None = None
    frame: str | None = None
    part: str | None = None
    dataset: str | None = None

    def given(self) -> dict[str, Any]:
        """The options that were set, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def flag(name: str) -> str:
    """An option as it is written on the command line."""
    return "--" + name.replace("_", "-")
