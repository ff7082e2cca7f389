"""Where samples come from before they are shards: `SOURCES` maps the kind of a source to how it is opened.

    folder      <root>/<class>/.../<image>

A kind says which options it uses and by what it is recognised; the first that recognises SOURCE is taken. To add one:
a file here with an open function, and a row in `SOURCES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shards.settings import ConfigError
from shards.sources.folder import open_folder
from shards.sources.source import IMAGES, TASKS, Item, Refused, Source, SourceOptions, flag

__all__ = ["IMAGES", "SOURCES", "TASKS", "Item", "Kind", "Refused", "Source", "SourceOptions", "open_source"]


@dataclass(frozen=True)
class Kind:
    """How a kind of source is opened, the options it uses, by what it is recognised, and how it looks, in words.

    `open(path, options)` raises ConfigError with every fault; imports that are heavy wait inside it.
    """

    open: Callable[[Path, SourceOptions], Source]
    options: frozenset[str]
    recognised: Callable[[Path], bool]
    looks: str


SOURCES: dict[str, Kind] = {
    "folder": Kind(open_folder, frozenset(), Path.is_dir, "a folder with one sub-folder of images for each class"),
}


def open_source(path: Path, options: SourceOptions) -> tuple[str, Source]:
    """The kind of the source and the source itself, not listed yet. Raises ConfigError with every fault."""
    name = options.kind or detect(path)
    if name not in SOURCES:
        raise ConfigError(f"--kind: {name!r}; known here: {', '.join(SOURCES)}")
    unused = options.given().keys() - SOURCES[name].options - {"kind"}
    if unused:
        raise ConfigError([f"{flag(option)}: {_who_uses(option, name)}" for option in sorted(unused)])
    return name, SOURCES[name].open(path, options)


def detect(path: Path) -> str:
    """The first kind that recognises `path`. Raises ConfigError."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    for name, kind in SOURCES.items():
        if kind.recognised(path):
            return name
    known = "".join(f"\n  {name:<12}{kind.looks}" for name, kind in SOURCES.items())
    raise ConfigError(f"{path}: looks like no kind of source; these are known:{known}\nsay which with --kind")


def _who_uses(option: str, kind: str) -> str:
    users = [name for name, row in SOURCES.items() if option in row.options]
    return f"a source of kind {kind!r} does not use it; used by {', '.join(users) or 'none'}"
