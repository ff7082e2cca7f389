"""`xfer evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from shards.settings import ConfigError

if TYPE_CHECKING:
    from shards.config import DataConfig
    from shards.loading.subset import Subset
    from xfer.bundle import Trained
    from xfer.config import Recipe

HELD_OUT = "sources", "test", "validation", "image_size", "resize"
"""Keys of `data` that decide what a score is counted on; where it lies and how fast it is read does not."""


def evaluate(
    model: Path,
    *overrides: str,
    split: Annotated[Literal["all", "validation", "test"], Parameter(help="Which held-out data.")] = "all",
    data: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    save_predictions: Path | None = None,
) -> None:
    """Accuracy (AP, mIoU) of a run or a bundle on held-out data, with 95 % intervals.

        xfer evaluate runs/pacs
        xfer evaluate runs/pacs/bundle --split test
        xfer evaluate runs/pacs data.test.phone.path=data/phone2
        xfer evaluate copied/bundle --data shards/phone --data shards/photo/test
        xfer evaluate runs/several --split test
        xfer evaluate runs/cells --save-predictions said/

    On the validation and test sources of the recipe, which a bundle takes from the run folder it lies in, or on any
    built data sets with --data. Classes are compared by name. The scores are kept in evaluation.json beside the model;
    those on other data than the recipe's own go into a list of their own there. Of a run with data.validation:
    leave_one_source_out, the scores of its folds are shown too. Of a folder of `xfer fit --seeds` every seed is
    evaluated, and then the mean over seeds is shown with its interval.

    Parameters
    ----------
    model
        A run folder, a bundle folder, or a folder of xfer fit --seeds.
    overrides
        `dotted.path=value` changes to the `data` section of the run's recipe.
    data
        A folder of shards, or FOLDER/SPLIT; give the option once for each. Needs no run folder.
    save_predictions
        A folder for what the model says of each image, by part and source: COCO results of a detector, beside the
        truth as COCO has it; masks of a segmenter; class probabilities of a classifier.
    """
    from xfer.measure import measure_of, measured
    from xfer.seeds import is_seeded, mean_text, read_seeds, seed_folder

    if save_predictions and is_seeded(model):
        raise ConfigError("--save-predictions: give one of the seeds' runs, such as FOLDER/seeds/0")
    if not is_seeded(model):
        _evaluate(model, overrides, split, data, save_predictions)
        return
    found = [_evaluate(seed_folder(model, k), overrides, split, data) for k in read_seeds(model)["seeds"]]
    for part in found[0]:
        values = [{name: measured(row) for name, row in one[part].items()} for one in found]
        measure = measure_of(next(iter(found[0][part].values()), {})) or "accuracy"
        print(f"\n{mean_text(values, part, measure)}")


def _evaluate(
    model: Path, overrides: Sequence[str], split: str, data: Sequence[str], save: Path | None = None
) -> dict[str, dict[str, Any]]:
    """Scores a run or a bundle, prints and keeps that; returns the rows that were kept, by part."""
    from xfer.bundle import open_model, trained_on
    from xfer.folds import scores_text
    from xfer.records import record, record_path
    from xfer.saved import check_saveable, start
    from xfer.trained_on import num_trained_on

    trained, left_out = open_model(model), "" if data else scores_text(model)
    if data:
        if overrides or split != "all":
            raise ConfigError("--data: names what is evaluated on; leave out --split and changes to the recipe")
        config, parts, own = *named(data, trained), False
        changes: Sequence[str] = [f"--data {one}" for one in data]
    else:
        config, parts, own = of_recipe(model, overrides, split)
        changes = overrides
    if parts or not left_out:
        _check(parts, trained, model, split)
    print(f"model: {model}, weights {trained.weights_bytes / 1e6:.2f} MB ({trained.weights_file})")
    if left_out and split != "test":
        print(f"\n{left_out}")
    if save:
        check_saveable(save)
        start(save, list(parts))
    path = record_path(model)
    seen = trained_on(model) if changes else []
    found: dict[str, dict[str, Any]] = {}
    for part, subsets in parts.items():
        rows = found[part] = _scores(trained, subsets, config, part, save)
        for subset in subsets:
            count, _ = num_trained_on(subset, seen, config.cache)
            if count:
                print(f"  {subset.name}: {count:,} of {subset.num_samples:,} images were trained on: no held-out score")
        if path:
            record(path, part, rows, changes, own)
    if save and parts:
        print(f"\nwhat it says of each image: {save}")
    if path and parts:
        print(f"\nkept in {path}")
    return found


def of_recipe(model: Path, overrides: Sequence[str], split: str) -> "tuple[DataConfig, dict[str, tuple], bool]":
    """What the recipe holds out, by part, and whether that is still its own data."""
    from shards.loading.open import open_data
    from xfer.records import record_path

    if record_path(model) is None:
        raise ConfigError(f"{model}: no run folder around it says on which data; name built ones with --data FOLDER")
    data_only(overrides)
    recipe, saved = recipe_of(model, overrides), recipe_of(model, ())
    opened = open_data(recipe.data)
    parts = {"validation": opened.validation, "test": opened.test}
    kept = {part: subsets for part, subsets in parts.items() if subsets and split in ("all", part)}
    return recipe.data, kept, all(getattr(recipe.data, key) == getattr(saved.data, key) for key in HELD_OUT)


def data_only(overrides: Sequence[str]) -> None:
    """Raises ConfigError for changes to other sections of a run's recipe: the run is what it is."""
    foreign = [one for one in overrides if not one.startswith(("data.", "data="))]
    if foreign:
        raise ConfigError([f"{one}: changes nothing about an evaluation; it reads the section data" for one in foreign])


def named(folders: Sequence[str], trained: "Trained") -> "tuple[DataConfig, dict[str, tuple]]":
    """Built data sets as one part, seen as a model saw its own."""
    from shards.loading.open import open_data
    from xfer.evaluate import named_data

    config = named_data(folders, trained.image_size, resize=trained.resize)
    return config, {"data": open_data(config).train}


def _check(parts: "dict[str, tuple[Subset, ...]]", trained: "Trained", model: Path, split: str) -> None:
    from xfer.tasks.known import task_of

    task = task_of(trained.model.task)
    if not parts:
        raise ConfigError(f"{model}: its recipe has no {split if split != 'all' else 'held-out'} data to evaluate on")
    faults = [
        fault
        for part, subsets in parts.items()
        for subset in subsets
        for fault in task.scoring_faults(subset, trained.classes, f"{part} {subset.name}")
    ]
    if faults:
        raise ConfigError(faults)


def _scores(
    trained: "Trained", subsets: "tuple[Subset, ...]", config: "DataConfig", part: str, save: Path | None
) -> dict[str, Any]:
    """Scores one part, prints its table, and returns its rows."""
    from shards.text import table
    from xfer.evaluate import confusions, evaluate_subsets, score_rows, score_to_keep, unknown_classes
    from xfer.saved import Saved
    from xfer.tasks.known import task_of

    saved = Saved(trained, [one.numbered(trained.classes) for one in subsets], save / part) if save else None
    also = {"also": saved} if saved else {}
    scores = evaluate_subsets(trained.model, subsets, config, trained.classes, f"evaluate {part}", **also)
    if saved:
        saved.write()
    task = task_of(trained.model.task)
    print("", *table(score_rows(scores, part, len(trained.classes), task.measure)), sep="\n")
    for line in confusions(scores):
        print(f"  {line}")
    for name, classes in unknown_classes(subsets, trained.classes).items():
        left = next(subset.num_samples for subset in subsets if subset.name == name) - scores[name].count
        what = "boxes or pixels" if task.sees_whole else f"{left} images"
        print(f"  {name}: {what} not counted, the model has no such class: {', '.join(classes)}")
    return {
        subset.name: score_to_keep(score, subset.manifest.version) | {"weights": trained.weights_sha256}
        for subset in subsets
        if (score := scores[subset.name]).count
    }


def recipe_of(model: Path, overrides: Sequence[str]) -> "Recipe":
    """The recipe a run was made from: in the run folder itself, or beside the bundle."""
    from shards.settings import load
    from xfer.bundle import is_bundle
    from xfer.config import Recipe

    for folder in (model, model.absolute().parent):
        path = folder / "recipe.yaml"
        if path.is_file() and not is_bundle(folder):
            return load(path, Recipe, overrides)
    raise ConfigError(f"{model}: no run folder with a recipe.yaml here or around it")
