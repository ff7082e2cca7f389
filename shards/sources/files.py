"""Files that a source names: found, measured, read, and kept inside their folder.

Names inside a table or an annotation come from anywhere, so they never lead out of the folder they count from: what
is absolute elsewhere or climbs with `..` is refused. Links that lie in the folder are its owner's business.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from shards.format.fields import IMAGES
from shards.sources.source import Refused

SHOWN = 5


def extension(name: str) -> str:
    """Lower-case extension without its dot."""
    return os.path.splitext(name)[1][1:].lower()


def is_image(name: str) -> bool:
    """Whether the name says that it is an image."""
    return extension(name) in IMAGES


def walk(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    """Every file below a folder, in no particular order; hidden ones and linked folders are left out.

    Unlike os.walk it holds no list of names: a folder may have millions.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path)
            elif not entry.is_dir():
                yield entry


def measure(path: str | Path) -> tuple[int, str]:
    """Size of a file and a stamp that changes with its content; (0, "missing") if there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0, "missing"
    return stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}"


def relative(name: str, root: Path) -> str:
    """`name` as a path below `root`. Raises Refused if it leads out of it."""
    path = os.path.normpath(os.path.join(root, name.replace("\\", "/")))
    inside = os.path.relpath(path, root)
    if inside.startswith(os.pardir) or "\0" in name or not name.strip():
        raise Refused(f"{name!r} is no file inside {root}")
    return inside.replace(os.sep, "/")


def stem(name: str) -> str:
    """A relative path without its extension: what becomes a sample's key."""
    return str(PurePosixPath(os.path.splitext(name)[0]))


def read(root: Path, name: str) -> bytes:
    """A file below `root`. Raises Refused."""
    try:
        return (root / name).read_bytes()
    except FileNotFoundError:
        raise Refused(f"{root / name}: no such file") from None
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror or error}") from None


def find_image(root: Path, name: str) -> str | None:
    """`name` (relative, without extension) with the extension of the image that lies below `root`, if one does."""
    for extension in IMAGES:
        for found in (f"{name}.{extension}", f"{name}.{extension.upper()}"):
            if os.path.isfile(os.path.join(root, found)):
                return found
    return None


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
