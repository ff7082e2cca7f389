"""Labels as YOLO writes them are recognised, to be refused by name: `labels/a.txt` with `class x y w h` lines.

They say neither what the classes are called nor, without the image, how large a box is; a folder of them looks like
class folders with stray text files, and would be built as such without its boxes.
"""

import re
from contextlib import suppress
from itertools import islice
from pathlib import Path

from shards.sources import files

_LINE = re.compile(rb"\s*\d+(\s+-?\d*\.?\d+([eE][+-]?\d+)?){4,}\s*")
_PROBED = 2000
_NO_LABELS = ("classes.txt", "readme.txt", "requirements.txt", "train.txt", "val.txt", "test.txt")


def fault(root: Path) -> str | None:
    """Why a folder with YOLO's labels is not built; None if it holds none."""
    found = _label_file(root)
    if found is None:
        return None
    return (
        f"{root}: {found.relative_to(root)} holds boxes as YOLO writes them (class x y w h), a form that is not read; "
        "write them as COCO (a .json with images, annotations and categories) or Pascal VOC (.xml) and build that; "
        "to build class folders without the boxes, say --kind folder"
    )


def _label_file(root: Path) -> Path | None:
    """The first .txt file below a folder whose lines are boxes, among the first few files."""
    for entry in islice(files.walk(root), _PROBED):
        if files.extension(entry.name) == "txt" and entry.name.lower() not in _NO_LABELS:
            lines = []
            with suppress(OSError), open(entry.path, "rb") as file:
                lines = [line for line in islice(file, 3) if line.strip()]
            if lines and all(_LINE.fullmatch(line) for line in lines):
                return Path(entry.path)
    return None
