"""What a run's metrics.jsonl tells: its scores, the best of them, what training gained, and whether it is over.

Nothing of it is kept elsewhere: whether a run is done, or patience is at its end, follows from the rows alone, so it is
the same on every rank and after a resume.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from shards.format.whole import read_json, read_json_lines, write_text
from shards.settings import ConfigError
from xfer.checkpoint import Checkpoint, checkpoint_name, chosen
from xfer.config import Recipe
from xfer.train import Row

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
    """Accuracy, mean over validation sources, by the step of each evaluation."""
    return {row["step"]: statistics.fmean(row["accuracy"].values()) for row in rows if row.get("accuracy")}


def probe_score(rows: Sequence[Row]) -> dict[str, float]:
    """Accuracy by validation source of the linear probe that a run began as; empty if it began as none."""
    return next((row["accuracy"] for row in rows if row["step"] == 0 and "accuracy" in row), {})


def model_row(folder: Path) -> Row:
    """The evaluation, as in metrics.jsonl, of the checkpoint that is the model of a run; empty if there is none."""
    name = chosen(folder / "checkpoints")
    scored = [row for row in read_metrics(folder) if row.get("accuracy")]
    return next((row for row in reversed(scored) if name in (None, checkpoint_name(row["step"]))), {})


def against_probe(folder: Path) -> str:
    """What training gained over the linear probe that a run began as, in words; empty if it began as none."""
    found, row = scores(read_metrics(folder)), model_row(folder)
    if len(found) < 2 or 0 not in found or not row:
        return ""
    step = row["step"]
    first, last, best = 100 * found[0], 100 * found[step], step == best_step(found)  # folds are not chosen one by one
    if step == 0:
        why = "no step scored above" if best else "what was chosen among all folds is"
        what = f"{first:.1f} % on validation (mean of sources)"
        return f"{why} the linear probe it began as, {what}: the probe is the model"
    at = "" if step == max(found) else f" at step {step}{', the best' if best else ''}"
    text = f"validation accuracy {last:.1f} % (mean of sources){at}, {abs(last - first):.1f} points"
    if last > first:
        return f"{text} above the linear probe it began as"
    return (
        f"{text} below the linear probe it began as: training gained nothing. train.select: best would keep the probe; "
        "a lower train.learning_rate, or branches with a later train_from, change less"
    )


def best_step(found: Mapping[int, float]) -> int | None:
    """Of `scores`, the first step with the highest; None: nothing was scored."""
    return max(found, key=lambda step: (found[step], -step), default=None)


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
