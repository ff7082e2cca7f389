"""One self-contained HTML page from what a run or a study left on disk: figures first, numbers beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
from PIL import Image

from shards.decode import DecodeError
from shards.format.whole import read_json, write_text
from shards.loading.damage import EVALUATION, TRAINING, read_damage
from shards.loading.open import open_data
from shards.loading.reader import DamagedSampleError, read_sample
from shards.loading.subset import Subset
from shards.loading.transforms import centre
from shards.settings import ConfigError, load
from shards.text import counted
from tuning.config import Study
from tuning.pareto import choose, describe, front, hypervolume, remarks
from tuning.record import Row, chosen_run, num_trials, read_rows
from xfer import figures
from xfer.bundle import is_bundle, open_model, weights_sha256
from xfer.choice import read_choice
from xfer.config import Recipe
from xfer.cost import cost_rows
from xfer.folds import score_rows
from xfer.history import against_probe, left_out_scores, read_metrics
from xfer.metrics import Estimate, mean_of
from xfer.records import evaluated
from xfer.seeds import is_seeded, read_seeds, seed_folder, seed_rows

MOST_MISTAKES, TILE = 12, 224  # pixels a side
MOST_CLASSES = 30  # that a figure of confusions is readable with
PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1e293b; max-width: 68rem; margin: 2rem auto; padding: 0 1rem }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #e2e8f0; padding-bottom: .3rem }
td:last-child { min-width: 12rem }
.row { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start }
.row > figure { margin: 0; flex: 1 1 26rem; max-width: 34rem } svg { width: 100%; height: auto }
figcaption { color: #475569; font-size: .9rem }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; display: block; overflow-x: auto }
td, th { padding: .25rem .8rem; text-align: left; border-bottom: 1px solid #e2e8f0 } td.n, th.n { text-align: right }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem } .tiles figure { margin: 0; width: 8.5rem }
.tiles img { width: 100%; image-rendering: auto; border-radius: 4px } .wide img { max-width: 100% }
pre { font-size: .85rem; background: #f8fafc; padding: .8rem; overflow-x: auto }
.wrong { color: #b91c1c } .chosen td { background: #fef9c3 }
@media (max-width: 40rem) { td, th { padding: .25rem .4rem } td:last-child { min-width: 0 } }
</style></head><body>
<h1>{{ title }}</h1><p>{{ lead }}</p>
{% for s in sections %}<section><h2>{{ s.title }}</h2>{% if s.text %}<p>{{ s.text }}</p>{% endif %}
{% if s.notes %}<ul>{% for note in s.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
{% if s.plots %}<div class="row">{% for svg, caption in s.plots %}<figure>{{ svg | safe }}
<figcaption>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% if s.tiles %}<div class="tiles">{% for uri, caption, good in s.tiles %}<figure>
<img src="{{ uri }}" alt="{{ caption }}">
<figcaption{% if not good %} class="wrong"{% endif %}>{{ caption }}</figcaption></figure>{% endfor %}</div>{% endif %}
{% if s.table %}<table><tr>{% for c in s.table[0] %}<th>{{ c }}</th>{% endfor %}</tr>
{% for r in s.table[1:] %}<tr{% if loop.index0 == s.marked %} class="chosen"{% endif %}>
{% for c in r %}<td>{{ c }}</td>{% endfor %}</tr>{% endfor %}</table>{% endif %}
{% if s.code %}{% set lines = s.code.count("\n") %}<details{% if lines <= 30 %} open{% endif %}>
<summary>{{ lines }} lines</summary><pre>{{ s.code }}</pre></details>{% endif %}</section>{% endfor %}
</body></html>
""",
    autoescape=True,
)


@dataclass
class Section:
    """A heading with any of: text, notes, plots (SVG, caption), tiles (image URI, caption, right or wrong), a table
    (header first), code.
    """

    title: str
    text: str = ""
    plots: Sequence[tuple[str, str]] = ()
    tiles: Sequence[tuple[str, str, bool]] = ()
    table: Sequence[Sequence[Any]] = ()
    marked: int | None = None  # row of the table to stand out
    notes: Sequence[str] = ()
    code: str = ""


def write_report(folder: Path) -> Path:
    """report.html of a run, of the runs of several seeds, or of a study. Raises ConfigError if the folder is neither,
    or has nothing to show yet.
    """
    if is_bundle(folder):
        raise ConfigError(f"{folder}: a bundle; its report is that of the run or study it was made by: {folder.parent}")
    if (folder / "trials.jsonl").is_file():
        lead = study_headline(folder)
        return write_page(folder / "report.html", f"Search {folder.name}", lead, study_sections(folder))
    if is_seeded(folder):
        return write_page(folder / "report.html", f"Seeds of {folder.name}", "", seed_sections(folder))
    if (folder / "recipe.yaml").is_file():
        return write_page(folder / "report.html", f"Run {folder.name}", headline(folder), run_sections(folder))
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    raise ConfigError(f"{folder}: neither a run folder (recipe.yaml) nor a study folder (trials.jsonl)")


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Writes the page whole or not at all."""
    write_text(path, PAGE.render(title=title, lead=lead, sections=sections))
    return path


def headline(folder: Path) -> str:
    """What a run came to, first: its accuracy, and by how much that is above the linear probe it began as."""
    rows = read_metrics(folder)
    result, weights = read_json(folder / "evaluation.json"), weights_sha256(folder)
    said = []
    for part in ("test", "validation"):
        scores = [score for score in result.get(part, {}).values() if not _is_stale(score, weights)]
        if scores:
            mean = mean_of([Estimate(score["accuracy"], *score["interval"]) for score in scores])
            interval = f"95 % interval {100 * mean.low:.1f} to {100 * min(mean.high, 1.0):.1f}"
            said.append(f"{part} accuracy {_percent(mean.value)} ({interval})")
    gained = against_probe(folder)
    scored = [row["accuracy"] for row in rows if row.get("accuracy")]
    if not gained and not said and scored:
        said.append(f"validation accuracy {_percent(fmean(scored[-1].values()))}, mean of sources")
    said += [gained] if gained else []
    return _sentence("; ".join(said))


def study_headline(folder: Path) -> str:
    """What training the chosen run gained over its linear probe; empty if it began as none."""
    study = load(folder / "study.yaml", Study)
    best = choose(read_rows(folder), study.search.tolerance)
    return _sentence(against_probe(chosen_run(study, folder, best))) if best else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def run_sections(folder: Path) -> list[Section]:
    """Training, fusion weights and evaluation of a run."""
    rows = read_metrics(folder)
    if not rows:
        raise ConfigError(f"{folder}: nothing was logged yet; run the training command again")
    steps = max(row["step"] for row in rows)
    plots = []
    if steps:
        plots.append((figures.loss_curve(rows), "Loss of each step (pale) and its running mean."))
    if any("accuracy" in row for row in rows):
        plots.append((figures.accuracy_curve(rows), "On the held-out part of each training source."))
    text = f"{counted(steps, 'step')}." if steps else "No steps: the linear probe is the model."
    sections = [Section("Training", text, plots)]
    if left_out := score_rows(folder):
        text, choice = "Each training source, scored by the model of a run that never saw it.", read_choice(folder)
        text = f"{text} {choice.text()}." if choice else text
        sections.append(Section("Leave one source out", text, table=left_out))
    weights = open_model(folder).model.fusion_weights
    if weights and len(weights) > 1:
        caption = "w = softmax(alpha): how much each branch counts."
        sections.append(Section("Fusion weights", plots=[(figures.weight_bars(weights), caption)]))
    for name, title, what in (
        (TRAINING, "Damage", "Replaced by others of their source"),
        (EVALUATION, "Damage in evaluations", "Left out of every score"),
    ):
        lost = [[loss[key] for key in ("source", "shard", "key", "reason")] for loss in read_damage(folder, name)]
        if lost:
            text = f"{what}: {counted(len(lost), 'damaged sample')}."
            sections.append(Section(title, text, table=[["source", "shard", "sample", "reason"], *lost]))
    files = {"float32": folder / "evaluation.json"}
    files |= {path.stem.removeprefix("evaluation-"): path for path in sorted(folder.glob("evaluation-*.json"))}
    sections += evaluation_sections(files) + mistake_sections(folder, files)
    if cost := cost_rows(rows, folder / "checkpoints"):
        apart = " The runs that left a source out are not in it." if left_out_scores(folder) else ""
        sections.append(Section("What it cost", f"Over all starts of the run.{apart}", table=cost))
    return [*sections, Section("Recipe", code=(folder / "recipe.yaml").read_text())]


def seed_sections(folder: Path) -> list[Section]:
    """What several seeds of a recipe came to: the means over them, then each of them."""
    runs = read_seeds(folder)["seeds"]
    names = list(next(iter(runs.values()))["accuracy"])
    each: list[list[Any]] = [["seed", "train.seed", "data.seed", "steps", *names]]
    for k, run in runs.items():
        scores = [_percent(run["accuracy"][name]) for name in names]
        each.append([k, run["train.seed"], run["data.seed"], run["steps"], *scores])
    what = f"The mean of {counted(len(runs), 'run')}, with 95 % intervals over seeds."
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, means in read_seeds(folder)["sources"].items():
        for key in ("probe", "accuracy"):
            if key in means:
                groups.setdefault("trained" if key == "accuracy" else "linear probe", {})[name] = tuple(means[key])
    plots = [(figures.accuracy_bars(groups), "Bars: mean over seeds; lines: 95 % interval.")] if groups else []
    return [
        Section("Accuracy over seeds", what, plots, table=seed_rows(folder)),
        Section(
            "Each seed", "Accuracy by source. Each run has a report of its own: xfer report FOLDER/seeds/0.", table=each
        ),
        Section("Recipe of seed 0", code=(seed_folder(folder, 0) / "recipe.yaml").read_text()),
    ]


def evaluation_sections(files: Mapping[str, Path]) -> list[Section]:
    """Accuracy by source from what `xfer evaluate` wrote, by label; files that are not there are left out. Scores on
    data that is not the recipe's own, and those of other weights than the model has now, are in the table, not in the
    figure.
    """
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    table: list[list[Any]] = [["model", "source", "held out as", "images", "accuracy", "95 % interval"]]
    for label, path in files.items():
        result, weights = read_json(path), weights_sha256(evaluated(path))
        for part in ("validation", "test"):
            for source, score in result.get(part, {}).items():
                low, high = score["interval"]
                what = "part of a training source" if part == "validation" else "never trained on"
                if _is_stale(score, weights):
                    what += "; of an earlier checkpoint: evaluate again"
                else:
                    groups.setdefault(label, {})[source] = (score["accuracy"], low, high)
                table.append([label, source, what, *_score_cells(score)])
        for other in result.get("others", []):
            what = f"{other['split']}: {' '.join(other['changes']) or 'another version of the data'}"
            table += [[label, source, what, *_score_cells(score)] for source, score in other["sources"].items()]
    if len(table) == 1:
        return []
    plots = [(figures.accuracy_bars(groups), "Bars: accuracy; lines: 95 % interval.")] if groups else []
    return [Section("Accuracy by source", plots=plots, table=table), *_confusions(next(iter(files.values())))]


def mistake_sections(folder: Path, files: Mapping[str, Path]) -> list[Section]:
    """The surest mistakes of a run, of its bundles, by label, and of the runs without a source on what these never saw.
    Scores that are known to be of other weights are left out.
    """
    scores: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for label, path in files.items():
        title = "Its surest mistakes" if path.stem == "evaluation" else f"The surest mistakes of {label}"
        result, weights = read_json(path), weights_sha256(evaluated(path))
        parts = {(part, name): one for part in ("validation", "test") for name, one in result.get(part, {}).items()}
        scores[title] = {key: score for key, score in parts.items() if not _is_stale(score, weights)}
    scores["The surest mistakes on sources left out"] = {
        ("train", name): row for name, row in left_out_scores(folder).items()
    }
    found = {title: _surest(of) for title, of in scores.items()}
    subsets = _subsets(folder) if any(found.values()) else {}
    return [_mistakes(title, chosen, subsets) for title, chosen in found.items() if chosen]


_Surest = list[tuple[tuple[str, str], str, Mapping[str, Any]]]
"""Part and source, version of the data, and the mistake."""


def _surest(scores: Mapping[tuple[str, str], Mapping[str, Any]]) -> _Surest:
    """The mistakes with the highest confidence, sources taking turns; those of a source together, the surest first."""
    turns = [
        (place, -one["confidence"], key, one)
        for key, score in scores.items()
        for place, one in enumerate(score.get("mistakes", ()))
    ]
    chosen = sorted(turns, key=lambda turn: turn[:2])[:MOST_MISTAKES]
    return [(key, scores[key]["version"], one) for _, _, key, one in sorted(chosen, key=lambda turn: turn[2])]  # stable


def _mistakes(title: str, chosen: _Surest, subsets: Mapping[tuple[str, str], Subset]) -> Section:
    """With their images; one that is no longer there, or damaged, is said."""
    shown, notes = [], []
    for (part, source), version, one in chosen:
        try:
            image = _image(subsets.get((part, source)), version, one["row"])
        except (ConfigError, DamagedSampleError, DecodeError) as error:
            notes.append(f"{source}, {one['truth']} taken for {one['answer']}: not shown, {error}")
            continue
        caption = f"{source}: {one['truth']}, taken for {one['answer']} ({100 * one['confidence']:.0f} %)"
        shown.append((figures.picture(image), caption, False))
    text = "Held-out images that the model named wrongly with the highest confidence: what they are, and what it said."
    return Section(title, text, tiles=shown, notes=notes)


def _subsets(folder: Path) -> dict[tuple[str, str], Subset]:
    """By part and source, as far as they are still there."""
    try:
        data = open_data(load(folder / "recipe.yaml", Recipe).data)
    except ConfigError:
        return {}
    return {(part, one.name): one for part in ("train", "validation", "test") for one in getattr(data, part)}


def _image(subset: Subset | None, version: str, row: int) -> Image.Image:
    """The sample at a row of the split's index: the square of it that evaluation sees. Raises ConfigError,
    DamagedSampleError and DecodeError.
    """
    if subset is None:
        raise ConfigError("its source is not there any more")
    if subset.manifest.version != version:
        raise ConfigError("its source is another version now")
    sample = read_sample(replace(subset, filters=()), row)
    return Image.fromarray(centre(sample.image, TILE).image.permute(1, 2, 0).numpy())


def _is_stale(score: Mapping[str, Any], weights: str | None) -> bool:
    """Whether a score is known to be of other weights."""
    return weights is not None and score.get("weights", weights) != weights


def _confusions(path: Path) -> list[Section]:
    """What the model takes its classes for, by source."""
    result = read_json(path)
    plots = []
    for part in ("validation", "test"):
        for source, score in result.get(part, {}).items():
            answers = score.get("confusion", {})
            names = sorted({*answers, *(said for row in answers.values() for said in row)})
            if 1 < len(names) <= MOST_CLASSES:
                plots.append((figures.confusion(answers, names), f"{source}: how many images of a class, by answer."))
    return [Section("What is taken for what", plots=plots)] if plots else []


def _score_cells(score: Mapping[str, Any]) -> list[Any]:
    low, high = score["interval"]
    return [score["count"], _percent(score["accuracy"]), f"{100 * low:.1f} - {100 * high:.1f}"]


def study_sections(folder: Path) -> list[Section]:
    """The search: accuracy against size, the front's rows, the baselines, and what failed."""
    rows = read_rows(folder)
    study = load(folder / "study.yaml", Study)
    failed = [row for row in rows if row.error]
    best = choose(rows, study.search.tolerance)
    counts = f"{num_trials(rows)} trials, {len(failed)} failed, over {', '.join(study.space)}."
    sections = [Section("Search", f"{counts} No trial has succeeded, so there is nothing to choose from.")]
    if best is not None:
        sections = [_search_section(folder, rows, best, study, counts)]
    if failed:
        head = ["trial", "values", "attempts", "host", "error"]
        body = [[r.trial, describe(r), r.attempt, r.host, r.error] for r in failed]
        sections.append(Section("Failed trials", table=[head, *body]))
    return sections


def _search_section(folder: Path, rows: Sequence[Row], best: Row, study: Study, counts: str) -> Section:
    good, best_of = [row for row in rows if row.error is None], front(rows)
    reference = read_json(folder / "float.json")
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
        spread = f"Hypervolume {hypervolume(rows, max(sizes)):.3f} (full accuracy at no bytes would be 1)."
    tolerance = 100 * study.search.tolerance
    text = f"{counts} Chosen: the smallest within {tolerance:g} point{'s' * (tolerance != 1)} of the best. {spread}"
    notes = [f"{remark}." for remark in remarks(rows, best, study.search.tolerance)]
    shown = [*best_of, *(row for row in [best, *good] if (row.baseline or row is best) and row not in best_of)]
    table: list[list[Any]] = [["bytes", "accuracy", "95 % interval", "values"]]
    for row in shown:
        low, high = row.interval
        interval = f"{100 * low:.1f} - {100 * high:.1f}" if row.counts else "unknown"
        table.append([f"{row.bytes:,}", _percent(row.accuracy), interval, describe(row)])
    caption = "Accuracy on held-out images of the training sources: the test source is not looked at."
    return Section("Search", text, [(plot, caption)], table=table, marked=shown.index(best), notes=notes)


def tiles(images: Mapping[str, Sequence[tuple[Image.Image, str]]], side: int = 128) -> list[tuple[str, str, bool]]:
    """Images of each source with their labels, as tiles."""
    return [
        (figures.picture(image, side), f"{source}: {label}", True)
        for source, few in images.items()
        for image, label in few
    ]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"
