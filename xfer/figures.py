"""Numbers become figures: each function takes plain rows and gives SVG text to put into a page, or a PNG file's bytes.

matplotlib's rcParams are afterwards what they were before: whoever calls may draw figures of their own.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from xfer.measure import measure_of, measured

MOST_LABELLED = 12  # curves that a legend can name
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#475569")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 10,
    "text.parse_math": False,  # names of classes may hold dollar signs
    "svg.hashsalt": "xfer",  # the same numbers give the same file
}
MEASURES = (
    ("k-NN accuracy (%)", "knn", lambda value: f"{100 * value:.0f}"),
    ("LogME", "log_evidence", lambda value: f"{value:.2f}"),
    ("H-score", "h_score", lambda value: f"{value:.2f}"),
)
Values = ParamSpec("Values")
Drawn = TypeVar("Drawn", str, bytes)


def _styled(draw: Callable[Values, Drawn]) -> Callable[Values, Drawn]:
    """Draws and writes in our style, without leaving it behind."""

    @wraps(draw)
    def drawn(*values: Values.args, **options: Values.kwargs) -> Drawn:
        with matplotlib.rc_context(STYLE):
            return draw(*values, **options)

    return drawn


@_styled
def loss_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Training loss by step, with its running mean over about a twentieth of the run."""
    losses = [loss for row in rows if "losses" in row for loss in row["losses"]]
    figure, axes = _axes("step", "training loss")
    axes.plot(range(1, len(losses) + 1), losses, color=COLOURS[0], alpha=0.3, linewidth=1)
    span = max(1, len(losses) // 20)
    means = [sum(losses[max(0, i - span) : i + 1]) / len(losses[max(0, i - span) : i + 1]) for i in range(len(losses))]
    axes.plot(range(1, len(losses) + 1), means, color=COLOURS[0], linewidth=2)
    axes.set_ylim(bottom=0)
    return _svg(figure)


@_styled
def accuracy_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy, or the task's measure, of each validation source by step."""
    rows = [row for row in rows if measured(row)]
    figure, axes = _axes("step", f"validation {measure_of(rows[-1])} (%)")
    for i, source in enumerate(measured(rows[-1])):
        axes.plot(
            [row["step"] for row in rows],
            [100 * measured(row)[source] for row in rows],
            marker="o",
            label=source,
            color=COLOURS[i % len(COLOURS)],
        )
    axes.set_ylim(0, 102)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return _svg(figure)


@_styled
def accuracy_bars(groups: Mapping[str, Mapping[str, tuple[float, float, float]]], measure: str = "accuracy") -> str:
    """Accuracy, or another measure, by source as bars with intervals. groups: label -> source -> (value, low, high),
    fractions.
    """
    figure, axes = _axes("", f"{measure} (%)")
    sources = list(dict.fromkeys(source for bars in groups.values() for source in bars))
    width = 0.8 / max(1, len(groups))
    for i, (label, bars) in enumerate(groups.items()):
        places = [j + (i - (len(groups) - 1) / 2) * width for j, source in enumerate(sources) if source in bars]
        values = [tuple(100 * v for v in bars[source]) for source in sources if source in bars]
        heights = [v[0] for v in values]
        spread = [[max(0.0, v[0] - v[1]) for v in values], [max(0.0, v[2] - v[0]) for v in values]]
        axes.bar(places, heights, width * 0.92, label=label, color=COLOURS[i % len(COLOURS)], yerr=spread, capsize=3)
    axes.set_xticks(range(len(sources)), sources)
    axes.set_ylim(0, 105)
    axes.grid(axis="x", visible=False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=max(1, len(groups)))
    return _svg(figure)


@_styled
def weight_bars(weights: Mapping[str, float]) -> str:
    """The fusion weight of each branch."""
    figure, axes = _axes("fusion weight", "", height=0.9 + 0.4 * len(weights))
    axes.barh(list(weights), list(weights.values()), color=COLOURS[0])
    for i, value in enumerate(weights.values()):
        axes.text(value + 0.01, i, f"{value:.2f}", va="center")
    axes.set_xlim(0, 1.05)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    return _svg(figure)


@_styled
def step_bars(ranks: Mapping[str, Mapping[str, float]]) -> str:
    """Of each rank by its name, the seconds of a step by part, side by side."""
    figure, axes = _axes("milliseconds a step", "", height=1.3 + 0.4 * len(ranks))
    left = [0.0] * len(ranks)
    for i, part in enumerate(next(iter(ranks.values()))):
        widths = [1000 * parts[part] for parts in ranks.values()]
        axes.barh(list(ranks), widths, left=left, label=part, color=COLOURS[i % len(COLOURS)])
        left = [at + width for at, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    return _svg(figure)


@_styled
def weight_curve(rows: Sequence[Mapping[str, Any]]) -> str:
    """The fusion weight of each branch by step, of rows that have `fusion_weights`."""
    rows = [row for row in rows if "fusion_weights" in row]
    figure, axes = _axes("step", "fusion weight")
    for i, name in enumerate(rows[-1]["fusion_weights"]):
        weights = [row["fusion_weights"][name] for row in rows]
        axes.plot([row["step"] for row in rows], weights, label=name, color=COLOURS[i % len(COLOURS)])
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return _svg(figure)


@_styled
def confusion(answers: Mapping[str, Mapping[str, int]], names: Sequence[str]) -> str:
    """How many images of each class (rows) got which answer (columns); colour: the share of the row."""
    counts = [[answers.get(truth, {}).get(said, 0) for said in names] for truth in names]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    figure, axes = _axes("answer", "class", height=1.6 + 0.28 * len(names))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            if count:
                colour = "white" if shares[i][j] > 0.5 else COLOURS[5]
                axes.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=8)
    return _svg(figure)


@_styled
def transfer_maps(pairs: Sequence[Mapping[str, Any]]) -> str:
    """k-NN accuracy, LogME and H-score of each source (rows) on each target (columns), a row of `pairs` each. Colour:
    between the least and the most on that target, for the values of two targets cannot be compared.
    """
    sources, targets = (list(dict.fromkeys(pair[end] for pair in pairs)) for end in ("source", "target"))
    figure = Figure(figsize=(2.2 + 3 * (1 + 0.8 * len(targets)), 1.6 + 0.4 * len(sources)), layout="constrained")
    panels = figure.subplots(1, 3, squeeze=False)[0]
    for axes, (what, key, form) in zip(panels, MEASURES, strict=True):
        values = {(p["source"], p["target"]): p[key] for p in pairs if p[key] is not None}
        shades = [[_shade(values, source, target) for target in targets] for source in sources]
        axes.imshow(shades, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
        for (source, target), value in values.items():
            axes.text(targets.index(target), sources.index(source), form(value), ha="center", va="center", fontsize=8)
        axes.set_title(what)
        axes.set_xticks(range(len(targets)), targets, rotation=45, ha="right")
        axes.set_yticks(range(len(sources)), sources if axes is panels[0] else [""] * len(sources))
        axes.set_xlabel("target")
        axes.grid(visible=False)
    panels[0].set_ylabel("source")
    return _svg(figure)


def _shade(values: Mapping[tuple[str, str], float], source: str, target: str) -> float:
    """From 0, the least on the target, to 1, the most; NaN without a value."""
    of_target = [value for (_, one), value in values.items() if one == target]
    if (source, target) not in values:
        return float("nan")
    return (values[source, target] - min(of_target)) / ((max(of_target) - min(of_target)) or 1.0)


@_styled
def front_scatter(
    points: Sequence[tuple[float, float]],
    front: Sequence[tuple[float, float]],
    chosen: tuple[float, float],
    reference: tuple[float, float] | None,
    measure: str = "accuracy",
) -> str:
    """Accuracy, or another measure, against size: (bytes, accuracy) of all trials, of those beaten by none, the chosen
    one, and the float model.
    """
    figure, axes = _axes("size (MB)", f"{measure} on the search images (%)")
    draw = [(b / 1e6, 100 * a) for b, a in points]
    axes.scatter(*zip(*draw, strict=True), color="#94a3b8", s=22, label="trials")
    line = [(b / 1e6, 100 * a) for b, a in front]
    axes.plot(*zip(*line, strict=True), color=COLOURS[0], marker="o", label="front", drawstyle="steps-post")
    axes.scatter(chosen[0] / 1e6, 100 * chosen[1], marker="*", s=220, color=COLOURS[3], zorder=3, label="chosen")
    if reference:
        axes.axhline(100 * reference[1], color=COLOURS[5], linestyle=":", linewidth=1.5)
        axes.text(
            0.99,
            100 * reference[1],
            f"float32, {reference[0] / 1e6:.1f} MB",
            ha="right",
            va="bottom",
            color=COLOURS[5],
            transform=axes.get_yaxis_transform(),
        )
    axes.legend(frameon=False, loc="lower right")
    return _svg(figure)


@_styled
def sizes_png(points: Sequence[Mapping[str, Any]], measure: str) -> bytes:
    """What packed models lose of their run's accuracy, or other measure, over their size: rows with `bytes`,
    `difference` and its `interval`, 0 to 1, smallest first, and `best` where no smaller one is as good.
    """
    figure, axes = _axes("size (MB)", f"{measure} against the run in float (points)")
    x, y = [row["bytes"] / 1e6 for row in points], [100 * row["difference"] for row in points]
    ends = [[100 * abs(row["interval"][end] - row["difference"]) for row in points] for end in (0, 1)]
    axes.errorbar(x, y, ends, fmt="none", ecolor=COLOURS[5], alpha=0.5, capsize=3, label="95 % interval")
    best = [(a, b) for a, b, row in zip(x, y, points, strict=True) if row["best"]]
    axes.plot(
        *zip(*best, strict=True), color=COLOURS[0], marker="o", drawstyle="steps-post", label="none smaller as good"
    )
    rest = [(a, b) for a, b, row in zip(x, y, points, strict=True) if not row["best"]]
    axes.scatter(*zip(*rest, strict=True), color="#94a3b8", zorder=3) if rest else None
    for number, (a, b) in enumerate(zip(x, y, strict=True), 1):
        axes.annotate(str(number), (a, b), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.axhline(0, color=COLOURS[5], linestyle=":", linewidth=1.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False, loc="lower right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


@_styled
def precision_curves(curves: Mapping[str, Sequence[float]]) -> str:
    """By class the precision at each recall of 0, 1/n, to 1."""
    figure, axes = _axes("recall (%)", "precision (%)")
    for i, (name, values) in enumerate(curves.items()):
        recalls = [100 * place / (len(values) - 1) for place in range(len(values))]
        label = f"{name} {100 * sum(values) / len(values):.1f} %"
        axes.plot(recalls, [100 * value for value in values], label=label, color=f"C{i}" if i > 5 else COLOURS[i])
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)
    if len(curves) <= MOST_LABELLED:
        axes.legend(frameon=False)
    return _svg(figure)


def embedded(image: Image.Image) -> str:
    """An image as an element of a page."""
    return f'<img src="{picture(image)}" style="max-width: 100%">'


def picture(image: Path | Image.Image, side: int | None = None) -> str:
    """An image as a data URI, made smaller so that its longer side is at most `side` pixels."""
    opened = (Image.open(image) if isinstance(image, Path) else image).convert("RGB")
    if side:
        opened.thumbnail((side, side))
    buffer = io.BytesIO()
    opened.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _axes(x: str, y: str, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
