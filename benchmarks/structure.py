"""How the packages are built: files, lines, rooms, floors, and imports that point up.

    python -m benchmarks.structure [ROOT]      # the checkout at ROOT, else this one

A room is a file or a folder directly inside a package. Rooms that import each other, directly or round about, share a
floor; every other import goes to a lower one. An import points up if it is between two rooms of one floor.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("shards", "xfer", "cluster", "tuning")


def main(root: Path) -> None:
    print(f"{'':10}{'files':>8}{'lines':>8}{'rooms':>8}{'floors':>8}{'up':>8}")
    for package in PACKAGES:
        files = sorted((root / package).rglob("*.py"))
        rooms = defaultdict(set)
        for path in files:
            room = _room(package, _module(root, path))
            if room:
                rooms[room] |= {_room(package, name) for name in _imports(root, path)} - {room, ""}
        reached = {room: _reached(rooms, room) for room in rooms}
        up = sum(room in reached[other] for room in rooms for other in rooms[room])
        lines = sum(len(path.read_text().splitlines()) for path in files)
        print(f"{package:10}{len(files):8}{lines:8}{len(rooms):8}{_floors(rooms, reached):8}{up:8}")


def _module(root: Path, path: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _room(package: str, module: str) -> str:
    """The room a module lies in; empty for the package itself and for what is elsewhere."""
    parts = module.split(".")
    return parts[1] if parts[0] == package and len(parts) > 1 else ""


def _imports(root: Path, path: Path) -> Iterator[str]:
    """Modules that are imported, also inside functions; the names that a package itself offers do not count."""
    if path.parent.parent == root and path.name == "__init__.py":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _reached(rooms: dict[str, set[str]], room: str) -> set[str]:
    found, waiting = set(), [room]
    while waiting:
        new = rooms.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


def _floors(rooms: dict[str, set[str]], reached: dict[str, set[str]]) -> int:
    """The longest way down."""
    height: dict[str, int] = {}
    for room in sorted(rooms, key=lambda room: len(reached[room])):
        below = [height[other] for other in reached[room] if room not in reached.get(other, ()) and other in height]
        height[room] = 1 + max(below, default=0)
    return max(height.values())


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else Path(__file__).parents[1]))
