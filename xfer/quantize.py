"""A trained model becomes a small one: fold BatchNorm, round the weights, correct what rounding moved, pack the bits.

Storage bits only: the packed weights are expanded when the model is loaded, and compute runs in float. A ResNet-18
takes a few seconds on two cores, nearly all of it the calibration images' two forward passes.
"""

import copy
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from shards.config import DataConfig
from shards.loading.few import few
from shards.loading.open import Splits
from xfer.bundle import Trained, check_replaceable, open_model, write_bundle
from xfer.config import QuantizeConfig, Recipe
from xfer.model import FusionModel
from xfer.quant.bits import layer_bits
from xfer.quant.correct import correct
from xfer.quant.fold import check_fold, fold
from xfer.quant.weights import Quantized, quantize

CALIBRATION_BATCH = 64


def calibration_images(data: Splits, config: DataConfig, count: int) -> list[Tensor]:
    """`count` training images in the proportions of the blend, not augmented: uint8 [B, 3, S, S] batches."""
    batches = few(data.train, config, count, sources="proportional", batch_size=CALIBRATION_BATCH)
    return [batch.images for batch in batches]


def quantize_model(model: FusionModel, config: QuantizeConfig, calibration: Iterable[Tensor]) -> Quantized:
    """The quantized copy of `model`, which is left as it is. Raises ValueError if a BatchNorm cannot be folded."""
    calibration = list(calibration)
    reference = fold(model)
    check_fold(model, reference, calibration[0][:4])
    quantized = quantize(copy.deepcopy(reference), layer_bits(reference, config.bits, {**config.groups}))
    if config.correct:
        correct(quantized, reference, calibration)
    return quantized


def make_bundle(trained: Trained, recipe: Recipe, data: Splits, folder: Path) -> Trained:
    """Quantizes a run and writes the bundle. Returns the bundle, read back from disk."""
    check_replaceable(folder)
    calibration = calibration_images(data, recipe.data, recipe.quantize.calibration)
    return ship(trained, recipe, quantize_model(trained.model, recipe.quantize, calibration), folder)


def ship(trained: Trained, recipe: Recipe, quantized: Quantized, folder: Path) -> Trained:
    """Writes the bundle of `quantized`, made from the run `trained`, and returns it, read back from disk."""
    bits = {name: codes.bits for name, codes in quantized.codes.items()}
    extra = {"float_bytes": trained.weights_bytes, "sources": sorted(recipe.data.sources)}
    assert isinstance(quantized.model, FusionModel)
    card = _card(trained, recipe, quantized.model, bits)
    write_bundle(folder, recipe, trained.classes, quantized, extra, card)
    return open_model(folder)


def _card(trained: Trained, recipe: Recipe, model: FusionModel, bits: dict[str, int]) -> str:
    weights = model.fusion_weights
    lines = [
        f"# {recipe.name}",
        "",
        f"- classes: {', '.join(trained.classes)}",
        f"- trained on: {', '.join(sorted(recipe.data.sources))}; steps {recipe.train.steps}, seed {recipe.train.seed}",
        f"- fusion: {recipe.model.fusion.kind}, weights "
        + (", ".join(f"{name} {w:.3f}" for name, w in weights.items()) if weights else "none"),
        f"- images: {recipe.data.image_size} x {recipe.data.image_size} pixels",
        f"- storage bits: {recipe.quantize.bits}"
        + "".join(f", {group} {width}" for group, width in recipe.quantize.groups.items()),
        f"- float weights: {trained.weights_bytes:,} bytes",
        "",
        "| layer | bits |",
        "|---|---|",
        *(f"| {name} | {width} |" for name, width in bits.items()),
    ]
    return "\n".join(lines) + "\n"
