"""Files that a source names: found, measured, read, and kept inside their folder.

Names inside a table or an annotation come from anywhere, so they never lead out of the folder they count from: what
is absolute elsewhere or climbs with `..` is refused. Links that lie in the folder are its owner's business.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath

from shards.format.fields import IMAGES
from shards.sources.notes import Notes, look
from shards.sources.source import Refused

SHOWN = 5
UNREAD = {
    ending: name
    for name, endings in {
        "GIF": "gif",
        "TIFF": "tif tiff",
        "JPEG 2000": "jp2 j2k jpf jpx",
        "HEIC": "heic heif",
        "AVIF": "avif",
        "JPEG XL": "jxl",
        "JFIF": "jfif jpe",
        "PNM": "ppm pgm pbm pnm",
        "raw": "dng cr2 cr3 nef arw",
        "DICOM": "dcm",
        "SVG": "svg",
        "PSD": "psd",
    }.items()
    for ending in endings.split()
}
"""Extension -> format of images that are not read: a folder full of them should not look empty."""

_SYSTEM = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN")
_LISTED = 20_000


def extension(name: str) -> str:
    """Lower-case extension without its dot."""
    return os.path.splitext(name)[1][1:].lower()


def is_image(name: str) -> bool:
    """Whether the name says that it is an image."""
    return extension(name) in IMAGES


def walk(folder: str | Path, notes: Notes | None = None) -> Iterator[os.DirEntry[str]]:
    """Every file below a folder, in no particular order. Names that begin with a dot and what systems leave behind
    (`__MACOSX`, `Thumbs.db`) are left out; linked folders are followed unless they lead back to where they lie.

    `notes` counts all three. Unlike os.walk it holds no list of names: a folder may have millions.
    """
    root = str(folder)

    def note(what: str, path: str) -> None:
        if notes is not None:
            notes.tell(what, os.path.relpath(path, os.path.dirname(os.path.abspath(root))))

    def inside(place: str, above: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
        with os.scandir(place) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    note(HIDDEN, entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    yield from inside(entry.path, above)
                elif not os.path.isdir(entry.path):
                    yield entry
                elif _leads_back(entry.path, (*above, os.path.realpath(place))):
                    note("linked folders that lead back to where they lie, left out", entry.path)
                else:
                    note("linked folders followed", entry.path)
                    yield from inside(entry.path, (*above, os.path.realpath(place)))

    return inside(root, ())


HIDDEN = "hidden files and folders left out"


def is_hidden(name: str) -> bool:
    """Whether a name is none that people gave to a sample: hidden, or left by a system."""
    return name.startswith(".") or name in _SYSTEM


def _leads_back(link: str, above: tuple[str, ...]) -> bool:
    """Whether a linked folder is one of the folders it lies in, or above one of them."""
    target = os.path.realpath(link)
    return any(os.path.commonpath([target, place]) == target for place in above)


class LeftOut:
    """Files that are no samples: counted by what their names say they are."""

    def __init__(self) -> None:
        self.unread: Counter[str] = Counter()
        self.others: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """A file that was passed over."""
        ending = extension(name)
        if ending in UNREAD:
            self.unread[UNREAD[ending]] += 1
        else:
            self.others[f".{ending}" if ending else "no ending"] += 1

    @property
    def total(self) -> int:
        """All of them."""
        return self.unread.total() + self.others.total()

    def tell(self, notes: Notes) -> None:
        """Says so."""
        if self.unread:
            what = f"images in formats that are not read, left out (convert them to one of {', '.join(IMAGES)})"
            notes.tell(what, _counted(self.unread), self.unread.total())
        if self.others:
            notes.tell("files that are no images, left out", _counted(self.others), self.others.total())

    def __str__(self) -> str:
        return _counted(self.unread + self.others)


def _counted(counts: Counter[str]) -> str:
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{count:,} {ending}" for ending, count in ordered[:SHOWN]) + (
        ", ..." if len(ordered) > SHOWN else ""
    )


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
        raise Refused(f"{root / name}: no such file{_one_like(root / name)}") from None
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror or error}") from None


class Finder:
    """Finds files below `root` by their names without extension, however the extension is spelled (`.Jpg`, `.XML`).

    Which spellings there are is seen in one walk, when the first name is asked for; no names are kept.
    """

    def __init__(self, root: str | Path, extensions: Sequence[str] = IMAGES):
        self.root, self.extensions = str(root), extensions
        self._spelled: tuple[str, ...] | None = None

    def __call__(self, name: str) -> str | None:
        """`name` (relative) with its extension, if there is such a file. Raises Refused if there are several."""
        if self._spelled is None:
            endings = {os.path.splitext(entry.name)[1][1:] for entry in walk(self.root)}
            self._spelled = tuple(sorted(ending for ending in endings if ending.lower() in self.extensions))
        found = [f"{name}.{ending}" for ending in self._spelled]
        found = [file for file in found if os.path.isfile(os.path.join(self.root, file))]
        if len(found) > 1:
            raise Refused(f"{' and '.join(found)} are both in {self.root}: which one is meant is not clear")
        return found[0] if found else None


def find_beside(root: Path, names: Sequence[str]) -> str | None:
    """A file of one of these names (relative, without extension), whatever it is."""
    for name in names:
        folder, wanted = (root / name).parent, os.path.basename(name) + "."
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in islice(entries, _LISTED):
                if entry.name.startswith(wanted) and entry.is_file():
                    return os.path.relpath(entry.path, root)
    return None


def _one_like(path: Path) -> str:
    """That the missing `path` is a broken link, or a file beside it whose name looks the same, in words."""
    if path.is_symlink():
        return f": it is a link to {os.readlink(path)!a}, which is not there"
    wanted = look(path.name)
    with suppress(OSError), os.scandir(path.parent) as entries:
        for entry in islice(entries, _LISTED):
            if look(entry.name) == wanted:
                return f"; {entry.name!a} is there and looks the same as {path.name!a}, rename one of them"
    return ""


def some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
