"""What a run's metrics.jsonl tells: its scores, the best of them, what training gained, and whether it is over; and the
scores of the runs that leave a source out (xfer/folds.py), where there are any.

Whether a run is done, or patience is at its end, follows from the rows alone, so it is
the same on every rank and after a resume.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.format.whole import read_json, read_json_lines, write_text
from shards.settings import ConfigError
from shards.text import markdown, table
from xfer.checkpoint import Checkpoint, checkpoint_name, chosen
from xfer.config import Recipe
from xfer.measure import WITH_SIDE, measured
from xfer.metrics import Estimate, from_text, mean_of, paired_difference
from xfer.train import Row
from xfer.trained_on import seen_text

LEFT_OUT = "leave_one_source_out.json"  # of a run folder: what xfer/folds.py found


def read_metrics(folder: Path, until: int | None = None) -> list[Row]:
    """The rows of a run's metrics.jsonl, up to the step `until` if given; a half-written last line is left out. Raises
    ConfigError if it is damaged.
    """
    rows = read_json_lines(folder / "metrics.jsonl")
    broken = next((number for number, row in enumerate(rows, 1) if not isinstance(row.get("step"), int)), None)
    if broken:
        raise ConfigError(f"{folder / 'metrics.jsonl'}: line {broken} is damaged, it has no step; take the line out")
    return [row for row in rows if until is None or row["step"] <= until]


def write_metrics(folder: Path, rows: Iterable[Row]) -> None:
    """In place of those that are there."""
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def scores(rows: Iterable[Row]) -> dict[int, float]:
    """Accuracy or the task's measure, mean over validation sources, by the step of each evaluation: what a checkpoint
    is chosen by. Of a model that takes side inputs the mean of what it comes to without and with them.
    """
    found = {row["step"]: (measured(row), row.get(WITH_SIDE) or measured(row)) for row in rows if measured(row)}
    return {step: statistics.fmean(statistics.fmean(one.values()) for one in both) for step, both in found.items()}


def probe_row(rows: Sequence[Row]) -> Row:
    """The evaluation of the linear probe that a run began as; empty if it began as none."""
    return next((row for row in rows if row["step"] == 0 and "accuracy" in row), {})


def model_row(folder: Path) -> Row:
    """The evaluation, as in metrics.jsonl, of the checkpoint that is the model of a run; empty if there is none."""
    name = chosen(folder / "checkpoints")
    scored = [row for row in read_metrics(folder) if measured(row)]
    return next((row for row in reversed(scored) if name in (None, checkpoint_name(row["step"]))), {})


def with_side_text(folder: Path) -> str:
    """What the model of a run comes to with side inputs and on images alone, in words; empty if it takes none."""
    row = model_row(folder)
    if not row.get(WITH_SIDE):
        return ""
    alone, both = (100 * statistics.fmean(values.values()) for values in (measured(row), row[WITH_SIDE]))
    return f"validation accuracy on images alone {alone:.1f} %, with side inputs {both:.1f} % (mean of sources)"


def left_out_scores(folder: Path) -> dict[str, dict[str, Any]]:
    """By the source that was left out: correct, count, accuracy, interval, per_class, version; not_counted: its images
    of classes that the model did not know; steps; probe: accuracy of the linear probe that the run began as, and
    gained, as of `gains`, None if it began as none. Empty if there is nothing yet.
    """
    return read_json(folder / LEFT_OUT).get("sources", {})


def probe_and_model(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy by source of the linear probe that a run began as, empty if it began as none, and of its model: on what
    it holds out, or on each source by the run that never saw it.
    """
    if rows := left_out_scores(folder):
        probe = {name: row["probe"] for name, row in rows.items() if row.get("probe") is not None}
        return probe, {name: measured(row) for name, row in rows.items()}
    return measured(probe_row(read_metrics(folder))), measured(model_row(folder))


def gains(folder: Path) -> dict[str, Estimate]:
    """By source, how much more often the model of a run is right than the linear probe that it began as, on the same
    images, with a paired interval. Empty if it began as none, or is of a version that did not keep which images are.
    """
    if rows := left_out_scores(folder):
        known = {name: Estimate(*row["gained"]) for name, row in rows.items() if row.get("gained")}
        return known if len(known) == len(rows) else {}
    probe, model = (row.get("right", {}) for row in (probe_row(read_metrics(folder)), model_row(folder)))
    return {name: gain(probe[name], right) for name, right in model.items()} if probe.keys() == model.keys() else {}


def gain(probe: str, model: str) -> Estimate:
    """Of a probe and what came of it, both as `metrics.as_text` keeps which images are right."""
    return paired_difference(from_text(probe), from_text(model))


def against_probe(folder: Path) -> str:
    """What training gained over the linear probe that a run began as, in words; empty if it began as none. And that it
    is validated on images which were trained on before, if it is.
    """
    parts = (_gained(folder), seen_text(folder))
    return "; ".join(filter(None, parts)) if parts[0] else ""


def _gained(folder: Path) -> str:
    probe, model = probe_and_model(folder)
    found, left_out = scores(read_metrics(folder)), left_out_scores(folder)
    trained = any(row["steps"] for row in left_out.values()) if left_out else len(found) > 1
    if not model or probe.keys() != model.keys() or not trained:
        return ""
    step = read_json(folder / LEFT_OUT).get("chosen", {}).get("step") if left_out else model_row(folder)["step"]
    first, last = (100 * statistics.fmean(one.values()) for one in (probe, model))
    best = bool(left_out) or step == best_step(found)  # folds are not chosen one by one
    if step == 0:
        why = "no step scored above" if best else "what was chosen among all folds is"
        where = "on sources it never saw" if left_out else "on validation"
        return f"{why} the linear probe it began as, {first:.1f} % {where} (mean of sources): the probe is the model"
    what = "accuracy on sources it never saw" if left_out else "validation accuracy"
    at = "" if step in (None, max(found, default=step)) else f" at step {step}{', the best' if best else ''}"
    text = f"{what} {last:.1f} % (mean of sources){at}"
    if last > first:
        return f"{text}, {last - first:.1f} points above the linear probe it began as{_trust(gains(folder))}"
    less = f"{first - last:.1f} points below" if last < first else "that of"
    advice = "" if left_out else "train.select: best would keep the probe; "
    return (
        f"{text}, {less} the linear probe it began as: training gained nothing. {advice}a lower train.learning_rate, "
        "or branches with a later train_from, change less"
    )


def _trust(found: Mapping[str, Estimate]) -> str:
    """How sure a gain is, in words; empty if that is not known."""
    if not found:
        return ""
    mean = mean_of(list(found.values()))
    doubt = "; these images do not tell whether training gained" if mean.low <= 0 else ""
    return f" (95 % interval {100 * mean.low:+.1f} to {100 * mean.high:+.1f}{doubt})"


def gain_rows(folder: Path) -> list[list[str]]:
    """What training gained over the linear probe by source, as a table for people, its header first; empty if the run
    began as none, or nothing was trained.
    """
    if not against_probe(folder):
        return []
    probe, model = probe_and_model(folder)
    pairs = {name: (probe[name], model[name]) for name in model}
    if len(pairs) > 1:
        pairs["mean of sources"] = (statistics.fmean(probe.values()), statistics.fmean(model.values()))
    trust = gains(folder)
    trust |= {"mean of sources": mean_of(list(trust.values()))} if trust else {}
    rows = [["source", "its linear probe", "trained", "gained", *(["95 % interval"] if trust else [])]]
    for name, (first, last) in pairs.items():
        gained = round(100 * (last - first), 1) + 0.0  # + 0.0: no -0.0
        cells = [name, f"{100 * first:.1f} %", f"{100 * last:.1f} %", f"{gained:+.1f}"]
        rows.append([*cells, *([f"{100 * trust[name].low:+.1f} to {100 * trust[name].high:+.1f}"] if trust else [])])
    return rows


def gain_text(folder: Path) -> str:
    """The same for a terminal, and in words."""
    rows = gain_rows(folder)
    return "\n".join(["trained from a linear probe:", *table(rows), f"  {against_probe(folder)}"]) if rows else ""


def gain_markdown(folder: Path) -> list[str]:
    """The same for a model card."""
    rows, said = gain_rows(folder), against_probe(folder)
    if not rows:
        return []
    return ["Trained from a linear probe:", "", *markdown(rows), "", f"{said[0].upper()}{said[1:]}.", ""]


def best_step(found: Mapping[int, float]) -> int | None:
    """Of `scores`, the first step with the highest; None: nothing was scored. Where none is above 0 it is the last: a
    detector of few steps finds nothing yet, and its step 0 has a head of chance values.
    """
    return max(found, key=lambda step: (found[step], -step if found[step] else step), default=None)


def is_stalled(found: Mapping[int, float], patience: int | None) -> bool:
    """Whether no evaluation of the last `patience` steps was better than the best one before them."""
    best = best_step(found)
    return best is not None and patience is not None and max(found) - best >= patience


def ended_early(recipe: Recipe) -> str:
    """That training ended before its last step, and why, in words; empty if it did not."""
    found = scores(read_metrics(recipe.folder))
    if not is_stalled(found, recipe.train.patience) or max(found) >= recipe.steps:
        return ""
    return (
        f"ended at step {max(found)} of {recipe.steps}: no accuracy was better than that of step {best_step(found)} "
        f"(train.patience {recipe.train.patience})"
    )


def evaluated(rows: Iterable[Row]) -> set[int]:
    """The steps of all evaluations. One without validation data has no accuracy."""
    return {row["step"] for row in rows if "loss" not in row}


def last_scored(rows: Iterable[Row]) -> int:
    """The step of the newest evaluation; -1: there is none."""
    return max(evaluated(rows), default=-1)


def last_step(recipe: Recipe) -> int:
    """The step that the run of a recipe ends with, if not before by patience: the one that left-out sources chose, or
    the last. Learning rates and stages are those of all steps in any case.
    """
    step = _chosen_by_left_out(recipe)
    return recipe.steps if step is None else step


def _chosen_by_left_out(recipe: Recipe) -> int | None:
    """None: the recipe does not choose so, or no step is chosen yet of as many as it has now."""
    found = read_json(recipe.folder / LEFT_OUT).get("chosen", {}) if recipe.selects_by_left_out else {}
    return found["step"] if found.get("steps") == recipe.steps else None


def is_trained(recipe: Recipe, checkpoint: Checkpoint | None) -> bool:
    """Whether the run of a recipe, with this as its newest checkpoint, has all its steps, saved and scored, or ended
    early: the same command has nothing to do. Never before left-out sources chose the step, where they do.
    """
    if checkpoint is None or (recipe.selects_by_left_out and _chosen_by_left_out(recipe) is None):
        return False
    step, last = checkpoint.state.step, last_step(recipe)
    rows = read_metrics(recipe.folder, step)
    ended = step >= last or is_stalled(scores(rows), recipe.train.patience)
    return ended and last_scored(rows) >= min(step, last)
