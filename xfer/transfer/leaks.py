"""Images that a run is scored on, and that the model it begins with or its teacher was trained on: too good a score."""

import sys
from pathlib import Path

from shards.config import LEAVE_ONE_OUT
from shards.loading.open import Splits
from shards.loading.subset import Subset
from shards.settings import ConfigError
from xfer.bundle import trained_on
from xfer.config import Recipe
from xfer.trained_on import TrainedOn, num_trained_on


def inherited(recipe: Recipe) -> list[TrainedOn]:
    """What the models that a recipe begins with and its teacher were trained on, and those that these began with;
    nothing of those that are not there any more. Raises ConfigError if what they keep of it is damaged.
    """
    return [entry for folder in _folders(recipe) for entry in trained_on(folder)]


def _folders(recipe: Recipe) -> list[Path]:
    teacher = recipe.train.teacher
    return [*recipe.model.taken_from, *([Path(teacher.from_)] if teacher else [])]


def seen_before(recipe: Recipe, data: Splits) -> dict[str, int]:
    """By source, how many of the images held out of it for validation were trained on before; none: not named."""
    found = inherited(recipe)
    subsets = data.validation if found else ()
    counts = {one.name: num_trained_on(one, found, recipe.data.cache)[0] for one in subsets}
    return {name: count for name, count in counts.items() if count}


def leak_faults(recipe: Recipe, data: Splits) -> list[str]:
    """A fault for each source held out whole, for test or validation, with an image that was trained on before. Those
    in held-out parts of training sources are counted on stderr.
    """
    try:
        found = inherited(recipe)
    except ConfigError as error:
        return [f"{error.origin}: {fault}" if error.origin else fault for fault in error.faults]
    held = "data.validation" if recipe.data.held_sources else ""
    faults, unknown = [], set()
    for where, subset in [*(("data.test", one) for one in data.test), *((held, one) for one in data.validation)]:
        count, lost = num_trained_on(subset, found, recipe.data.cache)
        unknown.update(lost)
        if count and where:
            faults.append(f"{where}.{subset.name}: {_told(recipe, subset, count)}; {_advice(where)}")
        elif count:
            print(f"note: validation of {subset.name}: {_told(recipe, subset, count)}", file=sys.stderr)
    if unknown:
        print(
            f"note: {', '.join(sorted(unknown))}, which {_models(recipe)} was trained on, is not here: whether what "
            "is scored here was among it is not known",
            file=sys.stderr,
        )
    return faults


def _told(recipe: Recipe, subset: Subset, count: int) -> str:
    return (
        f"{count:,} of {subset.num_samples:,} images are among what {_models(recipe)} was trained on, so the score is "
        "too good"
    )


def _models(recipe: Recipe) -> str:
    return " or ".join(map(str, _folders(recipe)))


def _advice(where: str) -> str:
    other = "begin with a model that has not seen them"
    if where == "data.test":
        return f"test on other images, or {other}"
    return f"validate on other sources or on a fraction of each (0.1) in place of {LEAVE_ONE_OUT}, or {other}"
