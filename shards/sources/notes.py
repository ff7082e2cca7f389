"""What was read otherwise than it stands there, or left out: counted, with a few examples, and reported by the build.

Each source has `Notes` and tells them while it lists and while it reads. Reading happens in other processes, shard by
shard: whoever writes a shard takes the notes out of the source and keeps them with the shard's record, and merging is
independent of the order. A note is of the whole source; what refuses one sample is `Refused`.
"""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_SHOWN = 3


class Notes:
    """Counts by what happened, with the first examples in alphabetical order."""

    def __init__(self, found: Mapping[str, Any] | None = None):
        self.found: dict[str, list] = {what: [count, list(some)] for what, (count, some) in (found or {}).items()}

    def tell(self, what: str, example: str = "", count: int = 1) -> None:
        """`what`: a phrase that goes before a count, such as 'hidden files left out'; of the whole source: count 0."""
        entry = self.found.setdefault(what, [0, []])
        entry[0] += count
        if example and example not in entry[1] and (len(entry[1]) < _SHOWN or example < entry[1][-1]):
            entry[1] = sorted([*entry[1], example])[:_SHOWN]

    def merge(self, other: "Notes") -> None:
        """Adds what another source, or another process, has noted."""
        for what, (count, examples) in other.found.items():
            self.tell(what, "", count)
            for example in examples:
                self.tell(what, example, 0)

    def take(self) -> dict[str, list]:
        """All there is, as JSON; nothing stays."""
        found, self.found = self.found, {}
        return found

    def count(self, what: str) -> int:
        """How often something was noted."""
        return self.found.get(what, [0])[0]

    def lines(self) -> list[str]:
        """A line for each, sorted: `hidden files left out: 3 (.DS_Store, cat/._a.jpg)`."""
        return [_line(what, *self.found[what]) for what in sorted(self.found)]


def _line(what: str, count: int, examples: list[str]) -> str:
    more = ", ..." if count > len(examples) else ""
    counted = f"{what}: {count:,}" if count else what
    return counted + (f" ({', '.join(examples)}{more})" if examples else "")


def alike(names: Iterable[str]) -> list[list[str]]:
    """Groups of different names that look the same: other case, spaces, dots at the end, or another Unicode form."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(look(name), []).append(name)
    return [sorted(group) for _, group in sorted(groups.items()) if len(group) > 1]


def look(name: str) -> str:
    """What a reader sees of a name: the same for all names that are easily taken for each other."""
    shown = "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if unicodedata.category(c) != "Cf")
    return " ".join(shown.split()).rstrip(". ")
