"""A data plan as one picture: which node reads which shards when; blend, repeats, download volume, disk."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from shards.inspect.figures import COLOURS, GREY, MUTED, palette, styled
from shards.inspect.plan.numbers import DataPlan
from shards.inspect.plan.timeline import Timeline
from shards.text import size

_SHOWN = 8


@styled
def plan_figure(found: DataPlan, timelines: Sequence[Timeline]) -> Figure:
    """A data plan: above, which node reads which shards when; below, blend, repeats, download volume and disk."""
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    above, below = np.ravel(figure.subfigures(2, 1, squeeze=False, height_ratios=(1.15, 1)))
    colours = palette(found.world.nodes)
    panels = above.subplots(1, len(timelines), squeeze=False)[0]
    for axes, timeline in zip(panels, timelines, strict=True):
        _draw_timeline(axes, timeline, colours)
    panels[0].set_ylabel("shards, as the epoch shuffles them")
    nodes = found.world.nodes
    if 1 < nodes <= _SHOWN:
        handles = [Line2D([], [], marker="o", linestyle="", color=colours[n], label=f"node {n}") for n in range(nodes)]
        above.legend(handles=handles, loc="outside upper right", ncols=nodes, handletextpad=0.1, columnspacing=1)
    reported = f", colour: node, from 0 (blue) to {nodes - 1} (red)" if nodes > _SHOWN else ""
    above.suptitle(f"Who reads what when{reported}", x=0.01, ha="left", weight="bold")
    shares, repeats, downloads, disk = below.subplots(1, 4, width_ratios=(1.15, 1.15, 1, 1))
    _draw_shares(shares, found)
    _draw_repeats(repeats, found)
    _draw_downloads(downloads, found, colours)
    _draw_disk(disk, found)
    return figure


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


def _draw_shares(axes: Axes, found: DataPlan) -> None:
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


def _draw_repeats(axes: Axes, found: DataPlan) -> None:
    """Epochs of each source, as they add up."""
    seen = found.survey
    largest = sorted(found.sources, key=lambda source: -source.given)
    for n, source in enumerate(largest):
        counts = seen.chances.counts[:, found.order.names.index(source.name)]
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


def _draw_downloads(axes: Axes, found: DataPlan, colours: Sequence[str]) -> None:
    """What each node fetches of one epoch, against its fair part and all of it."""
    nodes = found.world.nodes
    parts = 100 * found.fetched("once") / found.size
    axes.bar(range(nodes), parts, color=colours, width=0.8)
    if nodes > 1:
        box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.axhline(100 / nodes, color="black", linewidth=1, linestyle=":")
        axes.text((nodes - 1) / 2, 103 / nodes, "an even part", ha="center", va="bottom", fontsize=9, bbox=box)
    axes.set_title(
        f"Download volume of an epoch: {found.copies:.2f} x {size(found.size)}" + ("" if found.is_fetched else "*")
    )
    axes.set_xlabel("node" if found.is_fetched else "node   (* from a store; all sources are local)")
    axes.set_ylabel("fetched, of the data (%)")
    axes.set_ylim(0, max(1.2 * max(parts), 125 / nodes))
    axes.set_xticks(range(0, nodes, -(-nodes // _SHOWN)))
    axes.grid(axis="x", visible=False)


def _draw_disk(axes: Axes, found: DataPlan) -> None:
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


def _step_axis(axes: Axes, found: DataPlan) -> None:
    axes.set_xlabel("step")
    axes.set_xlim(0, found.run.steps)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    for step in found.stages[1:]:
        axes.axvline(step, color="black", linewidth=0.8, linestyle=":")
