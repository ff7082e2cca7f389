"""One trial, one process: fusion weights set and the head refitted, weights rounded, scored on held-out images.

The head of a detector or a segmenter is no linear map of one feature vector: it stays as it was trained.

Everything the trials share is computed once and handed to each worker once: pooled branch features for the head,
calibration images, and the images that are scored. A trial then costs two forward passes over calibration and one
over the scored images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.config import Job
from shards.loading.batch import Batch, Slot
from shards.loading.few import few
from shards.loading.frame import Resize
from shards.loading.open import Splits, open_data
from shards.loading.subset import Subset
from shards.settings import replace
from xfer.begin import begin
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.evaluate import evaluate
from xfer.folds import choose_among_folds, folds
from xfer.fusion import WeightedSum
from xfer.labels import annotated, as_sets, masked_cross_entropy, sets_of
from xfer.model import FusionModel, build_model
from xfer.outcomes import Comparison, outcomes_of
from xfer.quant.cost import CodedSizes, predicted_bytes, sizes_of
from xfer.quant.fold import fold
from xfer.quant.weights import Quantized
from xfer.quantize import calibration_images, file_metadata, quantize_model
from xfer.run import fit
from xfer.tasks.known import task_of
from xfer.tasks.task import Score, Task, mean_score
from xfer.train import DivergedError
from xfer.transfer.head import kept_classes
from xfer.transfer.linear import minimise

CPU = torch.device("cpu")
REFIT_IMAGES = 2048
SCORED_BATCH = 32
PULL = 1e-3  # of the refitted head towards the trained one


@dataclass(frozen=True)
class Shared:
    """What trials on one trained run have in common. features: [n, N, d] float32; targets: [n] int64; masks: [n, K]
    bool; targets are numbered by the classes of the run; of a detector or a segmenter there are none. subsets: what
    `scored` is of; classes, resize: of the run; num_classes: of the model on all sources, which a fold may know fewer
    of.
    """

    run: Path
    features: Tensor
    targets: Tensor
    masks: Tensor
    calibration: list[Tensor]
    scored: list[Batch]
    subsets: tuple[Subset, ...]
    classes: tuple[str, ...]
    resize: Resize
    num_classes: int


def share(job: Job, num_images: int) -> tuple[Shared, ...]:
    """What trials on the trained runs of `job` share: on the run itself, or on each of its folds if it leaves one
    source out. Together they score about `num_images`.
    """
    recipes = scored_recipes(job.recipe)
    whole = len(open_data(job.recipe.data).widened(kept_classes(job.recipe)).classes)
    return tuple(share_run(recipe, -(-num_images // len(recipes)), whole) for recipe in recipes)


def scored_recipes(recipe: Recipe) -> list[Recipe]:
    """The runs that a trial is scored on."""
    return list(folds(recipe).values()) or [recipe]


def share_run(recipe: Recipe, num_images: int, num_classes: int) -> Shared:
    """Reads the trained run of `recipe` and makes what trials on it share."""
    trained = open_model(recipe.folder)
    data = open_data(recipe.data).numbered(trained.classes)
    whole, none = task_of(trained.model.task).sees_whole, torch.zeros(0)
    features, targets, masks = (none, none, none) if whole else _features(trained.model, data, recipe)
    scored = few(data.validation, recipe.data, num_images, batch_size=SCORED_BATCH, originals=whole)
    return Shared(
        recipe.folder,
        features,
        targets,
        masks,
        calibration=calibration_images(data, recipe.data, recipe.quantize.calibration),
        scored=list(scored) if data.validation else [],
        subsets=data.validation,
        classes=tuple(trained.classes),
        resize=trained.resize,
        num_classes=num_classes,
    )


def _features(model: FusionModel, data: Splits, recipe: Recipe) -> tuple[Tensor, Tensor, Tensor]:
    masks, sets = annotated(data.train, len(data.classes)), sets_of(data.train)
    features, targets, known = [], [], []
    with torch.inference_mode():
        for batch in few(data.train, recipe.data, REFIT_IMAGES):
            stacked = torch.stack(model.features(batch.images), 1)
            counted = batch.valid & (batch.targets >= 0)
            features.append(stacked[counted])
            targets.append(as_sets(batch.targets[counted], sets))
            known.append(masks[batch.sources][counted])
    return torch.cat(features), torch.cat(targets), torch.cat(known)


def refit_head(model: FusionModel, shared: Shared, steps: int = 30) -> None:
    """Fits the linear head to the fused features under the model's present weights: L-BFGS, pulled to the trained
    head.
    """
    features = [f.clone() for f in shared.features.unbind(1)]  # clone: made in inference mode
    with torch.no_grad():
        fused = model.fused(features)
    head = model.head
    start = [p.detach().clone() for p in head.parameters()]
    targets, masks = shared.targets.clone(), shared.masks.clone()

    def loss() -> Tensor:
        value = masked_cross_entropy(head(fused), targets, masks).mean()
        return value + PULL * sum((p - s).square().sum() for p, s in zip(head.parameters(), start, strict=True))

    minimise(list(head.parameters()), loss, steps)


def trial(
    values: Mapping[str, Any], run: Path, job: Mapping[str, Any], num_images: int, shared: Sequence[Shared] | None
) -> dict[str, Any]:
    """What one set of values comes to, as plain values: a `Row`'s accuracy, or what else its measure is, bytes, and by
    source the images that were scored, with how many are right or an interval.

    Without `shared` the trial first trains its own run in `run`, or its folds there, going on with what is there of
    them. Raises ValueError if that diverged or nothing was scored. `job` is given as plain values: they cross process
    borders.
    """
    one = replace(Job.model_validate(job), values)
    if shared is None:
        one = replace(one, {"output": str(run.parent), "name": run.name, "data.workers": 0})
        for recipe in scored_recipes(one.recipe):
            _train(recipe)
        choose_among_folds(one.recipe)
        shared = share(one, num_images)
    task = task_of(one.recipe.model.task)
    scores: dict[str, Score] = {}
    bits: dict[str, int] = {}
    coded = None
    for each in shared:
        quantized = realize(one.recipe, each)
        scores |= _score(quantized.model, each, task)
        if not bits:
            bits = {name: codes.bits for name, codes in quantized.codes.items()}
            coded = sizes_of(quantized.codes) if one.recipe.quantize.coded else None
    mean = mean_score(scores)
    if not math.isfinite(mean):
        raise ValueError("no validation image has a class that the model knows")
    scores = {name: score for name, score in scores.items() if score.count}
    found = {
        "accuracy": mean,
        "bytes": packed_bytes(one.recipe, shared[0].num_classes, bits, coded),
        "by_source": {name: score.value for name, score in scores.items()},
        "counts": {name: score.count for name, score in scores.items()},
    }
    if task.sees_whole:
        return found | {"measure": task.measure, "intervals": {name: one.interval for name, one in scores.items()}}
    return found | {"correct": {name: score.kept()["correct"] for name, score in scores.items()}}


def packed_bytes(recipe: Recipe, num_classes: int, bits: Mapping[str, int], coded: CodedSizes | None = None) -> int:
    """Size of the packed model of a recipe, which need not be trained, with these bits by layer; coded: as for
    `predicted_bytes`.
    """
    model = fold(build_model(recipe.model, num_classes, 0, load_weights=False))
    return predicted_bytes(model, bits, coded=coded)


def realize(recipe: Recipe, shared: Shared) -> Quantized:
    """The trained run of `shared` with the recipe's fusion weights (its head refitted to them) and bits."""
    trained = open_model(shared.run)
    model, weights = trained.model, recipe.model.fusion.given
    if weights and isinstance(model.fusion, WeightedSum):
        model.fusion.set_weights([weights[name] for name in model.branches])
        if len(shared.features):
            refit_head(model, shared)
    return quantize_model(model, recipe.quantize, shared.calibration, file_metadata(trained, recipe))


def float_row(job: Job, shared: Sequence[Shared]) -> dict[str, Any]:
    """Accuracy, or the task's measure, and bytes of the trained run as it is, on the images trials are scored on."""
    scores: dict[str, Score] = {}
    for each in shared:
        scores |= _score(open_model(each.run).model, each, task_of(job.recipe.model.task))
    return {"accuracy": mean_score(scores), "bytes": open_model(job.recipe.folder).weights_bytes}


def compared(recipe: Recipe, shared: Sequence[Shared]) -> Comparison:
    """The trained runs, and what `recipe` makes of them, on the images the trials are scored on."""
    before, after = {}, {}
    for each in shared:
        models = {"float32": open_model(each.run).model, "packed": realize(recipe, each).model}
        found = outcomes_of(models, each.scored, each.subsets, each.classes, each.resize, CPU)
        before, after = before | found["float32"], after | found["packed"]
    measure = task_of(recipe.model.task).measure
    return Comparison("the images the search chose by", before, after, measure=measure)


def _score(model: nn.Module, shared: Shared, task: Task) -> dict[str, Score]:
    scores = task.scores(shared.subsets, shared.classes, shared.resize, CPU)
    return dict(evaluate(model, shared.scored, scores, CPU))


def _train(recipe: Recipe) -> None:
    begin(recipe)
    try:
        fit(recipe, Slot(), build_engine, lambda row: None)
    except DivergedError as error:
        raise ValueError(f"training diverged: {error}") from None
