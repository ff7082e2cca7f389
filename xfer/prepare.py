"""Everything that can be wrong with a recipe, found before a worker starts: data, weights, the run folder.

What is only odd (sources that are never told apart, names that look alike) is said, once, on stderr.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from shards.config import DataConfig
from shards.loading.open import Splits, open_data
from shards.loading.state import StreamState, resume
from shards.settings import ConfigError, SchemaError, Strict, load
from xfer.backbone import side
from xfer.checkpoint import Checkpoint, latest_checkpoint
from xfer.classes import class_faults, label_faults, label_notes
from xfer.config import ModelConfig, Recipe
from xfer.engine import shares
from xfer.model import build_model, check_weights_exist

FIXED = ("optimizer", "seed")  # of `train`: cannot change within a run; all its other values may
Document = TypeVar("Document", bound=Strict)


def load_document(path: str | Path, kind: type[Document], overrides: Sequence[str] = ()) -> Document:
    """A recipe, job or study. A fault of its schema does not hide those of its data and weights: raises ConfigError
    with all that the sections let see.
    """
    try:
        return load(path, kind, overrides)
    except SchemaError as error:
        data, model = error.sections.get("data"), error.sections.get("model")
        faults = _faults_of(lambda: open_labelled(data)) if isinstance(data, DataConfig) else []
        faults += check_weights_exist(model) if isinstance(model, ModelConfig) else []
        raise ConfigError([*error.faults, *faults], error.origin) from None


def open_labelled(config: DataConfig) -> Splits:
    """Opens the data for a classifier. Raises ConfigError with every fault, sources without classes among them."""
    data = open_data(config, class_faults)
    faults = label_faults(data)
    if faults:
        raise ConfigError(faults)
    return data


def prepare(recipe: Recipe, world_size: int = 1) -> tuple[Splits, Checkpoint | None]:
    """The data of a recipe and the checkpoint that its run goes on from on so many ranks. Raises ConfigError with every
    fault.
    """
    faults = check_weights_exist(recipe.model) + batchnorm_faults(recipe, world_size)
    try:
        data = open_labelled(recipe.data)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    if faults:
        raise ConfigError(faults)
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    if checkpoint:
        faults = _differences(recipe, checkpoint, data)
    elif any(branch.weights for branch in recipe.model.branches.values()):
        build_model(recipe.model, 2, 0)  # do the files fit? Known here it costs a second, in the workers a minute
    if faults:
        hint = f"choose another name=... or remove {recipe.folder}"
        raise ConfigError([*faults, hint], f"{recipe.folder} holds another run")
    for note in label_notes({subset.name: subset.classes for subset in data.train}):
        print(f"note: {note}", file=sys.stderr)
    return data, checkpoint


def batchnorm_faults(recipe: Recipe, world_size: int) -> list[str]:
    """BatchNorm cannot learn from one value a channel: one image in a micro-batch whose deepest map is one pixel."""
    if recipe.train.freeze_batchnorm or recipe.data.batch_size < world_size:
        return []
    _, accumulation = shares(recipe, world_size)
    smallest = max(1, recipe.data.batch_size // world_size // accumulation)  # micro-batch of the smallest share
    faults = []
    for name, branch in recipe.model.branches.items():
        size = branch.size or recipe.data.image_size
        if smallest == 1 and side(size, 5) == 1:
            faults.append(
                f"model.branches.{name}: BatchNorm would see one value a channel, from 1 image of {size} px in a "
                f"micro-batch (data.batch_size {recipe.data.batch_size} over {world_size} ranks in {accumulation} "
                "micro-batches each); use a larger data.batch_size or train.micro_batch, a data.image_size or branch "
                "size above 32, or train.freeze_batchnorm: true"
            )
    return faults


def _differences(recipe: Recipe, checkpoint: Checkpoint, data: Splits) -> list[str]:
    faults = []
    saved = recipe.folder / "recipe.yaml"
    if saved.is_file():
        before = load(saved, Recipe)
        pairs = {f"model.{key}": (getattr(before.model, key), value) for key, value in recipe.model}
        pairs |= {f"train.{key}": (getattr(before.train, key), getattr(recipe.train, key)) for key in FIXED}
        pairs["data.image_size"] = (before.data.image_size, recipe.data.image_size)
        faults += [f"{path}: was {old}, is now {new}" for path, (old, new) in pairs.items() if old != new]
    faults += _new_classes(checkpoint.state.classes, {subset.name: subset.classes for subset in data.train})
    faults += _faults_of(lambda: resume(data.train, recipe.data, StreamState(**checkpoint.state.stream)))
    return faults


def _new_classes(trained: Sequence[str], sources: Mapping[str, Sequence[str]]) -> list[str]:
    """A trained head has a place for each class it was trained with, and none for another name."""
    faults = []
    for source, classes in sources.items():
        new = sorted(set(classes) - set(trained))
        if new:
            faults.append(
                f"data.sources.{source}: has the classes {', '.join(new)}, which this run was not begun with "
                f"(it has {', '.join(trained)}); renamed or added classes need a run of their own"
            )
    return faults


def _faults_of(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except ConfigError as error:
        return list(error.faults)
    return []
