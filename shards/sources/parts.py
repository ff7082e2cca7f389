"""Sources that hold several parts (train, test) in one folder: files of another part must not slip in."""

import re
from collections.abc import Sequence
from pathlib import Path

from shards.settings import ConfigError

_WORD = re.compile(r"(?<![a-z])(train|training|val|valid|validation|test|testing)(?![a-z])")


def choose(paths: Sequence[Path], part: str | None, root: Path) -> list[Path]:
    """The files of one part, by their names or that of their folder; all, if there is but one part.

    Raises ConfigError.
    """
    words = {path: _spoken_of(path.relative_to(root)) for path in paths}
    parts = sorted({word for word in words.values() if word})
    if part is None:
        if len(parts) > 1:
            raise ConfigError(f"{root}: its files belong to several parts ({', '.join(parts)}); say which with --part")
        return list(paths)
    own = [path for path in paths if words[path] == part or re.match(re.escape(part) + r"(?![A-Za-z])", path.name)]
    if not own:
        raise ConfigError(f"--part: {part!r}; the files in {root} speak of {', '.join(parts) or 'none'}")
    return own


def _spoken_of(path: Path) -> str | None:
    for name in (path.name, path.parent.name):
        found = _WORD.search(name.lower())
        if found:
            return found.group()
    return None
