"""Images that a table names: one row (csv, tsv, jsonl) for each, with a class, side inputs, or both.

The columns of image and class are found by their usual names unless they are given. File names count from `--images`,
or else from the table's folder. A name without an image's extension is looked for under each of them, then in the
folders below; only this last search keeps names in memory, about 300 bytes an image. Classes that are not given are
found in a pass of their own. A row that cannot be used is refused with its line; a table that does not fit its own
header is refused as a whole.
"""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.format.fields import IMAGES, MOST_CLASSES, number_labels, read_classes
from shards.format.manifest import canonical
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.notes import Notes
from shards.sources.rows import TABLES, check_encoding, columns_of, read_rows
from shards.sources.source import Item, Refused, SourceOptions

IMAGE_COLUMNS = (
    "image",
    "file_name",
    "filename",
    "file",
    "image_path",
    "filepath",
    "file_path",
    "path",
    "img",
    "image_id",
)
_LABEL = ("label", "labels", "class", "category", "cls", "class_name", "target")
# As JSON spells a number: 007 and 1_000 are texts, perhaps names of something.
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Columns:
    """The columns in use."""

    image: str
    label: str | None
    side: tuple[str, ...]


class Table:
    """The rows of one table."""

    def __init__(
        self,
        path: Path,
        images: Path,
        columns: Columns,
        classes: tuple[str, ...],
        encoding: str | None = None,
        left_out: tuple[str, ...] = (),
    ):
        self.path, self.images, self.columns, self.classes, self.ignored = path, images, columns, classes, 0
        self.encoding, self._given, self._find_image = encoding, classes, files.Finder(images)
        self._left_out = left_out
        self.task, self.notes = "classification" if columns.label else "captioning", Notes()
        roles = {"label": columns.label and "cls", "side": columns.side and "json"}
        self.fields = {role: extension for role, extension in roles.items() if extension}
        self._places: dict[str, int] = {}
        self._typed = path.suffix.lower() == ".jsonl"

    def items(self) -> Iterator[Item]:
        """Every row."""
        self.notes = Notes()
        if self.columns.label:
            self._number(self.columns.label)
        for column in self._left_out:
            self.notes.tell("columns left out", column)
        if self.encoding:
            self.notes.tell(f"tables read as {self.encoding}", self.path.name)
        stems: dict[str, str] = {}
        for line, row in read_rows(self.path, self.encoding):
            try:
                image = self._find(cell_text(row.get(self.columns.image)), stems)
                key = files.stem(image)
            except Refused as error:
                yield Item(f"line {line}", 0, "", payload={"refused": f"line {line}: {error}"})
                continue
            size, stamp = files.measure(self.images / image)
            side = {name: side_value(row.get(name), self._typed) for name in self.columns.side}
            payload = {"image": image, "side": {name: value for name, value in side.items() if value is not None}}
            label = -1
            try:
                label = self._label(row)
            except Refused as error:
                payload["refused"] = f"line {line}: {error}"
            yield Item(key, size, stamp, label, payload)

    def read(self, item: Item) -> dict[str, bytes]:
        """The image, its class, its side inputs."""
        if "refused" in item.payload:
            raise Refused(item.payload["refused"])
        image = item.payload["image"]
        members = {files.extension(image): files.read(self.images, image)}
        if self.columns.label:
            members["cls"] = b"%d" % item.label
        if self.columns.side:
            members["json"] = canonical(item.payload["side"])
        return members

    def _number(self, column: str) -> None:
        """Finds the classes and which label is which."""
        texts: set[str] = set()
        for _, row in read_rows(self.path, self.encoding):
            cell = row.get(column)
            with suppress(Refused):  # said when its row is read
                texts.add(cell_text(cell))
            if isinstance(cell, bool):
                self.notes.tell("labels that are true or false: read as the names 'true' and 'false'")
            elif isinstance(cell, str) and cell.strip() and cell.strip() != cell:
                self.notes.tell("labels with spaces around them, which were left out", repr(cell))
            if len(texts) > MOST_CLASSES + 1 and not self._given:
                break
        texts -= {""}
        where = f"{self.path}, column {column!r}"
        if not texts and not self._given:
            raise ConfigError(f"{self.path}: column {column!r} is empty; expected a class in each row")
        numbering = number_labels(texts, self._given, where, strict=False)
        self.classes, self._places = numbering.classes, numbering.places
        for note in numbering.notes:
            self.notes.tell(note, count=0)

    def _label(self, row: dict[str, Any]) -> int:
        if not self.columns.label:
            return -1
        text = cell_text(row.get(self.columns.label))
        if not text:
            raise Refused(f"no class in column {self.columns.label!r}")
        if text not in self._places:
            raise Refused(f"its class {text[:60]!r} is none of the {len(self.classes)} known")
        return self._places[text]

    def _find(self, name: str, stems: dict[str, str]) -> str:
        """The image's path below the folder of images; `stems` is filled when it is first needed. Raises Refused."""
        if not name:
            raise Refused(f"no file name in column {self.columns.image!r}")
        inside = files.relative(name, self.images)
        if files.is_image(inside):
            return inside
        if files.extension(inside) in files.UNREAD:
            kind = files.UNREAD[files.extension(inside)]
            raise Refused(f"{inside!r} is an image of format {kind}, which is not read; expected {', '.join(IMAGES)}")
        found = self._find_image(inside)
        if found:
            return found
        if not stems:
            stems.update(_by_stem(self.images))
        if inside not in stems:
            raise Refused(f"no image {inside!r} in {self.images} or below")
        if not stems[inside]:
            raise Refused(f"several images {inside!r} below {self.images}; name its folder in the table")
        return stems[inside]


def open_table(path: Path, options: SourceOptions) -> Table:
    """Finds the table and its columns. Raises ConfigError with every fault."""
    table = _the_table(path)
    images = options.images or table.parent
    encoding = check_encoding(table, options.encoding)
    there = columns_of(table, encoding)
    faults = [] if images.is_dir() else [f"--images: {images}: no such folder"]
    listed = ", ".join(map(repr, there)) or "none"
    image = find_column("--image", "the file names", options.image, IMAGE_COLUMNS, there, listed, faults)
    label = None
    if options.label or not options.side or _known(_LABEL, there):
        label = find_column("--label", "the classes", options.label, _LABEL, there, listed, faults)
    faults += [f"--side: no column {name!r}; there are {listed}" for name in options.side if name not in there]
    if faults:
        raise ConfigError([f"{table}: {fault}" for fault in faults])
    assert image
    given = read_classes(options.classes) if label else ()
    columns = Columns(image, label, options.side)
    left_out = tuple(name for name in there if name not in (image, label, *options.side))
    return Table(table, images, columns, given, encoding, left_out)


def is_table(path: Path) -> bool:
    """A table, or a folder that has one where class folders would not have it."""
    if not path.is_dir():
        return path.suffix.lower() in TABLES
    tables = _tables(path)
    named = [table for table in tables if table.stem == "metadata"]
    return bool(named) or (len(tables) == 1 and sum(entry.is_dir() for entry in path.iterdir()) < 2)


def _the_table(path: Path) -> Path:
    if not path.is_dir():
        if path.suffix.lower() not in TABLES or not path.is_file():
            raise ConfigError(f"{path}: no such table; expected a file ending in {', '.join(TABLES)}")
        return path
    tables = _tables(path)
    named = [table for table in tables if table.stem == "metadata"] or tables
    if len(named) == 1:
        return named[0]
    found = files.some([table.name for table in tables]) or "none"
    raise ConfigError(f"{path}: expected exactly one table ({', '.join(TABLES)}) in it, found {found}; name the file")


def _tables(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in TABLES and path.is_file())


def _known(names: Sequence[str], there: Sequence[str]) -> str | None:
    lower = {column.lower(): column for column in reversed(there)}
    return next((lower[name] for name in names if name in lower), None)


def find_column(
    option: str,
    what: str,
    given: str | None,
    names: Sequence[str],
    there: Sequence[str],
    listed: str,
    faults: list[str],
) -> str | None:
    """The column that is `given`, or is called by one of `names`, among those that are `there`; what is wrong with it
    goes to `faults`.
    """
    found = given or _known(names, there)
    if given and given not in there:
        faults.append(f"{option}: no column {given!r}; there are {listed}")
    elif not found:
        faults.append(f"no column with {what} found ({', '.join(names)}); there are {listed}; say which with {option}")
    return found


def cell_text(value: Any) -> str:
    """A cell as text; a JSON list or object is none. Raises Refused."""
    if isinstance(value, (list, dict)):
        raise Refused(f"it has {canonical(value)[:60].decode()} where a text is expected")
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value).strip()


def side_value(cell: Any, typed: bool) -> Any:
    """A side input; None where there is nothing. A cell of a csv, all text, is a number where it reads as one."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if not typed and isinstance(cell, str) and len(cell) < 32 and _NUMBER.fullmatch(cell):
        number = float(cell) if any(mark in cell for mark in ".eE") else int(cell)
        return number if math.isfinite(number) else cell
    return None if cell == "" else cell


def _by_stem(folder: Path) -> dict[str, str]:
    """File name without extension -> path of the image below `folder`; empty where there are several."""
    stems: dict[str, str] = {}
    for entry in files.walk(folder):
        if files.is_image(entry.name):
            path = Path(entry.path).relative_to(folder).as_posix()
            name = files.stem(entry.name)
            stems[name] = "" if name in stems else path
    return stems
