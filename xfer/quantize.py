"""A trained model becomes a small one: fold BatchNorm, round the weights, correct what rounding moved, pack the bits.

Storage bits only: the packed weights are expanded when the model is loaded, and compute runs in float. A ResNet-18
takes a few seconds on two cores, nearly all of it the calibration images' two forward passes; measuring what it cost is
one pass of both models over the held-out images.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from shards.config import DataConfig
from shards.loading.few import few
from shards.loading.open import Splits
from shards.loading.subset import Subset
from shards.progress import progress
from shards.settings import ConfigError
from xfer.bundle import Origin, Trained, all_bits, body, check_replaceable, open_model, write_bundle
from xfer.card import card_of
from xfer.config import QuantizeConfig, Recipe
from xfer.finishing import check_finishable, finished
from xfer.heads.known import is_two_stage
from xfer.model import FusionModel
from xfer.outcomes import Comparison, outcomes_on
from xfer.quant.allocate import Allocation
from xfer.quant.bits import FLOAT, group_of, layer_bits, layers
from xfer.quant.correct import correct
from xfer.quant.cost import CodedSizes, coded_sizes, predicted_bytes, sizes_of
from xfer.quant.fold import check_fold, fold, tensors
from xfer.quant.keep import keep, kept, release
from xfer.quant.pack import pack, unpack
from xfer.quant.weights import Codes, Quantized, quantize
from xfer.widths import (
    Tried,
    Widths,
    check_budget,
    check_choosable,
    front_of,
    plainly,
    sensitivities,
    smallest_within,
    span,
)

CALIBRATION_BATCH = 64


def calibration_images(data: Splits, config: DataConfig, count: int) -> list[Tensor]:
    """`count` training images in the proportions of the blend, not augmented: uint8 [B, 3, S, S] batches."""
    batches = few(data.train, config, count, sources="proportional", batch_size=CALIBRATION_BATCH)
    return [batch.images for batch in batches]


@dataclass(frozen=True)
class Folded:
    """A trained model without its BatchNorms, and what its layers are rounded by. kept: the codes of layers that keep
    what they have, None for float; calibration: uint8 [B, 3, S, S] batches; coded: codes are written shorter.
    """

    model: FusionModel
    kept: Mapping[str, Codes | None]
    calibration: Sequence[Tensor]
    correct: bool
    coded: bool = False

    def sizes(self) -> CodedSizes | None:
        """Of the codes that are shorter coded; None: none are coded."""
        return coded_sizes(self.model) if self.coded else None

    def rounded(self, bits: Mapping[str, int], say: bool = False) -> Quantized:
        """Quantized at these widths, 32 for float; layers that keep their codes have these. `say`: with progress."""
        new = {name: width for name, width in bits.items() if name not in self.kept}
        quantized = quantize(copy.deepcopy(self.model), new)
        if self.correct and quantized.codes:
            correct(quantized, self.model, self._shown() if say else self.calibration)
        codes = {**self.kept, **quantized.codes}
        return Quantized(quantized.model, {name: one for name in bits if (one := codes.get(name))})

    def _shown(self) -> Iterator[Tensor]:
        with progress("correct", sum(map(len, self.calibration)), "images") as advance:
            for batch in self.calibration:
                yield batch
                advance(len(batch))

    def read_back(self, quantized: Quantized, metadata: Mapping[str, Any]) -> tuple[FusionModel, int]:
        """A quantized model as its file gives it, and the bytes of that file, which does not stay."""
        model = copy.deepcopy(self.model)
        with TemporaryDirectory() as folder:
            file = Path(folder, "weights.safetensors")
            pack(quantized, file, metadata, self.coded)
            unpack(file, model)
            return model, file.stat().st_size


def fold_model(model: FusionModel, config: QuantizeConfig, calibration: Iterable[Tensor]) -> Folded:
    """A folded copy of `model`, which is left as it is.

    Raises ConfigError if a BatchNorm cannot be folded, the model's weights or outputs are not finite, or layers keep
    other bits than the section says.
    """
    calibration = list(calibration)
    check_sound(model, calibration[0][:4])
    reference, before = fold(model), kept(model)
    try:
        check_fold(model, reference, calibration[0][:4], of=_comparable)
    except ValueError as error:
        backbones = ", ".join(sorted({str(branch.backbone) for branch in model.branches.values()}))
        raise ConfigError(f"{backbones} cannot be quantized: {error}") from None
    release(reference)
    if faults := kept_faults(config, before):
        raise ConfigError(faults)
    assert isinstance(reference, FusionModel)
    return Folded(reference, before, calibration, config.correct, config.coded)


def _comparable(model: FusionModel, images: Tensor) -> Any:
    """What a model makes of images, number by number: of a head of two stages, whose proposals change their order with
    the last digit of a score, the maps it stands on.
    """
    return model.features(images) if is_two_stage(model.kind) else model(images)


def choose_widths(
    folded: Folded,
    config: QuantizeConfig,
    metadata: Mapping[str, Any],
    measure: Callable[[FusionModel, str], Comparison] | None = None,
) -> Widths:
    """The bits of each layer, as the section says. metadata: what the file will say beside the weights; measure: how a
    packed model compares with the run on images to choose by, None: there are none.

    Raises ConfigError if the model has no such group or layer, or no bits are what is asked for.
    """
    model, budget, max_drop = folded.model, config.budget, config.max_drop
    if config.searches or config.layers:
        check_choosable(folded.kept)
    if config.layers:
        return Widths(_given_layers(model, config.layers), "as given for each layer")
    if not config.searches:
        try:
            bits = layer_bits(model, config.bits, {**config.groups})
        except ValueError as error:
            raise ConfigError(f"quantize.groups: {error}") from None
        return Widths(bits, plainly(config))
    sizes = folded.sizes()
    if budget is not None:
        check_budget(model, budget, metadata, sizes)
    if max_drop is not None and measure is None:
        raise ConfigError(
            "quantize.max_drop: chooses by held-out images of this one model, and there are none here; hold out a part "
            "of each source (data.validation: 0.1), or give quantize.budget"
        )
    losses = sensitivities(model, folded.calibration)
    front = front_of(model, losses, metadata, sizes)
    if budget is not None:
        point = front.within(budget)
        room = "8 bits in every layer need no more" if set(point.bits.values()) == {8} else "by sensitivity"
        return Widths(point.bits, f"{span(point.bits)}, for at most {budget:,} bytes; {room}", losses)
    assert max_drop is not None
    assert measure is not None

    def tried(point: Allocation, what: str) -> Tried:
        return try_out(folded, point.bits, metadata, lambda model: measure(model, what))

    best, *others = smallest_within(front, max_drop, tried)
    said = f"{span(best.bits)}, the smallest file found that loses at most {max_drop:g} points on the search images"
    return Widths(best.bits, said, losses, [best, *others])


def try_out(
    folded: Folded, bits: Mapping[str, int], metadata: Mapping[str, Any], measure: Callable[[FusionModel], Comparison]
) -> Tried:
    """A model at these widths, packed, read back and measured."""
    model, size_bytes = folded.read_back(folded.rounded(bits), metadata)
    return Tried(bits, size_bytes, measure(model))


def _given_layers(model: FusionModel, given: Mapping[str, int]) -> dict[str, int]:
    """Of every layer. Raises ConfigError for a layer without bits, and for bits without a layer."""
    names = list(layers(model))
    faults = [f"quantize.layers.{name}: this model has no such layer" for name in given if name not in names]
    faults += [f"quantize.layers.{name}: missing; 32 leaves it in float" for name in names if name not in given]
    if faults:
        shown = [*faults[:8], f"and {len(faults) - 8} more"] if len(faults) > 9 else faults
        raise ConfigError(
            [*shown, "quantize.layers names each layer of the model once, as its bundle's bits.yaml does"]
        )
    return {name: given[name] for name in names}


def quantize_model(
    model: FusionModel,
    config: QuantizeConfig,
    calibration: Iterable[Tensor],
    metadata: Mapping[str, Any] | None = None,
) -> Quantized:
    """The quantized copy of `model`, which is left as it is; layers that keep their codes have these. metadata: what
    its file will say beside the weights.

    Raises ConfigError as `fold_model` and `choose_widths` do.
    """
    folded = fold_model(model, config, calibration)
    return folded.rounded(choose_widths(folded, config, metadata or {}).bits)


def quantize_trained(trained: Trained, recipe: Recipe, data: Splits) -> Quantized:
    """What the recipe makes of a run that nothing is held out of: widths and finishing are chosen by training images.
    Raises ConfigError as `quantize_model`.
    """
    calibration = calibration_images(data, recipe.data, recipe.quantize.calibration)
    folded = fold_model(trained.model, recipe.quantize, calibration)
    if recipe.quantize.finish:
        check_finishable(folded.model, folded.kept)
    quantized = folded.rounded(choose_widths(folded, recipe.quantize, file_metadata(trained, recipe)).bits)
    if not recipe.quantize.finish:
        return quantized
    return finished(quantized, folded.model, recipe, data, (), calibration)[0]


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


@dataclass(frozen=True)
class Made:
    """A bundle, read back from disk; how it compares with its run (None: nothing is held out); how its bits came about;
    and its file's size as it was foretold.
    """

    bundle: Trained
    compared: Comparison | None
    widths: Widths
    foretold_bytes: int


def make_bundle(
    trained: Trained, recipe: Recipe, data: Splits, folder: Path, compared: Comparison | None = None
) -> Made:
    """Quantizes a run, measures what that cost, and writes the bundle. How it compares with the run: as `compared`
    says, if that is known; if not, on held-out images.
    """
    check_replaceable(folder)
    config, metadata = recipe.quantize, file_metadata(trained, recipe)
    calibration = calibration_images(data, recipe.data, config.calibration)
    folded = fold_model(trained.model, config, calibration)
    if config.finish:
        check_finishable(folded.model, folded.kept)
    halved = config.searches or bool(config.layers) or config.finish > 0
    held = held_out(data, recipe.data, halved, trained.origin) if compared is None else HeldOut(compared.what, (), ())
    measure = measured_on(trained, recipe.data, held.what, held.search) if config.max_drop is not None else None
    widths = choose_widths(folded, config, metadata, measure)
    quantized = folded.rounded(widths.bits, say=True)
    if config.finish:
        quantized, said = finished(quantized, folded.model, recipe, data, held.search, calibration)
        widths = replace(widths, said=f"{widths.said}; {said}")
    sizes = sizes_of(quantized.codes) if config.coded else None
    widths = replace(widths, bits=all_bits(quantized), coded=sizes)  # of layers that keep their codes, what they have
    if compared is None and _count(held.report):
        compared = compare(trained, quantized, recipe.data, held.what, held.report)
    splits = held.splits(sum(map(len, calibration)), compared)
    bundle = ship(trained, recipe, quantized, folder, [compared] if compared else [], widths, splits)
    return Made(bundle, compared, widths, predicted_bytes(folded.model, all_bits(quantized), metadata, sizes))


def file_metadata(trained: Trained, recipe: Recipe) -> dict[str, Any]:
    """What the weights file of a run's bundle says beside the weights."""
    return {"float_bytes": trained.weights_bytes, "sources": sorted(recipe.data.sources)}


@dataclass(frozen=True)
class HeldOut:
    """Held-out images. what: which they are, in words; search: for what is chosen by accuracy; report: for what is said
    of it. They share none. calibration: which those are that are not held out.
    """

    what: str
    search: Sequence[Subset]
    report: Sequence[Subset]
    calibration: str = "training images"

    def splits(self, calibration: int, compared: Comparison | None) -> dict[str, dict[str, Any]]:
        """Which images were used for what: how many, and how they are cut."""
        halves = {"search": "key hash in [0, 0.5)", "report": "key hash in [0.5, 1)"} if self.search else {}
        counts = {"search": _count(self.search), "report": compared.num_images if compared else 0}
        parts = {
            part: {"images": count, "of": f"{self.what}, {halves[part]}" if part in halves else self.what}
            for part, count in counts.items()
            if count
        }
        return {"calibration": {"images": calibration, "of": f"{self.calibration}, by key hash"}, **parts}


def held_out(data: Splits, config: DataConfig, halved: bool, origin: Origin | None = None) -> HeldOut:
    """What a quantized model is compared with its run on. `halved`, by the hash of the keys, where the bits were chosen
    and not given plainly: those of a file may come from a front that was measured on the search half. `origin`: of a
    model that was trained elsewhere, on none of these images as far as is known.
    """
    calibration = HeldOut.calibration
    if origin:
        what, calibration = origin.held_out, "images that were given"
    elif data.validation:
        whole = bool(config.held_sources)
        what = "sources that are held out whole" if whole else "held-out parts of the training sources"
    else:
        what = "the test sources"
    parts = data.validation or data.test
    if not halved:
        return HeldOut(what, (), parts, calibration)
    search, report = (tuple(one.fraction(*half) for one in parts) for half in ((0, 0.5), (0.5, 1)))
    return HeldOut(what, search, report, calibration)


def _count(subsets: Sequence[Subset]) -> int:
    return sum(subset.num_samples for subset in subsets)


def measured_on(
    trained: Trained, config: DataConfig, what: str, subsets: Sequence[Subset]
) -> Callable[[FusionModel, str], Comparison] | None:
    """How a packed model compares with its run, which is measured once; gets what to call it. None without images."""
    if not _count(subsets):
        return None
    first = outcomes_on(
        {"trained": trained.model}, subsets, config, trained.classes, f"{trained.form} on search images"
    )
    names = (trained.form, "packed")

    def compared(model: FusionModel, called: str) -> Comparison:
        second = outcomes_on({"packed": model}, subsets, config, trained.classes, called)
        return Comparison(what, first["trained"], second["packed"], names, trained.measure)

    return compared


def compare(
    trained: Trained, quantized: Quantized, config: DataConfig, what: str, subsets: Sequence[Subset]
) -> Comparison:
    """The run and its quantized model on the same images."""
    models = {"trained": trained.model, "packed": quantized.model}
    found = outcomes_on(models, subsets, config, trained.classes, f"compare {trained.name}")
    return Comparison(what, found["trained"], found["packed"], (trained.form, "packed"), trained.measure)


def ship(
    trained: Trained,
    recipe: Recipe,
    quantized: Quantized,
    folder: Path,
    compared: Sequence[Comparison] = (),
    widths: Widths | None = None,
    splits: Mapping[str, Mapping[str, Any]] | None = None,
) -> Trained:
    """Writes the bundle of `quantized`, made from the run `trained`, and returns it, read back from disk. `compared`:
    what its card says about its accuracy; `widths`: how its bits came about; `splits`: the images that they were chosen
    and measured on.
    """
    assert isinstance(quantized.model, FusionModel)
    extra = file_metadata(trained, recipe)
    bits, sizes = all_bits(quantized), sizes_of(quantized.codes) if recipe.quantize.coded else None
    widths = widths or Widths(bits, span(bits) if recipe.quantize.searches else plainly(recipe.quantize), coded=sizes)
    foretold = predicted_bytes(quantized.model, bits, extra, widths.coded)
    card = card_of(trained, recipe, quantized.model, widths, foretold, compared, splits or {})
    write_bundle(folder, recipe, trained, quantized, extra, card, {"splits": splits} if splits else {})
    bundle = open_model(folder)
    _check_same(quantized.model, bundle)
    return bundle


def _check_same(measured: FusionModel, bundle: Trained) -> None:
    """What was measured is what the file holds."""
    read = bundle.model.state_dict()
    other = [name for name, value in measured.state_dict().items() if not torch.equal(value.cpu(), read[name])]
    if other or len(read) != len(measured.state_dict()):
        raise RuntimeError(f"{bundle.path}: read back, the model is another one: {', '.join(other[:3])} differ")
