"""Files and folders that are there whole or not at all, also after a crash or a power cut.

What is written goes to a temporary name in the same folder, then to disk, then to its place in one rename. It has the
mode that the umask gives, whatever a library that writes it thinks of. After an error nothing is left of it. What a
killed process leaves of a folder, `remove_drafts` finds later.
"""

import csv
import json
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shards.settings import ConfigError

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
_WRITER = r"\.(?P<host>[A-Za-z0-9-]+)\.(?P<pid>\d+)(?P<aside>\.old)?"
_DEAD_AFTER_S = 3600
_LONGEST = 96
_REMOVE = "mend it, or move it away to go on without it"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name to write to; at the end it becomes `path`. It exists, empty, and keeps the suffix of `path`.

    Raises OSError naming `path`.
    """
    path = Path(path)
    writer = f"{os.getpid()}-{threading.get_ident():x}"
    draft = path.with_name(f".{path.stem[:_LONGEST]}.{writer}.tmp{path.suffix}")
    try:
        with naming(path):
            with open(draft, "wb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o666
            yield draft
            _settle(draft, mode)
            os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path` to write to, in folders inside it too; at the end it becomes `path`. What was at
    `path` before is replaced: whether it may be is for the caller to know. Raises OSError naming `path`.
    """
    path = Path(path)
    remove_drafts(path.parent, re.escape(path.name))
    draft = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}")
    try:
        with naming(path):
            draft.mkdir(parents=True)
            yield draft
            mode = draft.stat().st_mode & 0o666
            for file in draft.rglob("*"):
                if not file.is_dir():
                    _settle(file, mode)
            _take_place(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def remove_drafts(folder: Path, names: str) -> None:
    """Removes what killed processes left of whole folders in `folder`, whose names the pattern `names` matches.

    A living process keeps its draft. A writer on another host, whose processes cannot be seen from here, counts as
    dead when its draft has not changed for an hour. What was put aside stays as long as nothing has taken its place.
    """
    for draft in folder.glob(".*"):
        found = re.fullmatch(rf"\.(?P<name>{names}){_WRITER}", draft.name)
        if not found or not draft.is_dir() or _has_writer(draft, found["host"], int(found["pid"])):
            continue
        if not found["aside"] or (folder / found["name"]).exists():
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """A failure to write names `path`: a full disk does not say itself where it is, nor do libraries in Rust say that
    it is an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.filename or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_text(path: str | Path, text: str) -> None:
    """A text file (UTF-8)."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object) -> None:
    """A readable JSON file."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; empty if there is no file. Raises ConfigError naming a damaged one."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: damaged, not JSON any more ({error}); {_REMOVE}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: damaged, must hold an object, got {type(content).__name__}; {_REMOVE}")
    return content


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """An object a line; a torn last line is left out. Raises ConfigError naming the first damaged one."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = []
    with naming(path):
        lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}: line {number} is damaged, not JSON any more ({error}); {_REMOVE}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: line {number} is damaged, must be an object; {_REMOVE}")
        rows.append(row)
    return rows


def write_csv(path: str | Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> int:
    """A table for other programs. Returns how many rows it has, the head not counted."""
    count = 0
    with whole_file(path) as draft, open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def _settle(file: Path, mode: int) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
        if os.fstat(handle.fileno()).st_mode & 0o777 != mode:
            os.fchmod(handle.fileno(), mode)


def _take_place(draft: Path, path: Path) -> None:
    """A folder that is full cannot be renamed over: it is put aside first, and back if that was for nothing."""
    if not os.path.lexists(path):
        os.replace(draft, path)
        return
    aside = draft.with_name(f"{draft.name}.old")
    os.replace(path, aside)
    try:
        os.replace(draft, path)
    except BaseException:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _has_writer(draft: Path, host: str, pid: int) -> bool:
    if host != _HOST:
        newest = max((path.stat().st_mtime for path in (draft, *draft.iterdir())), default=0)
        return time.time() - newest < _DEAD_AFTER_S
    if pid == os.getpid():  # this process writes one at a time: the draft is of another that had its number
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
