"""What `xfer fit` and `xfer train` say when training is over: what came of it, and what to call next."""

from pathlib import Path

from xfer.bundle import dropped_text, open_model
from xfer.config import Recipe
from xfer.folds import scores_text
from xfer.history import against_probe, ended_early, read_metrics
from xfer.learn import learned_text
from xfer.seeds import seeds_text


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
        f"trained: {folder}",
        where,
    )
    return "\n".join([*filter(None, said), f"next: xfer evaluate {folder}"])


def seeds_ending(folder: Path) -> str:
    """Of the runs of several seeds."""
    return f"{seeds_text(folder)}\ntrained: {folder}\nnext: xfer report {folder}, or xfer compare {folder} OTHER"
