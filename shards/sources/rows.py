"""The rows of a csv, tsv or jsonl file, one at a time, each with its line number.

A row that does not fit its table makes the whole table doubtful (a comma too many shifts every column after it), so it
is a ConfigError with its line, the first few such lines at once. Costs about 2 us a row, and no memory.
"""

import codecs
import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shards.settings import ConfigError

TABLES = (".csv", ".tsv", ".jsonl")
_SHOWN = 5
_PROBED = 100
_DELIMITERS = ",;\t"
_NO_TEXT = re.compile("[\\0\\udc80-\\udcff]")

Row = tuple[int, dict[str, Any] | str]


def check_encoding(path: Path, given: str | None) -> str | None:
    """The encoding that the user names, or that the file's byte order mark does; None: UTF-8. Raises ConfigError."""
    if given is None:
        try:
            with open(path, "rb") as file:
                head = file.read(4)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None
    try:
        codecs.lookup(given)
        b"".decode(given)
    except LookupError:
        raise ConfigError(f"--encoding: {given!r}; expected one that Python knows: latin-1, cp1252, utf-16") from None
    return given


def read_rows(path: Path, encoding: str | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and column -> value of each row: texts in csv, JSON values in jsonl. Raises ConfigError."""
    faults: list[str] = []
    for line, row in _jsonl(_lines(path, encoding)) if path.suffix.lower() == ".jsonl" else _csv(path, encoding):
        if isinstance(row, dict):
            yield line, row
            continue
        faults.append(f"{path}, line {line}: {row}")
        if len(faults) == _SHOWN:
            break
    if faults:
        raise ConfigError(faults)


def columns_of(path: Path, encoding: str | None = None) -> list[str]:
    """The names of a table's columns; of jsonl, those that the first rows have. Raises ConfigError."""
    try:
        if path.suffix.lower() != ".jsonl":
            return _header(path, encoding)[0]
        rows = (row for _, (_, row) in zip(range(_PROBED), read_rows(path, encoding), strict=False))
        return list(dict.fromkeys(name for row in rows for name in row))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(path: Path, encoding: str | None) -> Iterator[str]:
    """The lines with their ends: \\n, \\r\\n, or \\r alone as old Macs wrote them."""
    number, errors = 0, None if encoding else "surrogateescape"
    try:
        with open(path, newline="", encoding=encoding or "utf-8-sig", errors=errors) as file:
            for number, line in enumerate(file, 1):
                if _NO_TEXT.search(line):
                    kind = " (NUL bytes: perhaps UTF-16)" if "\0" in line else ""
                    raise ConfigError(
                        f"{path}, line {number}: not UTF-8{kind}; save the table as UTF-8, or say what it is with "
                        "--encoding (latin-1, cp1252, utf-16-le)"
                    )
                yield line
    except UnicodeError as error:
        raise ConfigError(
            f"{path}, after line {number}: not {encoding}: {error}; say what it is with --encoding"
        ) from None


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


def _header(path: Path, encoding: str | None) -> tuple[list[str], str]:
    """Column names and delimiter of a csv file."""
    first = next(_lines(path, encoding), "")
    delimiter = max(_DELIMITERS, key=first.count)
    header = [name.strip() for name in next(csv.reader(_lines(path, encoding), delimiter=delimiter), [])]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise ConfigError(f"{path}: two columns are named {twice[0]!r}; rename one")
    return header, delimiter


def _csv(path: Path, encoding: str | None) -> Iterator[Row]:
    """A text instead of a row is what is wrong with it."""
    header, delimiter = _header(path, encoding)
    reader = csv.reader(_lines(path, encoding), delimiter=delimiter, strict=True)
    try:
        next(reader, None)
        for values in reader:
            if len(values) == len(header):
                yield reader.line_num, dict(zip(header, values, strict=True))
            elif values:
                yield reader.line_num, f"{len(values)} values, the header names {len(header)}"
    except csv.Error as error:
        yield reader.line_num, str(error)
