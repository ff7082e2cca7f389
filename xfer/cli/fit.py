"""`xfer fit`."""

from pathlib import Path


def fit(recipe: Path, *overrides: str) -> None:
    """Train a recipe in one process, without Ray.

        xfer fit recipe.yaml
        xfer fit recipe.yaml data.root=data/pacs train.steps=300

    Writes the run folder: recipe.yaml, metrics.jsonl, checkpoints/. The same command again goes on from the newest
    checkpoint. Any value of the recipe is changed by its dotted path; `docs/xfer.md` lists them all.

    Parameters
    ----------
    recipe
        YAML with the sections data, model, train, quantize.
    overrides
        `dotted.path=value`, any number of them.
    """
    from shards.loading.batch import Slot
    from xfer import run
    from xfer.config import Recipe
    from xfer.engine import build_engine
    from xfer.follow import follow
    from xfer.prepare import load_document, prepare

    config = load_document(recipe, Recipe, overrides)
    with run.run_lock(config.folder):
        _, checkpoint = prepare(config)
        done = checkpoint.state.step if checkpoint else 0
        run.begin(config)
        with follow(config.name, config.train.steps, done) as show:
            run.fit(config, Slot(), build_engine, show)
    print(f"trained: {config.folder}\nnext: xfer evaluate {config.folder}")
