"""Profiles of splits in words: one column for each split, so that they can be compared line by line.

A distribution is a row of blocks: the same axis for all splits, each as high as its part of its own split.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards.inspect.preview.stats import Profile, Side, Spread, bins
from shards.text import printable, short, size, table

NONE = "–"  # noqa: RUF001
"""Where a split does not have what a row is about."""

_BLOCKS = "▁▂▃▄▅▆▇█"
_BINS, _FEW_BINS = 12, 8
_BAR = 30
_CLASSES, _MOST, _LEAST = 40, 25, 10
_TEXTS = 4
_WIDE, _LONG = 28, 40
_QUANTILES = (("least", 0.0), ("5 %", 0.05), ("median", 0.5), ("95 %", 0.95), ("most", 1.0))


@dataclass(frozen=True)
class Row:
    """One quantity of all splits (None: it has none). `is_log`: its axis is logarithmic; `shown`: a value in words."""

    name: str
    spreads: Sequence[Spread | None]
    shown: Callable[[float], str] = "{:g}".format
    is_log: bool = False

    def range(self) -> tuple[float, float]:
        """The smallest and the largest value of all splits."""
        given = [spread for spread in self.spreads if spread]
        return min(spread.low for spread in given), max(spread.high for spread in given)

    def edges(self, count: int) -> list[float]:
        """The bounds of bins, the same for all splits."""
        return bins(*self.range(), count, self.is_log)


def stats_lines(profiles: Sequence[Profile], width: int) -> list[str]:
    """The whole report, in lines of at most `width` characters: of many splits, some at a time."""
    for num_parts in range(1, len(profiles) + 1):
        each = -(-len(profiles) // num_parts)
        parts = [_block(profiles[first : first + each]) for first in range(0, len(profiles), each)]
        if each == 1 or max(len(line) for part in parts for line in part) <= width:
            return [printable(line) for part in parts for line in [*part, ""]][:-1]
    return []


def rows(profiles: Sequence[Profile]) -> Iterator[Row]:
    """Every quantity that any of the splits has."""

    def row(name: str, pick: Callable[[Profile], Spread | None], *how: Any) -> Iterator[Row]:
        spreads = [pick(found) for found in profiles]
        spreads = [spread if spread and spread.counts else None for spread in spreads]
        if any(spreads):
            yield Row(name, spreads, *how)

    yield from row("width", lambda found: found.width, "{:,.0f}".format)
    yield from row("height", lambda found: found.height, "{:,.0f}".format)
    yield from row("width / height", lambda found: found.aspect, "{:.2f}".format, True)
    yield from row("image file", lambda found: found.bytes, size, True)
    yield from row("boxes an image", lambda found: found.boxes, "{:,.0f}".format)
    yield from row("side of a box", lambda found: found.box_size, _percent)
    for name in sorted({name for found in profiles for name in found.side}):
        yield from row(name, lambda found, name=name: _side(found, name).numbers)
        yield from row(f"{name}, words", lambda found, name=name: _words(_side(found, name)))
        yield from row(f"{name}, texts", lambda found, name=name: _side(found, name).several)


def _block(profiles: Sequence[Profile]) -> list[str]:
    parts = [_facts(profiles), *_classes(profiles), _distributions(profiles), _found(profiles), _damage(profiles)]
    return [line for part in parts if part for line in [*part, ""]][:-1]


def _side(found: Profile, name: str) -> Side:
    return found.side.get(name, Side())


def _words(side: Side) -> Spread | None:
    """Of texts; not of the few that are rather classes."""
    return side.words if side.has_many or len(side.texts) > _TEXTS else None


def _name(found: Profile) -> str:
    """The name at the head of a column; of a path, its end."""
    return found.name if len(found.name) <= _WIDE else "…" + found.name[1 - _WIDE :]


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %" if part else "0"


def _facts(profiles: Sequence[Profile]) -> list[str]:
    """What the manifests say, and costs nothing."""

    def colour(values: Sequence[float]) -> str:
        return " ".join(f"{value:.3f}" for value in values)

    def between(bounds: tuple[int, int]) -> str:
        return NONE.join(dict.fromkeys(map(str, bounds)))

    reported: list[tuple[str, Callable[[Profile], str]]] = [
        ("samples", lambda found: f"{found.manifest.num_samples:,}"),
        ("task", lambda found: found.manifest.task),
        ("classes", lambda found: f"{len(found.manifest.classes):,}"),
        ("shards", lambda found: f"{len(found.manifest.shards):,}"),
        ("on disk", lambda found: size(found.size_bytes)),
        ("a sample", lambda found: size(found.size_bytes / found.manifest.num_samples)),
        ("width", lambda found: between(found.manifest.stats.width)),
        ("height", lambda found: between(found.manifest.stats.height)),
        ("mean R G B", lambda found: colour(found.manifest.stats.channel_mean)),
        ("deviation", lambda found: colour(found.manifest.stats.channel_std)),
        ("version", lambda found: found.manifest.version.removeprefix("sha256:")[:12]),
    ]
    return table([_head(profiles), *([name, *map(report, profiles)] for name, report in reported)])


def _head(profiles: Sequence[Profile]) -> list[str]:
    return ["", *map(_name, profiles)]


def _classes(profiles: Sequence[Profile]) -> Iterator[list[str]]:
    """A table for each way of counting: what is counted as boxes is not comparable with pixels."""
    for counted in ("samples", "boxes", "pixels"):
        some = [found for found in profiles if found.counted == counted and found.counts]
        if len(some) == 1:
            yield _classes_of_one(some[0], "class" if len(profiles) == 1 else _name(some[0]))
        elif some:
            yield _classes_of_many(some, counted)


def _classes_of_one(found: Profile, title: str) -> list[str]:
    counts, total = found.counts, max(1, sum(found.counts.values()))
    head, most = [title, found.counted, "share"], max(*counts.values(), 1)
    reports: list[Callable[[int, str], str]] = [
        lambda _, name: f"{counts[name]:,}",
        lambda _, name: _percent(counts[name] / total),
    ]
    if found.counted == "pixels":
        del head[1], reports[0]
    seen = found.num_read - found.damaged
    if found.counted != "samples" and seen:
        head.append("in images")
        reports.append(lambda at, _: _percent(found.holding[at] / seen))
    if found.counted == "boxes" and seen:
        head.append("median side")
        reports.append(
            lambda at, _: _percent(found.box_sizes[at].quantile(0.5)) if found.box_sizes[at].counts else NONE
        )
    place = {name: at for at, name in enumerate(counts)}
    lines = [[short(name, _LONG), *(report(place[name], name) for report in reports)] for name in counts]
    bars = [" " + "█" * round(_BAR * counts[name] / most) for name in counts]
    kept, cut = _cut(counts)
    shown = table([head, *(lines[place[name]] for name in kept)])
    shown[1:] = [line + bars[place[name]] for line, name in zip(shown[1:], kept, strict=True)]
    return [*_with_gap(shown, cut), *_balance([found])]


def _classes_of_many(profiles: Sequence[Profile], counted: str) -> list[str]:
    names = list(dict.fromkeys(name for found in profiles for name in found.counts))
    totals = [max(1, sum(found.counts.values())) for found in profiles]

    def cell(found: Profile, total: int, name: str) -> str:
        if name not in found.counts:
            return NONE
        return _percent(found.counts[name] / total) if counted == "pixels" else f"{found.counts[name]:,}"

    shares = {
        name: sum(found.counts.get(name, 0) / total for found, total in zip(profiles, totals, strict=True))
        for name in names
    }
    kept, cut = _cut(shares)
    head = [f"{counted} by class", *map(_name, profiles)]
    body = [[short(name, _LONG), *map(lambda f, t, name=name: cell(f, t, name), profiles, totals)] for name in kept]
    lines = _with_gap(table([head, *body]), cut)
    if any(name not in found.counts for found in profiles for name in names):
        lines.append(f"  {NONE}: the source does not have this class")
    return [*lines, *_balance(profiles)]


def _cut(counts: Mapping[str, float]) -> tuple[list[str], int]:
    """The names to show, and how many are left out after the first _MOST; in their own order if all are shown."""
    if len(counts) <= _CLASSES:
        return list(counts), 0
    ranked = sorted(counts, key=lambda name: -counts[name])
    return [*ranked[:_MOST], *ranked[-_LEAST:]], len(ranked) - _MOST - _LEAST


def _with_gap(lines: list[str], cut: int) -> list[str]:
    return [*lines[: _MOST + 1], f"  ... and {cut:,} more ...", *lines[_MOST + 1 :]] if cut else lines


def _balance(profiles: Sequence[Profile]) -> list[str]:
    """How uneven the classes are."""
    reported = []
    for found in profiles:
        ranked = sorted(found.counts.items(), key=lambda pair: -pair[1])
        (most, high), (least, low) = ranked[0], ranked[-1]
        most, least, empty = short(most, _LONG), short(least, _LONG), sum(not count for count in found.counts.values())
        if empty:
            reported.append(f"{found.name}: {empty:,} of {len(ranked):,} classes have no {found.counted}")
        elif high == low and len(ranked) > 1:
            reported.append(f"{found.name}: as many {found.counted} of each class")
        elif high > low:
            reported.append(f"{found.name}: {high / low:,.1f} times as many {found.counted} of {most} as of {least}")
    return [f"  {line}" for line in reported]


def _distributions(profiles: Sequence[Profile]) -> list[str]:
    found = list(rows(profiles))
    if not found:
        return []
    if len(profiles) == 1:
        return table([[_read(profiles), *(name for name, _ in _QUANTILES), ""], *map(_quantiles, found)])
    head = [f"medians, {_read(profiles)}", *map(_name, profiles)]
    return table([head, *map(_medians, found)])


def _quantiles(row: Row) -> list[str]:
    """The row of a table for one split alone."""
    (spread,) = row.spreads
    assert spread is not None
    values = (row.shown(spread.quantile(part)) for _, part in _QUANTILES)
    return [row.name, *values, blocks(spread, row.edges(_BINS))]


def _medians(row: Row) -> list[str]:
    """The row of a table for several splits."""
    edges = row.edges(_FEW_BINS)
    bounds = dict.fromkeys(row.shown(value) for value in row.range())
    cells = (f"{row.shown(s.quantile(0.5))} {blocks(s, edges)}" if s else NONE for s in row.spreads)
    return [f"{row.name} {NONE.join(bounds)}", *cells]


def _read(profiles: Sequence[Profile]) -> str:
    if all(found.num_read == found.manifest.num_samples for found in profiles):
        return "all samples read"
    if len(profiles) > 1:
        most = max(found.num_read for found in profiles)
        return f"{'≤ ' if any(found.num_read < most for found in profiles) else ''}{most:,} of each"
    return f"{profiles[0].num_read:,} of {profiles[0].manifest.num_samples:,} samples read"


def blocks(spread: Spread, edges: Sequence[float]) -> str:
    """A histogram as characters; `·` where there is nothing."""
    counts = spread.histogram(edges)
    most = max(counts)
    return "".join(_BLOCKS[max(0, -(-len(_BLOCKS) * n // most) - 1)] if n else "·" for n in counts)


def _found(profiles: Sequence[Profile]) -> list[str]:
    """What else was found in the samples that were read."""
    reported: list[tuple[str, Callable[[Profile], str]]] = [
        ("most frequent size", lambda found: _most(found.sizes, lambda pixels: "{}x{}".format(*pixels), 1)),
        ("formats", lambda found: _most(found.formats, str)),
        ("images without box", lambda found: _part(found.boxes.counts[0], found.boxes.total)),
        ("boxes by COCO size", lambda found: _coco(found.coco)),
        ("pixels of no class", lambda found: _part(found.void, found.pixels)),
    ]
    for name in sorted({name for found in profiles for name in found.side}):
        if any(0 < _side(found, name).samples < found.num_read - found.damaged for found in profiles):
            reported.append((f"has {name}", lambda found, name=name: _part(_side(found, name).samples, found.num_read)))
        reported.append((name, lambda found, name=name: _texts(_side(found, name))))
    lines = [[name, *map(report, profiles)] for name, report in reported]
    lines = [line for line in lines if any(cell != NONE for cell in line[1:])]
    return table(lines, left=1 + len(profiles)) if lines else []


def _most(counts: Counter[Any], shown: Callable[[Any], str], limit: int = _TEXTS) -> str:
    total = counts.total()
    reported = [f"{shown(value)} {_percent(count / total)}" for value, count in counts.most_common(limit)]
    return ", ".join(reported) or NONE


def _part(count: int, total: int) -> str:
    return _percent(count / total) if total else NONE


def _coco(coco: Sequence[int]) -> str:
    names = ("small", "medium", "large")
    return (
        ", ".join(f"{name} {_part(n, sum(coco))}" for name, n in zip(names, coco, strict=True)) if any(coco) else NONE
    )


def _texts(side: Side) -> str:
    if side.has_many:
        return "very many different texts"
    if len(side.texts) > _TEXTS:
        return f"{len(side.texts):,} different texts"
    return _most(Counter({repr(text): count for text, count in side.texts.items()}), str)


def _damage(profiles: Sequence[Profile]) -> list[str]:
    lines = []
    for found in profiles:
        if found.damaged:
            lines.append(f"  {found.name}: {found.damaged:,} of {found.num_read:,} samples read are damaged, such as")
            lines += [f"    {sample.key}: {sample.reason}" for sample in found.reasons]
    return [*lines, "  `xfer shards verify` lists all damage"] if lines else []
