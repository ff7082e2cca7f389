"""`xfer fit`."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def fit(recipe: Path, *overrides: str, seeds: Annotated[int | None, Parameter(negative="")] = None) -> None:
    """Train a recipe in one process, without Ray.

        xfer fit recipe.yaml
        xfer fit recipe.yaml data.root=data/pacs train.steps=300
        xfer fit recipe.yaml name=wide --seeds 5
        xfer fit task.yaml model.from=runs/animals/bundle transfer.mode=quant name=flowers

    Writes the run folder: recipe.yaml, metrics.jsonl, checkpoints/. The same command again goes on from the newest
    checkpoint. With data.validation: leave_one_source_out, a run without each source comes first. model.from begins
    with another run or bundle, and transfer.mode says what of it is trained: full, staged, feature (its head) or quant
    (the head of a packed model); with transfer.head: keep it answers the old classes too. Any value of the recipe is
    changed by its dotted path; `docs/xfer.md` lists them all.

    Parameters
    ----------
    recipe
        YAML with the sections data, model, train, quantize.
    overrides
        `dotted.path=value`, any number of them.
    seeds
        Train this many runs, each with seeds of its own (train.seed and data.seed, plus 0, 1, ...), into
        seeds/0, seeds/1, ... of the run folder, and sum them up: mean accuracy over seeds with its 95 % interval.
        Two such folders are compared seed by seed with xfer compare.
    """
    from xfer import surface
    from xfer.cli.ending import run_ending, seeds_ending

    if seeds is not None:
        print(seeds_ending(surface.fit(recipe, overrides, seeds=seeds).folder))
    else:
        print(run_ending(surface.fit(recipe, overrides).recipe))
