"""`xfer features`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from shards.settings import ConfigError

if TYPE_CHECKING:
    from shards.loading.open import Splits
    from shards.loading.subset import Subset
    from xfer.config import Recipe
    from xfer.model import FusionModel
    from xfer.transfer.pairs import Transferability


def features(
    run_or_recipe: Path,
    *overrides: str,
    split: Annotated[
        Literal["validation", "test"], Parameter(help="Which held-out data are the targets.")
    ] = "validation",
    target: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    images: int = 2048,
    out: Path | None = None,
) -> None:
    """Which sources, and which pretrained weights, suit a target: before anything is trained.

        xfer features recipe.yaml
        xfer features recipe.yaml --target shards/phone --out phone.json
        xfer features runs/pacs
        xfer features recipe.yaml data.validation=leave_one_source_out

    One pass over the images with the branches as the recipe's run would begin with them, or as a run has them now. What
    they make of the images is kept in .features of the output folder, where `xfer fit` and `xfer train` find it. For
    each source and target: the accuracy of naming the target's images by the nearest ones of the source (k-NN) and by
    a linear head fitted on the source, LogME and H-score of that head's logits; for each branch and target, the same of
    its features. Targets are the validation parts, or every source for the others with data.validation:
    leave_one_source_out, or those of --target. At the end: scores of the sources to paste into the recipe.

    All of it looks at the target's labels. Scores made on test data must not choose what is then reported on it.

    Parameters
    ----------
    run_or_recipe
        A run folder, or a recipe whose branches have weights or that has model.from.
    overrides
        `dotted.path=value` changes to the recipe; of a run, to its section data.
    target
        A folder of shards, FOLDER/SPLIT, or the name of a test source of the recipe; give the option once for each.
    images
        At most so many of each source and of each target.
    out
        A .json file for the tables; the figure lies beside it as .svg. Of a run, RUN/features.json if not given.
    """
    from shards.format.whole import write_json, write_text
    from shards.text import table
    from xfer.begin import FEATURES, features_folder
    from xfer.figures import transfer_maps
    from xfer.transfer.pairs import transferability

    run = run_or_recipe.is_dir()
    out = out or (run_or_recipe / "features.json" if run else None)
    _check(images, out, split, target)
    recipe, data, model = _of_run(run_or_recipe, overrides) if run else _of_recipe(run_or_recipe, overrides)
    targets = _targets(recipe, data, split, target)
    cache = run_or_recipe.absolute().parent / FEATURES if run else features_folder(recipe)
    found = transferability(model, data.train, targets, recipe.data, images, cache)
    print("sources, by target:", *table(found.rows(), left=2), sep="\n")
    print("\nbranches, by target:", *table(found.branch_rows(), left=2), sep="\n")
    for note in _notes(data, targets, explicit=bool(target) or split == "test"):
        print(f"note: {note}")
    _print_scores(found, recipe)
    if out:
        what = {"images": images, "versions": {subset.name: subset.manifest.version for subset in targets}}
        rows = found.to_json()
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, what | rows)
        write_text(out.with_suffix(".svg"), transfer_maps(rows["pairs"]))
        print(f"\nkept in {out} and {out.with_suffix('.svg')}")


def _check(images: int, out: Path | None, split: str, target: Sequence[str]) -> None:
    faults = [f"--images: must be at least 2, got {images}"] if images < 2 else []
    if out and (out.suffix != ".json" or out.is_dir()):
        faults.append(f"--out {out}: must be a file whose name ends in .json; the figure lies beside it as .svg")
    if target and split == "test":
        faults.append("--target: names what is compared with; leave out --split")
    if faults:
        raise ConfigError(faults)


def _of_run(folder: Path, overrides: Sequence[str]) -> "tuple[Recipe, Splits, FusionModel]":
    """A run's recipe, data and trained model."""
    from xfer.bundle import is_bundle, open_model
    from xfer.cli.evaluate import data_only, recipe_of
    from xfer.prepare import open_labelled

    if is_bundle(folder):
        raise ConfigError(f"{folder}: a bundle; give the run it came from")
    trained = open_model(folder)
    data_only(overrides)
    recipe = recipe_of(folder, overrides)
    if recipe.model.is_dense:
        raise ConfigError(f"{folder}: is for {recipe.model.task}; features are compared by the classes of images")
    return recipe, open_labelled(recipe.data, trained.classes), trained.model


def _of_recipe(path: Path, overrides: Sequence[str]) -> "tuple[Recipe, Splits, FusionModel]":
    """A recipe, its data and the model its run would begin with. Raises ConfigError with every fault."""
    from xfer.begin import initial_model
    from xfer.config import Recipe
    from xfer.model import check_weights_exist
    from xfer.prepare import load_document, open_labelled
    from xfer.transfer.head import kept_classes
    from xfer.transfer.source import source_faults

    recipe = load_document(path, Recipe, overrides)
    if recipe.model.is_dense:
        raise ConfigError(f"{path}: is for {recipe.model.task}; features are compared by the classes of images")
    faults = check_weights_exist(recipe.model) + source_faults(recipe)
    if not recipe.pretrained:
        faults.append(
            f"{path}: no branch has weights, and features of random ones say nothing: give "
            "model.branches.<name>.weights or model.from, or a run folder in place of the recipe"
        )
    try:
        data = open_labelled(recipe.data, kept_classes(recipe))
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    if faults:
        raise ConfigError(faults)
    return recipe, data, initial_model(recipe, data)[0]


def _targets(recipe: "Recipe", data: "Splits", split: str, given: Sequence[str]) -> "list[Subset]":
    """What is compared with. Test sources only where they are asked for."""
    from shards.config import LEAVE_ONE_OUT
    from shards.loading.open import open_data
    from xfer.classes import class_faults
    from xfer.evaluate import named_data

    if given:
        tests = {subset.name: subset for subset in data.test}
        folders = [one for one in given if one not in tests]
        named = named_data(folders, recipe.data.image_size, "--target", recipe.data.resize) if folders else None
        built = open_data(named, class_faults).train if named else ()
        found = [*(tests[one] for one in dict.fromkeys(given) if one in tests), *built]
        if twice := {one.name for one in found if [other.name for other in found].count(one.name) > 1}:
            raise ConfigError(f"--target: two are called {', '.join(sorted(twice))}; compare with one at a time")
        return found
    if split == "test":
        found, missing = data.test, "data.test has no sources"
    elif recipe.data.validation == LEAVE_ONE_OUT:
        found, missing = data.train, ""
    else:
        found, missing = data.validation, "data.validation: 0 holds nothing out"
    if not found:
        raise ConfigError(f"{missing}, so there is no target to compare with; name one with --target FOLDER")
    return list(found)


def _notes(data: "Splits", targets: "Sequence[Subset]", explicit: bool) -> list[str]:
    from shards.loading.leaks import num_shared

    if not explicit:
        return []
    notes = [
        f"{subset.name}: {count:,} of {subset.num_samples:,} images are trained on too, which raises its scores"
        for subset in targets
        if (count := num_shared(subset, data.train))
    ]
    names = ", ".join(subset.name for subset in targets)
    return [
        *notes,
        f"labels of {names} were looked at: a model that is trained by these scores cannot be reported on it",
    ]


def _print_scores(found: "Transferability", recipe: "Recipe") -> None:
    if not found.scores:
        print("\nno scores for data.sources: they need two sources with a target that is no part of either")
        return
    print(f"\nto favour the sources that suit the targets, in the recipe:\n\n{found.block()}")
    if any(source.weight is not None for source in recipe.data.sources.values()):
        print("\n(in place of data.sources.*.weight, which this recipe has)")
