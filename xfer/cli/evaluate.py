"""`xfer evaluate`, and where its numbers are kept."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from shards.settings import ConfigError

if TYPE_CHECKING:
    from xfer.bundle import Trained
    from xfer.config import Recipe


def evaluate(
    model: Path,
    *overrides: str,
    split: Annotated[Literal["all", "validation", "test"], Parameter(help="Which held-out data.")] = "all",
) -> None:
    """Accuracy of a run or a bundle on its validation and test sources, with 95 % intervals.

        xfer evaluate runs/pacs
        xfer evaluate runs/pacs/bundle --split test

    A bundle keeps no data paths: they come from the run folder it lies in.

    Parameters
    ----------
    model
        A run folder or a bundle folder.
    overrides
        `dotted.path=value` changes to the run's recipe, such as data.root=...
    """
    from shards.loading.open import open_data
    from xfer.bundle import open_model

    trained, recipe = open_model(model), recipe_of(model, overrides)
    data = open_data(recipe.data)
    wanted = {"validation": data.validation, "test": data.test}
    if split != "all":
        wanted = {split: wanted[split]}
    if not any(wanted.values()):
        raise ConfigError(f"{model}: its recipe has no {split if split != 'all' else 'held-out'} data to evaluate on")
    print(f"model: {model}, weights {trained.weights_bytes / 1e6:.2f} MB ({trained.weights_file})")
    result = {part: _scores(trained, subsets, recipe, part) for part, subsets in wanted.items() if subsets}
    _record(model, result)


def _scores(trained: "Trained", subsets: tuple, recipe: "Recipe", part: str) -> dict:
    from xfer.evaluate import evaluate_subsets, unknown_classes
    from xfer.metrics import mean_accuracy

    scores = evaluate_subsets(trained.model, subsets, recipe.data, trained.classes, f"evaluate {part}")
    print(f"\n{part:<24}{'images':>8}{'accuracy':>10}   95 % interval")
    for name, score in scores.items():
        low, high = score.interval
        print(f"  {name:<22}{score.count:>8}{100 * score.accuracy:>8.1f} %   {100 * low:.1f} - {100 * high:.1f}")
    if len(scores) > 1:
        print(f"  {'mean of sources':<22}{'':>8}{100 * mean_accuracy(scores):>8.1f} %")
    for name, classes in unknown_classes({subset.name: subset.classes for subset in subsets}, trained.classes).items():
        print(f"  {name}: not counted, the model has no such class: {', '.join(classes)}")
    return {
        name: {"correct": s.correct, "count": s.count, "accuracy": s.accuracy, "interval": s.interval,
               "per_class": dict(s.per_class)}
        for name, s in scores.items()
    }  # fmt: skip


def _record(model: Path, result: dict) -> None:
    """evaluation.json beside the model; it also counts how often the test data was opened."""
    beside = model.parent if (model / "manifest.json").exists() else model
    path = beside / ("evaluation.json" if beside == model else f"evaluation-{model.name}.json")
    before = json.loads(path.read_text()) if path.is_file() else {}
    reads = before.get("test_reads", 0) + ("test" in result)
    path.write_text(json.dumps({**before, **result, "test_reads": reads}, indent=1))


def recipe_of(model: Path, overrides: tuple[str, ...]) -> "Recipe":
    """The recipe a run was made from: in the run folder itself, or beside the bundle."""
    from shards.settings import load
    from xfer.config import Recipe

    for folder in (model, model.parent):
        path = folder / "recipe.yaml"
        if path.is_file() and not (folder / "weights.safetensors").exists():
            return load(path, Recipe, overrides)
    raise ConfigError(f"{model}: no run folder with a recipe.yaml here or around it")
