"""What is wrong with what a person typed after a verb: every fault at once."""

from pathlib import Path
from typing import Literal


def refuse(*faults: str | Literal[False] | None) -> None:
    """Raises ConfigError with all faults there are."""
    from shards.settings import ConfigError

    found = [fault for fault in faults if fault]
    if found:
        raise ConfigError(found)


def file_name(path: Path | None, option: str, *endings: str) -> str | None:
    """What is wrong with a file to write: it ends in none of `endings`, or its folder cannot be made."""
    if path is None:
        return None
    if path.suffix.lower() not in endings:
        return f"{option}: {path}; expected a file name ending in {' or '.join(endings)}"
    if path.is_dir():
        return f"{option}: {path} is a folder; give the name of a file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{option}: {path.parent}: {error.strerror}; give a folder you can write to"
    return None


def in_range(number: int | None, option: str, low: int, high: int, what: str) -> str | None:
    if number is None or low <= number <= high:
        return None
    return f"{option}: {number}; expected {low} to {high} {what}"
