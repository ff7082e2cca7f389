"""What splits hold, as one page of figures: a colour for each split, a panel for each quantity."""

from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from shards.inspect.figures import GREY, palette, styled
from shards.inspect.preview.stats import Profile
from shards.inspect.preview.stats_text import Row, rows
from shards.text import short

_Parts = Sequence[tuple[dict[str, float], str]]  # of each split: value by class, and its colour
_PANELS, _BARS, _BARS_A_PANEL, _BOXED = 8, 40, 12, 12
_HISTOGRAM, _DOTS = 31, 2000


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
        for found, colour in zip(profiles, palette(len(profiles)), strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(4, len(handles)), fontsize=11)
    return figure


def _panels(profiles: Sequence[Profile]) -> list[Callable[[Axes], None]]:
    sides = {name for found in profiles for name in found.side}
    panels: list[Callable[[Axes], None]] = []
    if any(found.sizes for found in profiles):
        panels.append(partial(_draw_sizes, profiles=profiles))
    reported = [row for row in rows(profiles) if row.name not in ("width", "height")]
    for row in reported[:_PANELS]:
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
    colours = palette(len(profiles))
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
    axes.set_yticks(range(len(names)), [short(name, 24) for name in names], fontsize=9, parse_math=False)
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
            label = f"{short(ranked[at], 24)}: " + form.format(heights[at])
            side = "left" if at <= len(ranked) / 2 else "right"
            axes.annotate(label, (at + 1, heights[at]), (4, 8), textcoords="offset points", fontsize=9, ha=side)
    axes.set_yscale("symlog" if any(not value for values, _ in parts for value in values.values()) else "log")
    axes.set_xlabel(f"{len(names):,} classes, from the most to the least frequent")
    axes.margins(x=0.02, y=0.15)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _draw_sizes(axes: Axes, profiles: Sequence[Profile]) -> None:
    """Each size a dot, the larger the more images have it."""
    for found, colour in zip(profiles, palette(len(profiles)), strict=True):
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
    for spread, colour in zip(row.spreads, palette(len(row.spreads)), strict=True):
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
    parts, colours = [], palette(len(profiles))
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
    axes.set_yticks(range(len(shown)), [short(name, 16) for name in shown], fontsize=9, parse_math=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("% of the image's side; median, 5 to 95 %")
    axes.set_title(f"Side of a box in {found.name}")


def _draw_colour(axes: Axes, profiles: Sequence[Profile]) -> None:
    """Mean and standard deviation of red, green and blue."""
    wide = 0.8 / len(profiles)
    for n, (found, colour) in enumerate(zip(profiles, palette(len(profiles)), strict=True)):
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
