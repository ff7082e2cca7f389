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


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Aligned lines: the first `left` columns to the left, the others to the right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        [cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True))]
        for row in rows
    )
    return ["  " + "  ".join(row).rstrip() for row in aligned]


def printable(text: str) -> str:
    """The text on one line, without what would command a terminal: names and captions come from anywhere."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
