"""Side inputs that stand in a table of their own: a row for each image, found by the image's name.

Class folders, VOC, COCO and masks have no place for the price or the sender of an image; a table beside them has. A row
belongs to the image whose path, without extension, is its key or ends with it: `cat/001`, or `001` where one image
alone is called so. One key for two rows, or two images for one row, is refused: a wrong guess would be silent.

The rows are in memory while the source is listed, about 1 KB each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from shards.format.manifest import canonical
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.notes import Notes
from shards.sources.rows import check_encoding, columns_of, read_rows
from shards.sources.source import Item, Refused, Source, SourceOptions
from shards.sources.table import IMAGE_COLUMNS, cell_text, find_column, side_value

KEYS = ("key", *IMAGE_COLUMNS, "id", "name")
_SHOWN = 3


class SideTable:
    """The side inputs of images by their names. `names`: of the columns that are kept."""

    def __init__(
        self,
        path: Path,
        key: str | None = None,
        names: tuple[str, ...] = (),
        encoding: str | None = None,
        option: str = "--side-table",
    ):
        """`key`: the column with the images' names, found by its usual ones if it is None; `names`: of the columns to
        keep, all others if there are none; `option`: by which the user names the table. Raises ConfigError with every
        fault.
        """
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "no such file"
            raise ConfigError(f"{option}: {path}: {what}; expected a .csv, .tsv or .jsonl")
        encoding = check_encoding(path, encoding)
        there, faults = columns_of(path, encoding), []
        listed = ", ".join(map(repr, there)) or "none"
        found = find_column("--image", "the images' names", key, KEYS, there, listed, faults)
        faults += [f"--side: no column {name!r}; there are {listed}" for name in names if name not in there]
        if faults:
            raise ConfigError([f"{option}: {path}: {fault}" for fault in faults])
        assert found
        self.path, self.option, self.key = path, option, found
        self.names = names or tuple(name for name in there if name != found)
        if not self.names:
            raise ConfigError(f"{option}: {path}: has no column beside {found!r}, so no side inputs")
        self._rows = self._read(encoding)
        self._images: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_found(self) -> int:
        """Rows whose image was asked for."""
        return len(self._images)

    @property
    def some_keys(self) -> str:
        """The first keys."""
        return ", ".join(list(self._rows)[:_SHOWN])

    def of(self, image: str) -> Mapping[str, Any] | None:
        """The side inputs of an image by its path, with `/` and without extension; None: no row is of it. Raises
        ConfigError if the row was another image's too.
        """
        parts = PurePosixPath(image).parts
        for start in range(len(parts)):
            key = "/".join(parts[start:])
            if key in self._rows:
                other = self._images.setdefault(key, image)
                if other != image:
                    raise ConfigError(
                        f"{self.option}: {self.path}: the row {key!r} is that of {other} and of {image}; name their "
                        f"folders in the column {self.key!r}"
                    )
                return self._rows[key]
        return None

    def _read(self, encoding: str | None) -> dict[str, dict[str, Any]]:
        typed = self.path.suffix.lower() == ".jsonl"
        rows: dict[str, dict[str, Any]] = {}
        lines: dict[str, int] = {}
        faults = []
        for line, row in read_rows(self.path, encoding):
            try:
                key = _key(cell_text(row.get(self.key)))
            except Refused as error:
                faults.append(f"line {line}: {error}")
                continue
            if not key:
                faults.append(f"line {line}: no name in column {self.key!r}")
            elif key in rows:
                faults.append(f"line {line}: {key!r} has a row already, in line {lines[key]}; leave one")
            else:
                values = {name: side_value(row.get(name), typed) for name in self.names}
                rows[key] = {name: value for name, value in values.items() if value is not None}
                lines[key] = line
        if faults:
            more = [f"and {len(faults) - _SHOWN} more such lines"] if len(faults) > _SHOWN else []
            raise ConfigError([f"{self.option}: {self.path}: {fault}" for fault in [*faults[:_SHOWN], *more]])
        if not rows:
            raise ConfigError(f"{self.option}: {self.path}: has no rows below its header")
        return rows


class WithSide:
    """A source, and side inputs of its samples. A sample without a row has none."""

    def __init__(self, source: Source, table: SideTable):
        self._source, self._table = source, table

    @property
    def task(self) -> str:
        """Of the source."""
        return self._source.task

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the source."""
        return self._source.classes

    @property
    def fields(self) -> dict[str, str]:
        """Those of the source, and the side inputs'."""
        return {**self._source.fields, "side": "json"}

    @property
    def ignored(self) -> int:
        """Of the source."""
        return self._source.ignored

    @property
    def notes(self) -> Notes:
        """Of the source; `items` adds what became of the table."""
        return self._source.notes

    def items(self) -> Iterator[Item]:
        """Every sample, its side inputs beside it."""
        without, total, example = 0, 0, ""
        table = self._table
        for item in self._source.items():
            row, total = table.of(item.key), total + 1
            if row is None:
                without, example = without + 1, example or item.key
            yield replace(item, payload={"item": item.payload, "image": item.origin, "side": dict(row or {})})
        if total and without == total:
            raise ConfigError(
                f"{table.option}: {table.path}: no row is of any image: its column {table.key!r} has "
                f"{table.some_keys}, images are called {example}; say which column has their names with --image"
            )
        for what, one, count in (
            (f"images with side inputs {', '.join(table.names)}", "", total - without),
            (f"images without a row in {table.path.name}, which have no side inputs", example, without),
            (f"rows of {table.path.name} without an image", "", len(table) - table.num_found),
        ):
            if count:
                self.notes.tell(what, one, count)

    def read(self, item: Item) -> dict[str, bytes]:
        """What the source has of it, and its side inputs."""
        inner = replace(item, payload=item.payload["item"])
        return {**self._source.read(inner), "json": canonical(item.payload["side"])}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_table": None}  # every item has its row: processes that read need no table


def with_side(source: Source, kind: str, options: SourceOptions) -> Source:
    """A source with the side inputs of the table that `options` names, if they do. Raises ConfigError."""
    if options.side_table is None:
        return source
    if "side" in source.fields:
        raise ConfigError(f"--side-table: this source of kind {kind!r} has side inputs of its own")
    return WithSide(source, SideTable(options.side_table, options.image, options.side, options.encoding))


def _key(text: str) -> str:
    name = text.replace("\\", "/").removeprefix("./")
    return files.stem(name) if name and files.is_image(name) else name
