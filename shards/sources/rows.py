"""The rows of a csv, tsv or jsonl file, one at a time, each with its line number.

A row that does not fit its table makes the whole table doubtful (a comma too many shifts every column after it), so it
is a ConfigError with its line, the first few such lines at once. Costs about 2 us a row, and no memory.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shards.settings import ConfigError

TABLES = (".csv", ".tsv", ".jsonl")
_SHOWN = 5
_PROBED = 100
_DELIMITERS = ",;\t"

Row = tuple[int, dict[str, Any] | str]


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and column -> value of each row: texts in csv, JSON values in jsonl. Raises ConfigError."""
    faults: list[str] = []
    for line, row in _jsonl(_lines(path)) if path.suffix.lower() == ".jsonl" else _csv(path):
        if isinstance(row, dict):
            yield line, row
            continue
        faults.append(f"{path}, line {line}: {row}")
        if len(faults) == _SHOWN:
            break
    if faults:
        raise ConfigError(faults)


def columns_of(path: Path) -> list[str]:
    """The names of a table's columns; of jsonl, those that the first rows have. Raises ConfigError."""
    try:
        if path.suffix.lower() != ".jsonl":
            return _header(path)[0]
        rows = (row for _, (_, row) in zip(range(_PROBED), read_rows(path), strict=False))
        return list(dict.fromkeys(name for row in rows for name in row))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise ConfigError(f"{path}, line {number}: not UTF-8; save the table as UTF-8") from None


def _jsonl(lines: Iterable[str]) -> Iterator[Row]:
    """A text instead of a row is what is wrong with it."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = f"not JSON: {error}"
        if isinstance(row, (dict, str)):
            yield number, row
        else:
            yield number, f"expected a JSON object, found {line.strip()[:40]}"


def _header(path: Path) -> tuple[list[str], str]:
    """Column names and delimiter of a csv file."""
    first = next(_lines(path), "")
    delimiter = max(_DELIMITERS, key=first.count)
    header = [name.strip() for name in next(csv.reader(_lines(path), delimiter=delimiter), [])]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: two columns are named {twice[0]!r}; rename one")
    return header, delimiter


def _csv(path: Path) -> Iterator[Row]:
    """A text instead of a row is what is wrong with it."""
    header, delimiter = _header(path)
    reader = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        next(reader, None)
        for values in reader:
            if len(values) == len(header):
                yield reader.line_num, dict(zip(header, values, strict=True))
            elif values:
                yield reader.line_num, f"{len(values)} values, the header names {len(header)}"
    except csv.Error as error:
        yield reader.line_num, str(error)
