"""One self-contained HTML page from what a run or a study left on disk: figures first, numbers beside them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from shards.format.whole import write_text
from shards.loading.damage import read_damage
from shards.settings import ConfigError, load
from shards.text import counted
from tuning.config import Study
from tuning.pareto import choose, describe, front, hypervolume, remarks
from tuning.record import Row, num_trials, read_rows
from xfer import figures
from xfer.bundle import open_model
from xfer.folds import score_rows
from xfer.run import read_metrics

PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1e293b; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #e2e8f0; padding-bottom: .3rem }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.row > figure { margin: 0; flex: 1 1 26rem; max-width: 34rem } svg { width: 100%; height: auto }
figcaption { color: #475569; font-size: .9rem } table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0 }
td, th { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #e2e8f0 } td.n, th.n { text-align: right }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem } .tiles figure { margin: 0; width: 8.5rem }
.tiles img { width: 100%; image-rendering: auto; border-radius: 4px } .wide img { max-width: 100% }
.wrong { color: #b91c1c } .chosen td { background: #fef9c3 }
</style></head><body>
<h1>{{ title }}</h1><p>{{ lead }}</p>
{% for s in sections %}<section><h2>{{ s.title }}</h2>{% if s.text %}<p>{{ s.text }}</p>{% endif %}
{% if s.plots %}<div class="row">{% for svg, caption in s.plots %}<figure>{{ svg | safe }}
<figcaption>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% if s.tiles %}<div class="tiles">{% for uri, caption, good in s.tiles %}<figure>
<img src="{{ uri }}" alt="{{ caption }}">
<figcaption{% if not good %} class="wrong"{% endif %}>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% if s.table %}<table><tr>{% for c in s.table[0] %}<th>{{ c }}</th>{% endfor %}</tr>
{% for r in s.table[1:] %}<tr{% if loop.index0 == s.marked %} class="chosen"{% endif %}>
{% for c in r %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</table>{% endif %}</section>{% endfor %}
</body></html>
""",
    autoescape=True,
)


@dataclass
class Section:
    """A heading with any of: text, plots (SVG, caption), tiles (image URI, caption, right or wrong), a table (header
    first).
    """

    title: str
    text: str = ""
    plots: Sequence[tuple[str, str]] = ()
    tiles: Sequence[tuple[str, str, bool]] = ()
    table: Sequence[Sequence[Any]] = ()
    marked: int | None = field(default=None)  # row of the table to stand out


def write_report(folder: Path) -> Path:
    """report.html of a run or a study folder. Raises ConfigError if the folder is neither, or has nothing to show
    yet.
    """
    if (folder / "trials.jsonl").is_file():
        return write_page(folder / "report.html", f"Search {folder.name}", "", study_sections(folder))
    if (folder / "recipe.yaml").is_file():
        return write_page(folder / "report.html", f"Run {folder.name}", "", run_sections(folder))
    raise ConfigError(f"{folder}: neither a run folder (recipe.yaml) nor a study folder (trials.jsonl)")


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes the page whole or not at all."""
    write_text(path, PAGE.render(title=title, lead=lead, sections=sections))
    return path


def run_sections(folder: Path) -> list[Section]:
    """Training, fusion weights and evaluation of a run."""
    rows = read_metrics(folder)
    if not rows:
        raise ConfigError(f"{folder}: nothing was logged yet; run the training command again")
    steps = max(row["step"] for row in rows)
    plots = [(figures.loss_curve(rows), "Loss of each step (pale) and its running mean.")]
    if any("accuracy" in row for row in rows):
        plots.append((figures.accuracy_curve(rows), "On the held-out part of each training source."))
    sections = [Section("Training", f"{steps} steps.", plots)]
    if left_out := score_rows(folder):
        text = "Each training source, scored by the model of a run that never saw it."
        sections.append(Section("Leave one source out", text, table=left_out))
    weights = open_model(folder).model.fusion_weights
    if weights:
        caption = "w = softmax(alpha): how much each branch counts."
        sections.append(Section("Fusion weights", plots=[(figures.weight_bars(weights), caption)]))
    lost = [[loss[name] for name in ("source", "shard", "key", "reason")] for loss in read_damage(folder)]
    if lost:
        told = f"Replaced by others of their source: {counted(len(lost), 'damaged sample')}."
        sections.append(Section("Damage", told, table=[["source", "shard", "sample", "reason"], *lost]))
    files = {"float32": folder / "evaluation.json"}
    files |= {path.stem.removeprefix("evaluation-"): path for path in sorted(folder.glob("evaluation-*.json"))}
    return sections + evaluation_sections(files)


def evaluation_sections(files: Mapping[str, Path]) -> list[Section]:
    """Accuracy by source from what `xfer evaluate` wrote, by label; files that are not there are left out."""
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    table: list[list[Any]] = [["model", "source", "held out as", "images", "accuracy", "95 % interval"]]
    for label, path in files.items():
        if not path.is_file():
            continue
        result = json.loads(path.read_text())
        for part in ("validation", "test"):
            for source, score in result.get(part, {}).items():
                low, high = score["interval"]
                groups.setdefault(label, {})[source] = (score["accuracy"], low, high)
                what = "part of a training source" if part == "validation" else "never trained on"
                row = [label, source, what, score["count"], _percent(score["accuracy"])]
                table.append([*row, f"{100 * low:.1f} - {100 * high:.1f}"])
    if not groups:
        return []
    plot = (figures.accuracy_bars(groups), "Bars: accuracy; lines: 95 % interval.")
    return [Section("Accuracy by source", plots=[plot], table=table)]


def study_sections(folder: Path) -> list[Section]:
    """The search: accuracy against size, the front's rows, the baselines, and what failed."""
    rows = read_rows(folder)
    study = load(folder / "study.yaml", Study)
    failed = [row for row in rows if row.error]
    best = choose(rows, study.search.tolerance)
    told = f"{num_trials(rows)} trials, {len(failed)} failed, over {', '.join(study.space)}."
    sections = [Section("Search", f"{told} No trial has succeeded, so there is nothing to choose from.")]
    if best is not None:
        sections = [_search_section(folder, rows, best, study, told)]
    if failed:
        head = ["trial", "values", "attempts", "host", "error"]
        body = [[r.trial, describe(r), r.attempt, r.host, r.error] for r in failed]
        sections.append(Section("Failed trials", table=[head, *body]))
    return sections


def _search_section(folder: Path, rows: Sequence[Row], best: Row, study: Study, told: str) -> Section:
    good, best_of = [row for row in rows if row.error is None], front(rows)
    reference = json.loads((folder / "float.json").read_text()) if (folder / "float.json").is_file() else None
    plot = figures.front_scatter(
        [(row.bytes, row.accuracy) for row in good],
        [(row.bytes, row.accuracy) for row in best_of],
        (best.bytes, best.accuracy),
        (reference["bytes"], reference["accuracy"]) if reference else None,
    )
    sizes = [row.bytes for row in good]
    if min(sizes) == max(sizes):
        spread = "All have one size, so accuracy alone decides."
    else:
        spread = f"Hypervolume {hypervolume(rows, max(sizes)):.3f}."
    tolerance = 100 * study.search.tolerance
    text = f"{told} Chosen: the smallest within {tolerance:g} points of the best. {spread}"
    text = " ".join([text, *(f"Note: {remark}." for remark in remarks(rows, best, study.search.tolerance))])
    shown = [*best_of, *(row for row in [best, *good] if (row.baseline or row is best) and row not in best_of)]
    table: list[list[Any]] = [["bytes", "accuracy", "95 % interval", "values"]]
    for row in shown:
        low, high = row.interval
        interval = f"{100 * low:.1f} - {100 * high:.1f}" if row.counts else "unknown"
        table.append([f"{row.bytes:,}", _percent(row.accuracy), interval, describe(row)])
    caption = "Accuracy on held-out images of the training sources: the test source is not looked at."
    return Section("Search", text, [(plot, caption)], table=table, marked=shown.index(best))


def tiles(images: Mapping[str, Sequence[tuple[Image.Image, str]]], side: int = 128) -> list[tuple[str, str, bool]]:
    """Images of each source with their labels, as tiles."""
    return [
        (figures.picture(image, side), f"{source}: {label}", True)
        for source, few in images.items()
        for image, label in few
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
