"""What `xfer fit` and `xfer train` say when training is over: what came of it, and what to call next."""

from pathlib import Path

from shards.config import LEAVE_ONE_OUT
from xfer.bundle import dropped_text, open_model
from xfer.config import Recipe
from xfer.folds import scores_text
from xfer.history import against_probe, ended_early, read_metrics, with_side_text
from xfer.learn import learned_text
from xfer.seeds import seeds_text

ENOUGH_SOURCES = 3  # to learn from two others what holds on each


def run_ending(recipe: Recipe, checkpoint: Path | None = None) -> str:
    """Of a run; with its `checkpoint` if that is to be named."""
    folder = recipe.folder
    where = f"  checkpoint  {checkpoint}" if checkpoint else ""
    learned = learned_text(recipe, read_metrics(folder))
    pruned = dropped_text(open_model(folder)) if recipe.model.fusion.prune else ""
    said = (
        scores_text(folder),
        ended_early(recipe),
        learned,
        pruned,
        against_probe(folder),
        with_side_text(folder),
        on_unseen_sources(recipe),
        f"trained: {folder}",
        where,
    )
    return "\n".join([*filter(None, said), f"next: xfer evaluate {folder}"])


def seeds_ending(folder: Path) -> str:
    """Of the runs of several seeds."""
    return f"{seeds_text(folder)}\ntrained: {folder}\nnext: xfer report {folder}, or xfer compare {folder} OTHER"


def on_unseen_sources(recipe: Recipe) -> str:
    """Where sources left out could choose and nobody asked for it: what it would tell, and at what cost."""
    count = len(recipe.data.sources)
    if count < ENOUGH_SOURCES or not isinstance(recipe.data.validation, float):
        return ""
    return (
        f"validated on parts of its own sources; data.validation={LEAVE_ONE_OUT} would choose the step by, and score, "
        f"each of the {count} sources by a run that never saw it: {count} more runs of this length"
    )
