"""The report of a run, and of the runs of several seeds, from what they left on disk."""

from pathlib import Path
from statistics import fmean
from typing import Any

from shards.format.whole import read_json
from shards.loading.damage import EVALUATION, TRAINING, read_damage
from shards.settings import ConfigError, load
from shards.text import counted
from xfer import figures
from xfer.bound import bound_text, rank_rows, rank_times
from xfer.bundle import dropped_text, open_model, weights_sha256
from xfer.config import Recipe
from xfer.cost import cost_rows
from xfer.folds import choice_text, score_rows
from xfer.history import against_probe, left_out_scores, read_metrics, with_side_text
from xfer.learn import WEIGHTS, learned_text
from xfer.measure import heading, measure_of, measured
from xfer.metrics import Estimate, mean_of
from xfer.records import is_stale
from xfer.report.dense import dense_sections
from xfer.report.evaluation import evaluation_sections
from xfer.report.mistakes import mistake_sections
from xfer.report.page import Section, percent, sentence, write_page
from xfer.seeds import is_seeded, read_seeds, seed_folder, seed_rows
from xfer.transfer.side import fact_text, read_side
from xfer.transfer.weights import read_chosen


def write_run_report(folder: Path) -> Path:
    """report.html of a run, or of the runs of several seeds. Raises ConfigError if nothing was logged yet."""
    if is_seeded(folder):
        return write_page(folder / "report.html", f"Seeds of {folder.name}", "", seed_sections(folder))
    return write_page(folder / "report.html", f"Run {folder.name}", headline(folder), run_sections(folder))


def headline(folder: Path) -> str:
    """What a run came to, first: its accuracy, and by how much that is above the linear probe it began as."""
    rows = read_metrics(folder)
    result, weights = read_json(folder / "evaluation.json"), weights_sha256(folder)
    said = []
    for part in ("test", "validation"):
        scores = [score for score in result.get(part, {}).values() if not is_stale(score, weights)]
        if scores:
            mean = mean_of([Estimate(measured(score), *score["interval"]) for score in scores])
            interval = f"95 % interval {100 * mean.low:.1f} to {100 * min(mean.high, 1.0):.1f}"
            said.append(f"{part} {measure_of(scores[0])} {percent(mean.value)} ({interval})")
    gained = against_probe(folder)
    scored = [row for row in rows if measured(row)]
    if not gained and not said and scored:
        mean = percent(fmean(measured(scored[-1]).values()))
        said.append(f"validation {measure_of(scored[-1])} {mean}, mean of sources")
    said += [gained] if gained else []
    return sentence("; ".join(said))


def run_sections(folder: Path) -> list[Section]:
    """Training, fusion weights and evaluation of a run."""
    rows = read_metrics(folder)
    if not rows:
        raise ConfigError(f"{folder}: nothing was logged yet; run the training command again")
    steps = max(row["step"] for row in rows)
    plots = []
    if steps:
        plots.append((figures.loss_curve(rows), "Loss of each step (pale) and its running mean."))
    if any(measured(row) for row in rows):
        plots.append((figures.accuracy_curve(rows), "On the held-out part of each training source."))
    text = f"{counted(steps, 'step')}." if steps else "No steps: the linear probe is the model."
    sections = [Section("Training", text, plots)]
    sections += _side_section(folder)
    if left_out := score_rows(folder):
        text, choice = "Each training source, scored by the model of a run that never saw it.", choice_text(folder)
        text = f"{text} {choice}." if choice else text
        sections.append(Section("Leave one source out", text, table=left_out))
    trained, chosen = open_model(folder), read_chosen(folder)
    weights, gone = trained.model.fusion_weights, dropped_text(trained)
    if weights and (len(weights) > 1 or gone):
        caption = "w = softmax(alpha): how much each branch counts."
        plots = [(figures.weight_bars(weights), caption)]
        if any(WEIGHTS in row for row in rows):
            plots.append((figures.weight_curve(rows), "As they were learned."))
        said = learned_text(load(folder / "recipe.yaml", Recipe), rows) or (str(chosen) if chosen else "")
        text = " ".join(sentence(one) for one in (said, gone) if one)
        sections.append(Section("Fusion weights", text, plots))
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
    sections += evaluation_sections(files) + dense_sections(folder) + mistake_sections(folder, files)
    sections += throughput_sections(folder)
    if cost := cost_rows(rows, folder / "checkpoints"):
        apart = " The runs that left a source out are not in it." if left_out_scores(folder) else ""
        sections.append(Section("What it cost", f"Over all starts of the run.{apart}", table=cost))
    return [*sections, Section("Recipe", code=(folder / "recipe.yaml").read_text())]


def _side_section(folder: Path) -> list[Section]:
    """What was learned of side inputs, how much they tell by themselves, and what they bring."""
    found = read_side(folder)
    if not found:
        return []
    leak, fields = found["leak"], found["fields"]
    rows = [[name, fact_text(fact), f"{leak['by_field'][name]:.2f}"] for name, fact in fields.items()]
    said = (
        with_side_text(folder),
        f"a classifier on side inputs alone is right on {percent(leak['accuracy'])} of {leak['samples']:,} training "
        f"samples that were held out of it, the most frequent class alone on {percent(leak['majority'])}: a leak of "
        f"{leak['leak']:.2f}, where 1 would be the class itself",
    )
    text = " ".join(sentence(one) for one in said if one)
    return [Section("Side inputs", text, table=[["field", "in the training data", "leak of it alone"], *rows])]


def throughput_sections(folder: Path) -> list[Section]:
    """Where the time of the ranks' steps went, and what bounded it; none for runs without timing."""
    ranks = rank_times(folder)
    if not ranks:
        return []
    text = bound_text(ranks)
    table = rank_rows(ranks)
    shown = {int(row[0]) for row in table[1:]}
    parts = ("data", "compute", "exchange", "rest")
    bars = {f"rank {one.rank}": {part: getattr(one, part) for part in parts} for one in ranks if one.rank in shown}
    caption = "A mean step of each rank. Exchange: with other ranks, waiting for slower ones included."
    return [Section("Throughput", f"{text}.", [(figures.step_bars(bars), caption)], table=table)]


def seed_sections(folder: Path) -> list[Section]:
    """What several seeds of a recipe came to: the means over them, then each of them."""
    runs = read_seeds(folder)["seeds"]
    first = next(iter(runs.values()))
    names, measure = list(measured(first)), measure_of(first) or "accuracy"
    title = heading(measure)
    each: list[list[Any]] = [["seed", "train.seed", "data.seed", "steps", *names]]
    for k, run in runs.items():
        scores = [percent(measured(run)[name]) for name in names]
        each.append([k, run["train.seed"], run["data.seed"], run["steps"], *scores])
    what = f"The mean of {counted(len(runs), 'run')}, with 95 % intervals over seeds."
    groups: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, means in read_seeds(folder)["sources"].items():
        if "probe" in means:
            groups.setdefault("linear probe", {})[name] = tuple(means["probe"])
        groups.setdefault("trained", {})[name] = tuple(measured(means))
    plots = [(figures.accuracy_bars(groups, measure), "Bars: mean over seeds; lines: 95 % interval.")] if groups else []
    return [
        Section(f"{title} over seeds", what, plots, table=seed_rows(folder)),
        Section(
            "Each seed",
            f"{title} by source. Each run has a report of its own: xfer report FOLDER/seeds/0.",
            table=each,
        ),
        Section("Recipe of seed 0", code=(seed_folder(folder, 0) / "recipe.yaml").read_text()),
    ]
