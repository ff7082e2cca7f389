"""Rows of columnar files: Parquet, and Arrow as Hugging Face's `save_to_disk` leaves it.

Files hold their rows in blocks (row groups, record batches). Listing reads the column of classes alone; reading a row
decodes its block, and the last blocks are kept: samples are read in shuffled order. Arrow files are memory-mapped and
blocks cost nothing. A Parquet block is decompressed whole for each row that is not in the kept ones: with 100 images a
block, as Hugging Face writes them, a few times the cost of decoding the image. Blocks too large to keep are refused.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.format.fields import read_classes
from shards.settings import ConfigError
from shards.sources import files
from shards.sources.columns import Columns, find_columns, image_member, numbering_of, side_member
from shards.sources.notes import Notes
from shards.sources.parts import choose
from shards.sources.source import Item, Refused, SourceOptions

_KEPT_BYTES = 512_000_000
_OPEN_FILES = 16


@dataclass(frozen=True)
class Format:
    """How files of one format are read: `blocks`, (rows, bytes) of each, about; `load`, one of them."""

    open: Callable[[Path], Any]
    blocks: Callable[[Any, str], list[tuple[int, int]]]
    load: Callable[[Any, int, list[str]], pa.Table]


class Columnar:
    """The rows of `names`, files below `root`."""

    def __init__(self, root: Path, names: tuple[str, ...], form: str, columns: Columns, given: tuple[str, ...]):
        self.root, self.names, self.form, self.columns, self.ignored = root, names, form, columns, 0
        self.task = "classification" if columns.label else "captioning"
        self.fields, self.classes, self.notes = columns.fields, (), Notes()
        self._forget()
        if columns.label:
            texts = {text for name in names for block in self._labels(name) for text in block if text is not None}
            self.given, self.numbering = given, numbering_of(texts, columns, given, str(root))
            self.classes = self.numbering.classes

    def _forget(self) -> None:
        self._files: OrderedDict[str, Any] = OrderedDict()
        self._blocks: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()
        self._kept = 0

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in ("_files", "_blocks", "_kept")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def items(self) -> Iterator[Item]:
        """Every row; the key is file and row."""
        self.notes = Notes()
        for column in self.columns.left_out:
            self.notes.tell("columns left out", column)
        for note in self.numbering.notes if self.columns.label else ():
            self.notes.tell(note, count=0)
        for name in self.names:
            stamp, first = files.measure(self.root / name)[1], 0
            labels = self._labels(name) if self.columns.label else None
            for number, (rows, size) in enumerate(self._opened(name, FORMATS[self.form].blocks, self.columns.image)):
                texts = next(labels) if labels else [None] * rows
                for row, text in enumerate(texts):
                    label = -1 if text is None else self.numbering.places.get(text, -1)
                    payload = {"file": name, "block": number, "row": row}
                    if text is not None and label < 0:
                        payload["refused"] = f"it has no class (column {self.columns.label} is {text})"
                    if text is not None and self._spelled:
                        self.notes.tell(self._spelled)
                    key = f"{files.stem(name)}/{first + row:07d}"
                    yield Item(key, size // max(rows, 1), f"{stamp}:{first + row}", label, payload)
                first += rows

    def read(self, item: Item) -> dict[str, bytes]:
        """The image of a row, its class and its side inputs."""
        if "refused" in item.payload:
            raise Refused(item.payload["refused"])
        if self.columns.label and item.label < 0:
            raise Refused(f"it has no class (column {self.columns.label} is empty)")
        block = self._block(item.payload["file"], item.payload["block"])
        try:
            row = block.slice(item.payload["row"], 1).to_pylist()[0]
        except (pa.ArrowException, ValueError) as error:  # ValueError: texts that are no UTF-8
            raise Refused(f"its row cannot be read: {error}") from None
        side = {name: row[name] for name in self.columns.side}
        label = {"cls": b"%d" % item.label} if self.columns.label else {}
        return {**image_member(row[self.columns.image]), **label, **side_member(side)}

    def _labels(self, name: str) -> Iterator[list[str | None]]:
        """The classes of a file's rows as texts, block by block; None where there is none."""
        form, label = FORMATS[self.form], self.columns.label
        assert label
        blocks = self._opened(name, form.blocks, self.columns.image)
        for number in range(len(blocks)):
            yield self._opened(name, lambda file, n=number: _texts(form.load(file, n, [label]), label))

    @property
    def _spelled(self) -> str:
        """What becomes of labels that are neither whole numbers nor texts, for a note."""
        kind = self.columns.kind
        if kind is not None and pa.types.is_boolean(kind):
            return "labels that are true or false: read as the names 'true' and 'false'"
        floats = kind is not None and pa.types.is_floating(kind)
        return "labels that are whole numbers written as floating ones (1.0): read as whole ones" if floats else ""

    def _block(self, name: str, number: int) -> pa.Table:
        """A block's columns in use. The last ones are kept, up to `_KEPT_BYTES`."""
        place = name, number
        if place not in self._blocks:
            try:
                wanted = [self.columns.image, *self.columns.side]
                self._blocks[place] = self._opened(name, FORMATS[self.form].load, number, wanted)
            except ConfigError as error:
                raise Refused(str(error)) from None
            self._kept += self._blocks[place].nbytes
            while len(self._blocks) > 1 and self._kept > _KEPT_BYTES:
                self._kept -= self._blocks.popitem(last=False)[1].nbytes
        self._blocks.move_to_end(place)
        return self._blocks[place]

    def _opened(self, name: str, ask: Callable, *arguments: Any) -> Any:
        """`ask(file, *arguments)` of a file that stays open. Raises ConfigError."""
        try:
            if name not in self._files:
                if len(self._files) >= _OPEN_FILES:
                    self._files.popitem(last=False)
                self._files[name] = FORMATS[self.form].open(self.root / name)
            return ask(self._files[name], *arguments)
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            raise ConfigError(f"{self.root / name}: cannot be read: {error}") from None


def open_parquet(path: Path, options: SourceOptions) -> Columnar:
    """One Parquet file, or all of a part below a folder. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder; expected a .parquet file, or a folder of them")
    root = path if path.is_dir() else path.parent
    paths = sorted(Path(entry.path) for entry in files.walk(path)) if path.is_dir() else [path]
    paths = [one for one in paths if one.suffix == ".parquet" or one == path]
    if not paths:
        raise ConfigError(f"{path}: holds no .parquet files")
    names = tuple(str(one.relative_to(root)) for one in choose(paths, options.part, root))
    try:
        schema = pq.read_schema(root / names[0])
        features = _features((schema.metadata or {}).get(b"huggingface", b"{}"))
        columns = find_columns(schema, features, options, names[0])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{root / names[0]}: not a Parquet file: {error}") from None
    return Columnar(root, names, "parquet", columns, read_classes(options.classes))


def open_saved(path: Path, options: SourceOptions) -> Columnar:
    """What Hugging Face's `Dataset.save_to_disk` or `DatasetDict.save_to_disk` left. Raises ConfigError."""
    parts = _json(path / "dataset_dict.json").get("splits")
    if isinstance(parts, list):
        if options.part not in parts:
            said = f"{options.part!r} is none of them" if options.part else "say which with --part"
            raise ConfigError(f"--part: {path} has {', '.join(map(str, parts))}; {said}")
        path = path / str(options.part)
    elif options.part:
        raise ConfigError(f"--part: {options.part!r}; {path} is one part alone")
    listed = _json(path / "state.json").get("_data_files")
    names = [str(part.get("filename")) for part in listed if isinstance(part, dict)] if isinstance(listed, list) else []
    if not names:
        raise ConfigError(f"{path}: no state.json that names data files; save the dataset again with save_to_disk")
    outside = [name for name in names if Path(name).name != name]
    missing = [str(path / name) for name in names if name not in outside and not os.path.isfile(path / name)]
    if outside or missing:
        faults = [f"{path}/state.json: {name!r} is no file in it" for name in outside]
        raise ConfigError(faults + [f"{name}: missing" for name in missing])
    try:
        with pa.memory_map(str(path / names[0])) as file:
            schema = pa.ipc.open_stream(file).schema
            features = _json(path / "dataset_info.json").get("features")
            columns = find_columns(schema, features if isinstance(features, dict) else {}, options, names[0])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{path / names[0]}: not an Arrow stream: {error}") from None
    return Columnar(path, tuple(names), "arrow", columns, read_classes(options.classes))


def _features(metadata: bytes) -> dict[str, Any]:
    """Hugging Face's description of the columns, in the schema of its Parquet files."""
    try:
        content = json.loads(metadata)
        return content["info"]["features"] if isinstance(content["info"]["features"], dict) else {}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def _row_groups(file: pq.ParquetFile, image: str) -> list[tuple[int, int]]:
    # Not `.column(n)` of a group, which could tell the image apart: on damage it ends the process (pyarrow 26).
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    if any(group.total_byte_size > _KEPT_BYTES for group in groups):
        raise ValueError(
            f"its row groups hold up to {max(group.total_byte_size for group in groups) / 1e6:,.0f} MB, more than the "
            f"{_KEPT_BYTES / 1e6:,.0f} MB that are kept for reading in shuffled order; write it again with "
            "pyarrow.parquet.write_table(..., row_group_size=100)"
        )
    return [(group.num_rows, group.total_byte_size) for group in groups]


def _texts(table: pa.Table, column: str) -> list[str | None]:
    """The labels as texts; floating numbers have to be whole ones, and NaN is none. Raises ValueError."""
    labels = table.column(column)
    if pa.types.is_floating(labels.type):
        values = labels.to_pylist()
        odd = [value for value in values if value is not None and value == value and not float(value).is_integer()]
        if odd:
            raise ConfigError(
                f"--label: column {column} holds {labels.type}; expected whole numbers or texts, found {odd[0]}"
            )
        return [None if value is None or value != value else str(int(value)) for value in values]
    return pc.cast(labels, pa.string()).to_pylist()


def _load_row_group(file: pq.ParquetFile, number: int, columns: list[str]) -> pa.Table:
    table = file.read_row_group(number, columns=columns)
    return table.select(columns)


def _mapped(path: Path) -> list[pa.RecordBatch]:
    return list(pa.ipc.open_stream(pa.memory_map(str(path))))


def _batches(file: list[pa.RecordBatch], image: str) -> list[tuple[int, int]]:
    return [(batch.num_rows, batch.column(image).nbytes) for batch in file]


def _load_batch(file: list[pa.RecordBatch], number: int, columns: list[str]) -> pa.Table:
    batch = file[number].select(columns)
    batch.validate(full=True)  # offsets that lead out of the mapped file would end the process
    return pa.Table.from_batches([batch])


FORMATS = {
    "parquet": Format(partial(pq.ParquetFile, memory_map=True), _row_groups, _load_row_group),
    "arrow": Format(_mapped, _batches, _load_batch),
}
