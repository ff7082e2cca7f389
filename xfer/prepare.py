"""Everything that can be wrong with a recipe, found before a worker starts: data, weights, the run folder."""

from shards.loading.open import Data, open_data
from shards.loading.state import StreamState, resume
from shards.settings import ConfigError, load
from xfer.checkpoint import Checkpoint, latest_checkpoint
from xfer.config import Recipe
from xfer.model import build_model, check_weights_exist

FIXED = ("optimizer", "seed")  # of `train`: cannot change within a run; all its other values may


def prepare(recipe: Recipe) -> tuple[Data, Checkpoint | None]:
    """The data of a recipe and the checkpoint that its run goes on from. Raises ConfigError with every fault."""
    faults = check_weights_exist(recipe)
    data = None
    try:
        data = open_data(recipe.data)
    except ConfigError as error:
        faults += error.faults
    if faults:
        raise ConfigError(faults)
    assert data is not None
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    if checkpoint:
        faults = _differences(recipe, checkpoint, data)
    elif any(branch.weights for branch in recipe.model.branches.values()):
        build_model(recipe.model, 2, 0)  # do the files fit? Known here it costs a second, in the workers a minute
    if faults:
        hint = f"choose another name=... or remove {recipe.folder}"
        raise ConfigError([*faults, hint], f"{recipe.folder} holds another run")
    return data, checkpoint


def _differences(recipe: Recipe, checkpoint: Checkpoint, data: Data) -> list[str]:
    faults = []
    saved = recipe.folder / "recipe.yaml"
    if saved.is_file():
        before = load(saved, Recipe)
        pairs = {f"model.{key}": (getattr(before.model, key), value) for key, value in recipe.model}
        pairs |= {f"train.{key}": (getattr(before.train, key), getattr(recipe.train, key)) for key in FIXED}
        pairs["data.image_size"] = (before.data.image_size, recipe.data.image_size)
        faults += [f"{path}: was {old}, is now {new}" for path, (old, new) in pairs.items() if old != new]
    try:
        resume(data.train, recipe.data, StreamState(**checkpoint.state.stream))
    except ConfigError as error:
        faults += error.faults
    return faults
