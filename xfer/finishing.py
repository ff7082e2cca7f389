"""`quantize.finish`: the rounded model of a run is trained for some steps, and kept if it answers more as the run does.

It sees the training images of the run as the run did: blended, augmented, in batches of `data.batch_size`, from the
first position on, so the same command gives the same bundle. What is kept is chosen by the divergence from the float
model's answers on images that it was not trained on: held-out ones of the search half, if there are any. Not by their
accuracy, which moves by an image at a time and does not tell roundings apart (docs/log.md).
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shards.loading.batch import Slot
from shards.loading.few import few
from shards.loading.open import Splits
from shards.loading.subset import Subset
from shards.loading.train import train_stream
from shards.progress import progress
from shards.settings import ConfigError
from shards.text import counted
from xfer.config import Recipe
from xfer.engine import default_device
from xfer.heads.known import is_two_stage
from xfer.model import FusionModel
from xfer.quant.finish import divergence, finish
from xfer.quant.weights import Quantized

JUDGED = 512  # held-out images


def check_finishable(model: FusionModel, kept: Mapping[str, Any]) -> None:
    """Raises ConfigError if a model's codes cannot be trained. kept: those that layers keep."""
    if kept:
        raise ConfigError(
            "quantize.finish: must be 0, branches and projections keep their codes (transfer.mode: quant)"
        )
    if is_two_stage(model.kind):
        raise ConfigError(
            "quantize.finish: must be 0 for faster_rcnn, whose second stage looks where the first one proposes: no two "
            "models make answers of the same places"
        )


def finished(
    quantized: Quantized,
    reference: FusionModel,
    recipe: Recipe,
    data: Splits,
    search: Sequence[Subset],
    calibration: Sequence[Tensor],
) -> tuple[Quantized, str]:
    """`quantized` after `quantize.finish` steps, or as it is if these brought it no nearer to `reference`, the folded
    model in float; and what came of it, in words. search: what to choose by; if there is none, the `calibration`
    images, uint8 [B, 3, S, S] batches.
    """
    steps, device = recipe.quantize.finish, default_device()
    config = recipe.data.model_copy(update={"decode": "cpu"})  # a machine without a GPU may quantize what one trained
    held = few(search, recipe.data, JUDGED) if search else ()
    images = [batch.images for batch in held] or list(calibration)
    tried = Quantized(copy.deepcopy(quantized.model), dict(quantized.codes))
    models = [one.to(device) for one in (reference, quantized.model, tried.model)]
    try:
        with (
            train_stream(data.train, config, Slot()) as stream,
            progress("finish", steps, "steps") as advance,
        ):
            batches = (batch.images.to(device) for batch in stream)
            finish(tried, reference, batches, steps, bf16=recipe.train.precision == "bf16", after_step=advance)
        before, after = (_mean_divergence(model, reference, images, device) for model in models[1:])
    finally:
        for model in models:
            model.cpu()
    where = f"on {counted(sum(map(len, images)), 'search image' if search else 'training image')}"
    found = f"divergence from the run {before:.2g} -> {after:.2g} {where}"
    if after < before:
        return tried, f"finished in {counted(steps, 'step')}: {found}"
    return quantized, f"{counted(steps, 'step')} of finishing brought nothing, so they are left out: {found}"


@torch.no_grad()
def _mean_divergence(model: nn.Module, reference: nn.Module, images: Sequence[Tensor], device: torch.device) -> float:
    """Over batches, each by its number of images."""

    def parts() -> Iterator[float]:
        for batch in images:
            there = batch.to(device)
            yield float(divergence(model(there), reference(there))) * len(batch)

    return sum(parts()) / sum(map(len, images))
