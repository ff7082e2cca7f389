"""What reports for a terminal are made of."""

from collections.abc import Sequence


def counted(count: int, what: str) -> str:
    """`1 shard`, `2 shards`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size(num_bytes: float) -> str:
    """Bytes for people: 3 digits and a unit."""
    units = ["B", "kB", "MB", "GB", "TB", "PB"]
    while num_bytes >= 999.5 and len(units) > 1:
        num_bytes /= 1000
        del units[0]
    return f"{num_bytes:.3g} {units[0]}" if num_bytes < 999.5 else f"{num_bytes:,.0f} {units[0]}"


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `3 min 5 s`, `2 h 7 min`: at most two units."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{int(seconds)} s"
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    place = next(i for i, (_, length) in enumerate(units) if seconds >= length)
    (large, length), (small, unit) = units[place : place + 2]
    return f"{int(seconds // length)} {large} {int(seconds % length // unit)} {small}"


def table(rows: Sequence[Sequence[str]], left: int = 1, text: int = 0) -> list[str]:
    """Aligned lines: the first `left` and the last `text` columns to the left, the others to the right."""
    columns = list(zip(*rows, strict=True))
    sides = [str.ljust if i < left or i >= len(columns) - text else str.rjust for i in range(len(columns))]
    aligned = [
        [side(cell, max(map(len, column))) for cell in column] for side, column in zip(sides, columns, strict=True)
    ]
    return ["  " + "  ".join(row).rstrip() for row in zip(*aligned, strict=True)]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The same as Markdown, the header first: the first column to the left, the others to the right."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [head, "|---" + "|---:" * (len(rows[0]) - 1) + "|", *body]


def short(text: str, longest: int) -> str:
    """The text with its middle left out if it is long: of keys and names, both ends say most."""
    return text if len(text) <= longest else f"{text[: longest // 2 - 1]}…{text[-longest // 2 :]}"


def printable(text: str) -> str:
    """The text on one line, without what would command a terminal: names and captions come from anywhere."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
