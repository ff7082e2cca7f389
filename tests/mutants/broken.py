"""A break: a fault that was made once or would be easy to make, as a change of text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Break:
    """`old` becomes `new` in `file`; `tests` (files or node ids) must fail then. `what` says it in words."""

    name: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def apply(self, text: str) -> str:
        """The broken text. Raises ValueError unless `old` stands in it exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {text.count(self.old)} times in {self.file}, not once")
        return text.replace(self.old, self.new)
