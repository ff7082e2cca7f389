"""`xfer fit`."""

from pathlib import Path


def fit(recipe: Path, *overrides: str) -> None:
    """Train a recipe in one process, without Ray.

        xfer fit recipe.yaml
        xfer fit recipe.yaml data.root=data/pacs train.steps=300

    Writes the run folder: recipe.yaml, metrics.jsonl, checkpoints/. The same command again goes on from the newest
    checkpoint. With data.validation: leave_one_source_out, a run without each source comes first. Any value of the
    recipe is changed by its dotted path; `docs/xfer.md` lists them all.

    Parameters
    ----------
    recipe
        YAML with the sections data, model, train, quantize.
    overrides
        `dotted.path=value`, any number of them.
    """
    from xfer import surface
    from xfer.folds import scores_text

    folder = surface.fit(recipe, overrides).folder
    if left_out := scores_text(folder):
        print(left_out)
    print(f"trained: {folder}\nnext: xfer evaluate {folder}")
