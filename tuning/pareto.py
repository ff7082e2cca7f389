"""Accuracy against bytes: which rows are beaten by none, and which one to take."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One trial. `error` is None if it went well; otherwise accuracy and bytes say nothing."""

    trial: str
    values: dict[str, Any] = field(default_factory=dict)
    accuracy: float = 0.0
    bytes: int = 0
    by_source: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    error: str | None = None


def read_rows(folder: Path) -> list[Row]:
    """The rows of a study's trials.jsonl; a half-written last line is left out."""
    path = folder / "trials.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [Row(**json.loads(line)) for line in lines if line.endswith("\n")]


def describe(values: dict[str, Any]) -> str:
    """`layer4 4, weights coarse 0.31 fine 0.69`."""
    parts = []
    for path, value in sorted(values.items()):
        if isinstance(value, dict):
            value = " ".join(f"{name} {v:.2f}" for name, v in value.items())
        elif isinstance(value, float):
            value = f"{value:.3g}"
        parts.append(f"{path.split('.')[-1]} {value}")
    return ", ".join(parts)


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other row beats in both accuracy (more) and bytes (fewer), smallest first; one of equal rows."""
    best: list[Row] = []
    for row in sorted((r for r in rows if r.error is None), key=lambda r: (r.bytes, -r.accuracy)):
        if not best or row.accuracy > best[-1].accuracy:
            best.append(row)
    return best


def choose(rows: Sequence[Row], tolerance: float) -> Row:
    """The smallest row of the front within `tolerance` of the highest accuracy. Raises ValueError if every trial
    failed.
    """
    candidates = front(rows)
    if not candidates:
        raise ValueError("no trial succeeded")
    return next(row for row in candidates if row.accuracy >= candidates[-1].accuracy - tolerance)


def hypervolume(rows: Sequence[Row], largest_bytes: int) -> float:
    """Area that the front dominates, up to `largest_bytes`, relative to the whole: 1 would be full accuracy at no
    bytes.
    """
    points = [row for row in front(rows) if row.bytes < largest_bytes]
    ends = [row.bytes for row in points[1:]] + [largest_bytes]
    return sum(row.accuracy * (end - row.bytes) for row, end in zip(points, ends, strict=True)) / largest_bytes
