"""Accuracy against bytes: which rows are beaten by none, and which one to take."""

from collections.abc import Sequence

from tuning.record import Row

ROUNDING = 1e-9  # 0.95 - 0.01 is not 0.94


def describe(row: Row) -> str:
    """`layer4 4, weights coarse 0.31 fine 0.69`; a baseline's name first."""
    if row.baseline and not row.in_space:
        return row.baseline
    parts = []
    for path, value in sorted(row.values.items()):
        if isinstance(value, dict):
            value = " ".join(f"{name} {v:.2f}" for name, v in value.items())
        elif isinstance(value, float):
            value = f"{value:.3g}"
        parts.append(f"{path.split('.')[-1]} {value}")
    return ", ".join(parts) + (f" ({row.baseline})" if row.baseline else "")


def front(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other row beats in both accuracy (more) and bytes (fewer), smallest first; one of equal rows."""
    best: list[Row] = []
    for row in sorted((r for r in rows if r.error is None), key=lambda r: (r.bytes, -r.accuracy)):
        if not best or row.accuracy > best[-1].accuracy:
            best.append(row)
    return best


def candidates_of(rows: Sequence[Row]) -> list[Row]:
    """The rows that went well and lie in the space."""
    return [row for row in rows if row.error is None and row.in_space]


def choose(rows: Sequence[Row], tolerance: float) -> Row | None:
    """The smallest trial within `tolerance` of the highest accuracy of any trial; None if every trial failed.

    Baselines outside of the space are no candidates: the space is what was allowed.
    """
    candidates = front(candidates_of(rows))
    enough = candidates[-1].accuracy - tolerance - ROUNDING if candidates else 0.0
    return next((row for row in candidates if row.accuracy >= enough), None)


def remarks(rows: Sequence[Row], best: Row, tolerance: float) -> list[str]:
    """What the reader of the choice has to know about its noise, and about the baselines that do as well."""
    found = []
    top = max(candidates_of(front(rows)) or [best], key=lambda row: row.accuracy)
    low, high = top.interval
    if top.counts and tolerance < (half := (high - low) / 2):
        found.append(
            f"search.tolerance of {100 * tolerance:.3g} points is below the noise: the best {top.measure}, "
            f"{_percent(top)}, is known to +-{100 * half:.1f} points (95 % interval, {sum(top.counts.values())} images)"
            f"{f', and one image is worth up to {100 * top.step:.2f}' if top.step else ''}; more search.images make it "
            "smaller, as far as more are held out"
        )
    alike = [row for row in candidates_of(rows) if row is not best and row.accuracy >= low]
    if top.counts and alike:
        found.append(f"{len(alike)} other trials lie within that interval: the images do not tell them apart")
    for row in rows:
        good = row.baseline and row.error is None and row is not best
        if good and row.bytes <= best.bytes and row.accuracy >= best.accuracy:
            found.append(f"the choice is no better than {row.baseline}: {_percent(row)}, {row.bytes:,} bytes")
    return found


def hypervolume(rows: Sequence[Row], largest_bytes: int) -> float:
    """Area that the front dominates, up to `largest_bytes`, relative to the whole: 1 would be full accuracy at no
    bytes. 0 if no row is smaller than that.
    """
    points = [row for row in front(rows) if row.bytes < largest_bytes]
    ends = [row.bytes for row in points[1:]] + [largest_bytes]
    return sum(row.accuracy * (end - row.bytes) for row, end in zip(points, ends, strict=False)) / largest_bytes


def _percent(row: Row) -> str:
    return f"{100 * row.accuracy:.1f} %"
