"""A trained model becomes a small one: fold BatchNorm, round the weights, correct what rounding moved, pack the bits.

Storage bits only: the packed weights are expanded when the model is loaded, and compute runs in float. A ResNet-18
takes a few seconds on two cores, nearly all of it the calibration images' two forward passes; measuring what it cost is
one pass of both models over the held-out images.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from shards.config import DataConfig
from shards.loading.few import few
from shards.loading.open import Splits
from shards.loading.subset import Subset
from shards.settings import ConfigError
from xfer.bundle import Trained, body, check_replaceable, open_model, write_bundle
from xfer.config import QuantizeConfig, Recipe
from xfer.history import gain_markdown
from xfer.model import FusionModel
from xfer.outcomes import Comparison, outcomes_on
from xfer.quant.bits import FLOAT, group_of, layer_bits
from xfer.quant.correct import correct
from xfer.quant.fold import check_fold, fold, tensors
from xfer.quant.keep import keep, kept, release
from xfer.quant.weights import Codes, Quantized, quantize
from xfer.tasks.known import task_of

CALIBRATION_BATCH = 64


def calibration_images(data: Splits, config: DataConfig, count: int) -> list[Tensor]:
    """`count` training images in the proportions of the blend, not augmented: uint8 [B, 3, S, S] batches."""
    batches = few(data.train, config, count, sources="proportional", batch_size=CALIBRATION_BATCH)
    return [batch.images for batch in batches]


def quantize_model(model: FusionModel, config: QuantizeConfig, calibration: Iterable[Tensor]) -> Quantized:
    """The quantized copy of `model`, which is left as it is; layers that keep their codes have these.

    Raises ConfigError if a BatchNorm cannot be folded, the model's weights or outputs are not finite, the model has no
    such group, or layers of a group keep other bits.
    """
    calibration = list(calibration)
    check_sound(model, calibration[0][:4])
    reference, before = fold(model), kept(model)
    try:
        check_fold(model, reference, calibration[0][:4])
    except ValueError as error:
        backbones = ", ".join(sorted({str(branch.backbone) for branch in model.branches.values()}))
        raise ConfigError(f"{backbones} cannot be quantized: {error}") from None
    release(reference)
    if faults := kept_faults(config, before):
        raise ConfigError(faults)
    try:
        bits = layer_bits(reference, config.bits, {**config.groups})
    except ValueError as error:
        raise ConfigError(f"quantize.groups: {error}") from None
    new = {name: width for name, width in bits.items() if name not in before}
    quantized = quantize(copy.deepcopy(reference), new)
    if config.correct and quantized.codes:
        correct(quantized, reference, calibration)
    codes = {**before, **quantized.codes}
    return Quantized(quantized.model, {name: one for name in bits if (one := codes.get(name))})


def quantize_body(model: FusionModel, config: QuantizeConfig, calibration: Iterable[Tensor]) -> FusionModel:
    """A folded copy of `model` whose branches and projections are quantized and keep their codes; its head is in float.
    Raises as `quantize_model`.
    """
    head = {"groups": {**config.groups, "head": FLOAT}}
    quantized = quantize_model(model, config.model_copy(update=head), calibration)
    assert isinstance(quantized.model, FusionModel)
    keep(quantized.model, {name: quantized.codes.get(name) for name in body(quantized.model)})
    return quantized.model


def kept_faults(config: QuantizeConfig, codes: Mapping[str, Codes | None]) -> list[str]:
    """Why layers that keep their codes cannot have the bits that `groups` asks for."""
    faults = []
    for group, width in config.groups.items():
        theirs = {one.bits if one else FLOAT for name, one in codes.items() if group_of(name) == group}
        if theirs - {width}:
            faults.append(
                f"quantize.groups.{group}: must be left out, got {width}: its layers keep the "
                f"{' and '.join(map(str, sorted(theirs)))} bits they have (transfer.mode: quant)"
            )
    return faults


def check_sound(model: FusionModel, images: Tensor) -> None:
    """Raises ConfigError if a value of the model, or what it makes of images [B, 3, S, S], is not finite."""
    broken = [name for name, value in model.state_dict().items() if not bool(value.isfinite().all())]
    advice = "train it again, with a lower train.learning_rate, or quantize another run"
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise ConfigError(f"the trained model is not finite, so there is nothing to round: {broken[0]}{more}; {advice}")
    with torch.inference_mode():
        if not all(bool(one.isfinite().all()) for one in tensors(model.eval()(images))):
            raise ConfigError(
                f"what the trained model makes of images is not finite, although its weights are; {advice}"
            )


def make_bundle(
    trained: Trained, recipe: Recipe, data: Splits, folder: Path, compared: Comparison | None = None
) -> tuple[Trained, Comparison | None]:
    """Quantizes a run, measures what that cost, and writes the bundle. Returns the bundle, read back from disk, and how
    it compares with the run: as `compared` says, if that is known; if not, on held-out images (None: there are none).
    """
    check_replaceable(folder)
    calibration = calibration_images(data, recipe.data, recipe.quantize.calibration)
    quantized = quantize_model(trained.model, recipe.quantize, calibration)
    what, subsets = held_out(data, recipe.data)
    if compared is None and subsets:
        compared = compare(trained, quantized, recipe.data, what, subsets)
    return ship(trained, recipe, quantized, folder, [compared] if compared else []), compared


def held_out(data: Splits, config: DataConfig) -> tuple[str, Sequence[Subset]]:
    """What a quantized model is compared with its run on: in words, and as subsets."""
    if data.validation:
        part = "sources that are held out whole" if config.held_sources else "held-out parts of the training sources"
        return part, data.validation
    return "the test sources", data.test


def compare(
    trained: Trained, quantized: Quantized, config: DataConfig, what: str, subsets: Sequence[Subset]
) -> Comparison:
    """The run and its quantized model on the same images."""
    models = {"trained": trained.model, "packed": quantized.model}
    found = outcomes_on(models, subsets, config, trained.classes, f"compare {trained.name}")
    measure = task_of(trained.model.task).measure
    return Comparison(what, found["trained"], found["packed"], (trained.form, "packed"), measure)


def ship(
    trained: Trained, recipe: Recipe, quantized: Quantized, folder: Path, compared: Sequence[Comparison] = ()
) -> Trained:
    """Writes the bundle of `quantized`, made from the run `trained`, and returns it, read back from disk. `compared`:
    what its card says about its accuracy.
    """
    bits = {name: codes.bits for name, codes in quantized.codes.items()}
    extra = {"float_bytes": trained.weights_bytes, "sources": sorted(recipe.data.sources)}
    assert isinstance(quantized.model, FusionModel)
    card = _card(trained, recipe, quantized.model, bits, compared)
    write_bundle(folder, recipe, trained, quantized, extra, card)
    bundle = open_model(folder)
    _check_same(quantized.model, bundle)
    return bundle


def _check_same(measured: FusionModel, bundle: Trained) -> None:
    """What was measured is what the file holds."""
    read = bundle.model.state_dict()
    other = [name for name, value in measured.state_dict().items() if not torch.equal(value.cpu(), read[name])]
    if other or len(read) != len(measured.state_dict()):
        raise RuntimeError(f"{bundle.path}: read back, the model is another one: {', '.join(other[:3])} differ")


def _card(
    trained: Trained, recipe: Recipe, model: FusionModel, bits: dict[str, int], compared: Sequence[Comparison]
) -> str:
    weights = model.fusion_weights
    lines = [
        f"# {recipe.name}",
        "",
        f"- classes: {', '.join(trained.classes)}",
        f"- trained on: {', '.join(sorted(recipe.data.sources))}; steps {recipe.steps}, seed {recipe.train.seed}",
        f"- fusion: {recipe.model.fusion.kind}, weights "
        + (", ".join(f"{name} {w:.3f}" for name, w in weights.items()) if weights else "none"),
        f"- images: {recipe.data.image_size} x {recipe.data.image_size} pixels, {recipe.data.resize}",
        f"- storage bits: {_storage(recipe, bits)}",
        f"- float weights: {trained.weights_bytes:,} bytes",
        "",
        *gain_markdown(trained.path),
        *(line for one in compared for line in (one.markdown(), "")),
        "| layer | bits |",
        "|---|---|",
        *(f"| {name} | {width} |" for name, width in bits.items()),
    ]
    return "\n".join(lines) + "\n"


def _storage(recipe: Recipe, bits: Mapping[str, int]) -> str:
    if recipe.transfer.mode == "quant":
        widths = [width for name, width in bits.items() if name != "head"] or [FLOAT]
        return f"branches and projections {min(widths)} to {max(widths)}, as before the head was fitted; head " + str(
            bits.get("head", FLOAT)
        )
    groups = "".join(f", {group} {width}" for group, width in recipe.quantize.groups.items())
    return f"{recipe.quantize.bits}{groups}"
