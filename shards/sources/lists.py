"""Lists of samples: a text file with one name a line, as in the `ImageSets` of Pascal VOC.

VOC's own lists for a single class add `1`, `0` or `-1` to each name; names with -1, images without that class, are
passed over.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from shards.settings import ConfigError
from shards.sources.notes import Notes

_FLAG = re.compile(r"\s+(-1|0|1)$")


def find_list(root: Path, given: str) -> Path:
    """The list of this name in `root`/ImageSets, or the file itself. Raises ConfigError with those that exist."""
    folder = root / "ImageSets"
    named = sorted(folder.glob("*/*.txt")) + sorted(folder.glob("*.txt"))
    for path in [path for path in named if path.stem == given] + [Path(given), root / given]:
        if path.is_file():
            return path
    known = ", ".join(sorted({path.stem for path in named})[:20]) or "none"
    raise ConfigError(f"--list: {given!r} is no file, nor a list in {folder}; there are {known}")


def read_list(path: Path, notes: Notes) -> Iterator[str]:
    """The names of a list, one at a time. Raises ConfigError."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text.isprintable():
                raise ConfigError(f"{path}, line {number}: not UTF-8 text: {text[:40]!a}")
            found = _FLAG.search(text)
            name = text[: found.start()] if found else text
            if name.startswith("/") or ".." in name.split("/") or "\0" in name:
                raise ConfigError(f"{path}, line {number}: {name!r} leads out of the folder of the images")
            if found and found.group(1) == "-1":
                notes.tell("names marked -1 in the list, left out", name)
            elif name:
                yield name
