"""Numbers become figures: each function takes what was computed elsewhere and gives a matplotlib Figure.

No pyplot, so no figure outlives its use; rcParams are afterwards what they were before.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from shards.forecast import Forecast
from shards.forecast_text import size
from shards.manifest import whole_file
from shards.stats import Profile
from shards.stats_text import Row, rows
from shards.timeline import Timeline

COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#db2777", "#65a30d")
MUTED = ("#475569", "#92733a", "#5b8a6f", "#a35d5d", "#76669a", "#4a8792", "#a5678a", "#8b964a")
"""A second set, for things that are not those of the first."""
_Parts = Sequence[tuple[dict[str, float], str]]  # of each split: value by class, and its colour
GREY = "#cbd5e1"
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.8,
    "text.parse_math": False,  # names of classes may hold dollar signs
}
_SHOWN = 8
_PANELS, _BARS, _BARS_A_PANEL, _BOXED = 8, 40, 12, 12
_HISTOGRAM, _DOTS = 31, 2000


def save(figure: Figure, path: str | Path) -> None:
    """Writes a figure whole or not at all; the ending of the name says in which format."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150)


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in our style, without leaving it behind."""

    @wraps(draw)
    def drawn(*values: object, **options: object) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*values, **options)

    return drawn


@styled
def plan_figure(found: Forecast, timelines: Sequence[Timeline]) -> Figure:
    """A forecast: above, which node reads which shards when; below, blend, repeats, egress and disk."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    above, below = np.ravel(figure.subfigures(2, 1, squeeze=False, height_ratios=(1.15, 1)))
    colours = _node_colours(found.world.nodes)
    panels = above.subplots(1, len(timelines), squeeze=False)[0]
    for axes, timeline in zip(panels, timelines, strict=True):
        _draw_timeline(axes, timeline, colours)
    panels[0].set_ylabel("shards, as the epoch shuffles them")
    nodes = found.world.nodes
    if 1 < nodes <= _SHOWN:
        handles = [Line2D([], [], marker="o", linestyle="", color=colours[n], label=f"node {n}") for n in range(nodes)]
        above.legend(handles=handles, loc="outside upper right", ncols=nodes, handletextpad=0.1, columnspacing=1)
    told = f", colour: node, from 0 (blue) to {nodes - 1} (red)" if nodes > _SHOWN else ""
    above.suptitle(f"Who reads what when{told}", x=0.01, ha="left", weight="bold")
    shares, repeats, egress, disk = below.subplots(1, 4, width_ratios=(1.15, 1.15, 1, 1))
    _draw_shares(shares, found)
    _draw_repeats(repeats, found)
    _draw_egress(egress, found, colours)
    _draw_disk(disk, found)
    return figure


def _node_colours(nodes: int) -> list[str]:
    if nodes <= _SHOWN:
        return list(COLOURS[:nodes])
    ramp = matplotlib.colormaps["turbo"]
    return [to_hex(ramp(0.05 + 0.9 * node / (nodes - 1))) for node in range(nodes)]


def _draw_timeline(axes: Axes, timeline: Timeline, colours: Sequence[str]) -> None:
    side = float(np.clip(20_000 / max(1, len(timeline.step)), 3, 12))
    found = [colours[node] for node in timeline.node]
    axes.scatter(timeline.step, timeline.place, s=side, c=found, linewidths=0, rasterized=True)
    whole = "its first epoch" if timeline.is_whole else "as far as this run comes"
    axes.set_title(f"{timeline.name}: {whole}")
    axes.set_xlabel("step")
    axes.set_xlim(0, max(1, timeline.num_steps))
    axes.set_ylim(0, timeline.num_shards)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_shares(axes: Axes, found: Forecast) -> None:
    """Shares of the sources over the run, one step for each stage."""
    largest = sorted(found.sources, key=lambda source: -source.given)
    shown = largest if len(largest) <= _SHOWN else largest[: _SHOWN - 1]
    starts = [*found.stages, found.run.steps]
    stages = range(len(found.stages))
    parts = [(s.name, [100 * s.wanted[i] for i in stages], MUTED[n]) for n, s in enumerate(shown)]
    if len(shown) < len(largest):
        rest = [100 - sum(values[i] for _, values, _ in parts) for i in stages]
        parts.append((f"{len(largest) - len(shown)} others", rest, GREY))
    low = [0.0] * len(stages)
    for name, values, colour in parts:
        high = [a + b for a, b in zip(low, values, strict=True)]
        axes.fill_between(
            starts, [*low, low[-1]], [*high, high[-1]], step="post", color=colour, alpha=0.85, linewidth=0
        )
        widest = max(stages, key=lambda i: min(values[i], 12) * (starts[i + 1] - starts[i]))
        if values[widest] >= 5:
            middle = (starts[widest] + starts[widest + 1]) / 2
            label = f"{name} {values[widest]:.1f} %"
            ink = "black" if colour == GREY else "white"
            axes.text(middle, (low[widest] + high[widest]) / 2, label, color=ink, ha="center", va="center")
        low = high
    axes.set_title("Blend over the run")
    axes.set_ylabel("share of the samples (%)")
    axes.set_ylim(0, 100)
    _step_axis(axes, found)


def _draw_repeats(axes: Axes, found: Forecast) -> None:
    """Epochs of each source, as they add up."""
    seen = found.survey
    largest = sorted(found.sources, key=lambda source: -source.given)
    for n, source in enumerate(largest):
        counts = seen.chances.counts[:, found.law.names.index(source.name)]
        shown = n < _SHOWN - (len(largest) > _SHOWN)
        label = f"{source.name}: {source.epochs:.3g}" if shown else None
        # Where all are alike they lie on each other: the later ones are thinner.
        width = max(1.0, 4 - n) if shown else 0.8
        colour, above = (MUTED[n], 3) if shown else (GREY, 2)
        axes.plot(seen.starts, counts / source.samples, color=colour, lw=width, label=label, zorder=above)
    axes.set_title("Repeats")
    axes.set_ylabel("epochs")
    lines = len(axes.get_legend_handles_labels()[0])
    axes.set_ylim(0, (1 + 0.09 * lines) * max(source.epochs for source in largest))
    axes.legend(loc="upper left")
    _step_axis(axes, found)


def _draw_egress(axes: Axes, found: Forecast, colours: Sequence[str]) -> None:
    """What each node fetches of one epoch, against its fair part and all of it."""
    nodes = found.world.nodes
    parts = 100 * found.fetched("once") / found.size
    axes.bar(range(nodes), parts, color=colours, width=0.8)
    if nodes > 1:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.axhline(100 / nodes, color="black", linewidth=1, linestyle=":")
        axes.text((nodes - 1) / 2, 103 / nodes, "an even part", ha="center", va="bottom", fontsize=9, bbox=box)
    axes.set_title(f"Egress of an epoch: {found.copies:.2f} x {size(found.size)}" + ("" if found.is_fetched else "*"))
    axes.set_xlabel("node" if found.is_fetched else "node   (* from a store; all sources are local)")
    axes.set_ylabel("fetched, of the data (%)")
    axes.set_ylim(0, max(1.2 * max(parts), 125 / nodes))
    axes.set_xticks(range(0, nodes, -(-nodes // _SHOWN)))
    axes.grid(axis="x", visible=False)


def _draw_disk(axes: Axes, found: Forecast) -> None:
    """What a node needs, against what it may use."""
    limit = found.config.cache.gb * 1e9
    needs = [found.disk, found.whole_disk]
    good, bad = COLOURS[2], COLOURS[3]
    axes.bar([0, 1], needs, color=[good if need <= limit else bad for need in needs], width=0.6)
    axes.set_yscale("log")
    low, high = min(*needs, limit), max(*needs, limit)
    axes.set_ylim(low / 3, high * 5)
    axes.axhline(limit, color="black", linewidth=1, linestyle=":")
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    axes.text(0.5, limit * 1.2, f"cache.gb = {found.config.cache.gb:g}", ha="center", fontsize=9, bbox=box)
    for at, need in enumerate(needs):
        axes.text(at, need / 1.1, size(need), ha="center", va="top", color="white", fontsize=9)
    axes.set_xticks([0, 1], ["windows: no shard\ntwice in an epoch", "all: no shard\ntwice ever"])
    axes.set_title("Disk of a node")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    axes.grid(axis="x", visible=False)


def _step_axis(axes: Axes, found: Forecast) -> None:
    axes.set_xlabel("step")
    axes.set_xlim(0, found.run.steps)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for step in found.stages[1:]:
        axes.axvline(step, color="black", linewidth=0.8, linestyle=":")


@styled
def stats_figure(profiles: Sequence[Profile]) -> Figure:
    """What splits hold, side by side: how often each class occurs, then one panel a quantity."""
    groups = [
        some
        for counted in ("samples", "boxes", "pixels")
        if (some := [found for found in profiles if found.counted == counted and found.counts])
    ]
    high = [_bar_rows(some) for some in groups]
    classes = [partial(_draw_classes, some=some, profiles=profiles) for some in groups]
    beside = sum(high) > _BARS_A_PANEL * len(groups)  # the classes get a column of their own
    panels = _panels(profiles) if beside else [*classes, *_panels(profiles)]
    across = 2 if len(panels) <= 4 else 3
    down = -(-len(panels) // across)
    size = (4 * across + 5 * beside, max(3.3 * down, 0.2 * sum(high) * beside) + 0.8)
    figure = right = Figure(figsize=size, layout="constrained")
    if beside:
        left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(5, 4 * across))[0]
        column = left.subplots(len(groups), 1, squeeze=False, height_ratios=[rows + 4 for rows in high])[:, 0]
        for axes, draw in zip(column, classes, strict=True):
            draw(axes)
    places = right.subplots(down, across, squeeze=False).ravel()
    for axes, draw in zip(places, panels, strict=False):
        draw(axes)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    handles = [
        Patch(color=colour, label=f"{found.name}/{found.manifest.split}: {found.manifest.num_samples:,} samples")
        for found, colour in zip(profiles, _node_colours(len(profiles)), strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)), fontsize=11)
    return figure


def _panels(profiles: Sequence[Profile]) -> list[Callable[[Axes], None]]:
    sides = {name for found in profiles for name in found.side}
    panels: list[Callable[[Axes], None]] = []
    if any(found.sizes for found in profiles):
        panels.append(partial(_draw_sizes, profiles=profiles))
    told = [row for row in rows(profiles) if row.name not in ("width", "height")]
    for row in told[:_PANELS]:
        title = row.name if row.name.split(",")[0] in sides else row.name.capitalize()
        panels.append(partial(_draw_spread, row=row, title=title))
    for counted in ("boxes", "pixels"):
        if some := [found for found in profiles if found.counted == counted and any(found.holding)]:
            panels.append(partial(_draw_holding, some=some, profiles=profiles))
    some = [found for found in profiles if found.boxes.total and len(found.counts) > 1]
    return [
        *panels,
        *(partial(_draw_box_sides, found=found) for found in some),
        partial(_draw_colour, profiles=profiles),
    ]


def _bar_rows(some: Sequence[Profile]) -> int:
    """How many bars the classes need, one below the other; the curve of very many needs the room of a few."""
    names = {name for found in some for name in found.counts}
    return len(names) * min(2, len(some)) if len(names) <= _BARS else 15


def _draw_classes(axes: Axes, some: Sequence[Profile], profiles: Sequence[Profile]) -> None:
    """Bars for each class, or for very many classes their counts from the most to the least frequent."""
    names = list(dict.fromkeys(name for found in some for name in found.counts))
    colours = _node_colours(len(profiles))
    counted = some[0].counted
    parts = []
    for found in some:
        scale = 100 / max(1, sum(found.counts.values())) if counted == "pixels" else 1
        values = {name: count * scale for name, count in found.counts.items()}
        parts.append((values, colours[profiles.index(found)]))
    draw = _draw_class_bars if len(names) <= _BARS else _draw_class_curve
    draw(axes, names, parts, "{:.1f}" if counted == "pixels" else "{:,.0f}")
    axes.set_title("Share of pixels by class (%)" if counted == "pixels" else f"{counted.capitalize()} by class")


def _draw_class_bars(axes: Axes, names: Sequence[str], parts: _Parts, form: str) -> None:
    high = 0.8 / len(parts)
    for n, (values, colour) in enumerate(parts):
        places = {name: at + (n - (len(parts) - 1) / 2) * high for at, name in enumerate(names) if name in values}
        axes.barh(list(places.values()), [values[name] for name in places], high * 0.92, color=colour)
        if len(parts) == 1:
            for name, place in places.items():
                axes.text(values[name], place, " " + form.format(values[name]), va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [_short(name, 24) for name in names], fontsize=9, parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.14)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _draw_class_curve(axes: Axes, names: Sequence[str], parts: _Parts, form: str) -> None:
    for values, colour in parts:
        ranked = sorted(values, key=lambda name: -values[name])
        heights, places = [values[name] for name in ranked], range(1, len(ranked) + 1)
        axes.fill_between(places, heights, color=colour, alpha=0.15, linewidth=0, step="mid")
        axes.step(places, heights, color=colour, linewidth=1.8, where="mid")
        for at in (0, len(ranked) // 2, len(ranked) - 1) if len(parts) == 1 else ():
            label = f"{_short(ranked[at], 24)}: " + form.format(heights[at])
            side = "left" if at <= len(ranked) / 2 else "right"
            axes.annotate(label, (at + 1, heights[at]), (4, 8), textcoords="offset points", fontsize=9, ha=side)
    axes.set_yscale("symlog" if any(not value for values, _ in parts for value in values.values()) else "log")
    axes.set_xlabel(f"{len(names):,} classes, from the most to the least frequent")
    axes.margins(x=0.02, y=0.15)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _draw_sizes(axes: Axes, profiles: Sequence[Profile]) -> None:
    """Each size a dot, the larger the more images have it."""
    for found, colour in zip(profiles, _node_colours(len(profiles)), strict=True):
        frequent = found.sizes.most_common(_DOTS)
        areas = [6 + 300 * count / found.sizes.total() for _, count in frequent]
        widths, heights = [pixels[0] for pixels, _ in frequent], [pixels[1] for pixels, _ in frequent]
        axes.scatter(widths, heights, s=areas, color=colour, alpha=0.45, linewidths=0)
    highest = 1.08 * max(max(pixels) for found in profiles for pixels in found.sizes)
    axes.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, highest)
    axes.set_ylim(0, highest)
    axes.set_aspect("equal", adjustable="box")
    axes.set_title("Image sizes")
    axes.set_xlabel("width (pixels)")
    axes.set_ylabel("height (pixels)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))


def _draw_spread(axes: Axes, row: Row, title: str) -> None:
    """A histogram for each split, as parts of its own samples."""
    edges = _edges(row)
    for spread, colour in zip(row.spreads, _node_colours(len(row.spreads)), strict=True):
        if spread:
            parts = [100 * count / spread.total for count in spread.histogram(edges)]
            axes.stairs(parts, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(parts, edges, color=colour, linewidth=1.6)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=_is_whole(row)))
    if row.is_log:
        axes.set_xscale("log")
        narrow = edges[-1] < 3 * edges[0]
        axes.xaxis.set_major_locator(MaxNLocator(4) if narrow else LogLocator(10, subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: row.shown(value)))
    axes.set_title(title)
    axes.set_ylabel("%")
    axes.set_ylim(bottom=0)


def _edges(row: Row) -> list[float]:
    """Bounds of bins; between whole numbers where all values are, so that each bin has as many of them."""
    low, high = row.range()
    if row.is_log or not _is_whole(row):
        return row.edges(_HISTOGRAM)
    step = -(-int(high - low + 1) // _HISTOGRAM)
    return [low - 0.5 + step * n for n in range(int(high - low) // step + 2)]


def _is_whole(row: Row) -> bool:
    return all(value == int(value) for spread in row.spreads if spread for value in spread.counts)


def _draw_holding(axes: Axes, some: Sequence[Profile], profiles: Sequence[Profile]) -> None:
    """In how many of the images that were read each class occurs."""
    parts, colours = [], _node_colours(len(profiles))
    for found in some:
        seen = max(1, found.num_read - found.damaged)
        shares = [100 * count / seen for count in found.holding]
        parts.append((dict(zip(found.counts, shares, strict=True)), colours[profiles.index(found)]))
    names = list(dict.fromkeys(name for values, _ in parts for name in values))
    draw = _draw_class_bars if len(names) <= _BARS else _draw_class_curve
    draw(axes, names, parts, "{:.1f}")
    axes.set_title("Images with the class (%)")


def _draw_box_sides(axes: Axes, found: Profile) -> None:
    """The median side of each class's boxes, and where 90 % of them lie."""
    spreads = {name: spread for name, spread in zip(found.counts, found.box_sizes, strict=True) if spread.counts}
    shown = sorted(spreads, key=lambda name: -spreads[name].total)[:_BOXED]
    shown = [name for name in spreads if name in shown]
    for at, name in enumerate(shown):
        low, middle, high = (100 * spreads[name].quantile(part) for part in (0.05, 0.5, 0.95))
        axes.plot([low, high], [at, at], color=GREY, linewidth=5, solid_capstyle="round")
        axes.plot([middle], [at], marker="o", color="black", markersize=6)
    axes.set_yticks(range(len(shown)), [_short(name, 16) for name in shown], fontsize=9, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the image's side; median, 5 to 95 %")
    axes.set_title(f"Side of a box in {found.name}")


def _draw_colour(axes: Axes, profiles: Sequence[Profile]) -> None:
    """Mean and standard deviation of red, green and blue."""
    wide = 0.8 / len(profiles)
    for n, (found, colour) in enumerate(zip(profiles, _node_colours(len(profiles)), strict=True)):
        stats = found.manifest.stats
        for channel, ink in enumerate(("#dc2626", "#16a34a", "#2563eb")):
            place = channel + (n - (len(profiles) - 1) / 2) * wide
            mean, deviation = stats.channel_mean[channel], stats.channel_std[channel]
            low, high = max(0.0, mean - deviation), min(1.0, mean + deviation)
            axes.bar(place, high - low, wide * 0.8, low, color=ink, alpha=0.25)
            axes.scatter(place, mean, color=colour, zorder=3, s=30)
    axes.set_xticks(range(3), ["red", "green", "blue"])
    axes.set_ylim(0, 1.05)
    axes.grid(axis="x", visible=False)
    axes.set_title("Colour: mean ± deviation")


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
