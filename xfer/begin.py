"""The beginning of a run: its recipe is written beside what will come of it, and pretrained branches become a probe."""

import sys
from pathlib import Path

from torch import nn

from shards.format.whole import write_text
from shards.loading.open import Splits, open_data
from shards.settings import dump
from xfer.checkpoint import TrainState, latest_checkpoint, write_checkpoint
from xfer.config import Recipe
from xfer.learn import weighed
from xfer.model import FusionModel, build_model
from xfer.quant.bits import FLOAT
from xfer.quant.keep import kept
from xfer.quantize import calibration_images, quantize_body
from xfer.trained_on import entries, keep_entries
from xfer.transfer.head import kept_classes
from xfer.transfer.leaks import inherited, seen_before
from xfer.transfer.probe import start_as_probe
from xfer.transfer.settle import settle
from xfer.transfer.side import know, learn_side
from xfer.transfer.source import Taken, take_over
from xfer.transfer.stages import stages

FEATURES = ".features"  # folder of <output> that keeps what branches made of images, for the next run
STATISTICS_IMAGES = 128  # that a packed model's BatchNorm is given back on


def begin(recipe: Recipe, job: str | None = None, cache: Path | None = None) -> None:
    """Writes what is about to run beside its results: recipe.yaml, job.yaml if there is one, trained_on.json, and step
    0 of a run with pretrained branches. `cache`: folder of their features, if not the recipe's own.
    """
    data = open_data(recipe.data).widened(kept_classes(recipe))
    begun = latest_checkpoint(recipe.folder / "checkpoints") is not None
    if not begun:
        learn_side(recipe, data)  # first, for it may refuse to go on
    recipe.folder.mkdir(parents=True, exist_ok=True)
    write_text(recipe.folder / "recipe.yaml", dump(recipe))
    if job:
        write_text(recipe.folder / "job.yaml", job)
    seen = {} if begun else seen_before(recipe, data)  # known already; and the model it began with may be gone
    keep_entries(recipe.folder, [*entries(data.train), *inherited(recipe)], seen)
    if recipe.model.is_dense:
        _start_settled(recipe, data)
    else:
        _start_as_probe(recipe, data, cache or features_folder(recipe))


def _called(recipe: Recipe) -> str:
    """Such as runs/animals or seeds/0: a name alone may be only a number."""
    return f"{recipe.folder.parent.name}/{recipe.name}"


def features_folder(recipe: Recipe) -> Path:
    """Where the runs of an output folder keep what branches made of images."""
    return Path(recipe.output) / FEATURES


def initial_model(recipe: Recipe, data: Splits) -> tuple[FusionModel, Taken | None]:
    """The model that a run of the recipe begins with, before its probe; and what was taken from other models, if it
    takes any, which is said on stderr.
    """
    model = build_model(weighed(recipe), len(data.classes), recipe.train.seed)
    model.name_classes(data.classes, recipe.model.head.encoder)
    know(model, recipe.folder)
    if not recipe.model.taken_from:
        return model, None
    packed = recipe.transfer.mode == "quant"
    images = None if packed else calibration_images(data, recipe.data, STATISTICS_IMAGES)
    taught = {name for subset in data.train for name in subset.classes}
    taken = take_over(model, recipe, data.classes, taught, images)
    print(f"{_called(recipe)} {taken}", file=sys.stderr)
    return model, taken


def _start_as_probe(recipe: Recipe, data: Splits, cache: Path) -> None:
    """Step 0 of a run that begins with pretrained branches: their linear probe. Nothing if there is a checkpoint
    already, if no branch has weights, or with train.probe_images: 0.
    """
    folder = recipe.folder / "checkpoints"
    if recipe.probe_images == 0 or latest_checkpoint(folder):
        return
    model, taken = initial_model(recipe, data)
    known, head = (taken.branches, taken.head) if taken else ((), None)
    task = data.train, recipe.data, recipe.probe_images
    if recipe.transfer.mode == "quant":
        if set(known) != set(model.branches):
            start_as_probe(model, *task, known, cache)
        model, known = _rounded(model, recipe, data), tuple(model.branches)
    fusion, penalty = recipe.model.chooses_fusion, recipe.model.head.delta_penalty
    probe = start_as_probe(model, *task, known, cache, head, fusion, penalty)
    print(f"{_called(recipe)} {probe}; images of {recipe.data.image_size} px", file=sys.stderr)
    if probe.weights:
        probe.weights.keep(recipe.folder)
        print(probe.weights, file=sys.stderr)
    if recipe.steps:
        print(*stages(recipe), sep="\n", file=sys.stderr)
    write_checkpoint(folder, TrainState(classes=list(data.classes)), model.state_dict(), {}, recipe.train.keep)


def _start_settled(recipe: Recipe, data: Splits) -> None:
    """Step 0 of a detector or segmenter with pretrained branches: every BatchNorm that was not taken over has the
    statistics of training images, so that it can stay still like theirs. Nothing if there is a checkpoint already.
    """
    folder = recipe.folder / "checkpoints"
    if not recipe.pretrained or latest_checkpoint(folder):
        return
    model, taken = initial_model(recipe, data)
    known = [f"branches.{name}." for name in model.branches if name not in recipe.model.new_branches]
    kept = (*known, *(f"projections.{name}." for name in (taken.branches if taken else ())))
    modules = model.named_modules()
    norms = [part for name, part in modules if isinstance(part, nn.BatchNorm2d) and not name.startswith(kept)]
    settle(model, calibration_images(data, recipe.data, STATISTICS_IMAGES), norms)
    print(f"{_called(recipe)} begins with pretrained branches; images of {recipe.data.image_size} px", file=sys.stderr)
    print(*stages(recipe), sep="\n", file=sys.stderr)
    state = TrainState(classes=list(data.classes))
    write_checkpoint(folder, state, model.cpu().state_dict(), {}, recipe.train.keep)


def _rounded(model: FusionModel, recipe: Recipe, data: Splits) -> FusionModel:
    """With branches and projections as they will be packed."""
    images = calibration_images(data, recipe.data, recipe.quantize.calibration)
    model = quantize_body(model, recipe.quantize, images)
    widths = [codes.bits if codes else FLOAT for codes in kept(model).values()]
    what = f"its branches and projections at {min(widths)} to {max(widths)} bits, as they are"
    print(f"{_called(recipe)} keeps {what}; what is fitted is the head", file=sys.stderr)
    return model
