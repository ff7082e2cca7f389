"""One trial, one process: fusion weights set and the head refitted, weights rounded, scored on held-out images.

Everything the trials share is computed once and handed to each worker once: pooled branch features for the head,
calibration images, and the images that are scored. A trial then costs two forward passes over calibration and one
over the scored images.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cluster.config import Job
from shards.loading.batch import Batch, Slot
from shards.loading.few import few
from shards.loading.open import Splits, open_data
from shards.settings import replace
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.evaluate import evaluate
from xfer.fusion import WeightedSum
from xfer.labels import LabelSpace, masked_cross_entropy, unify
from xfer.metrics import mean_accuracy
from xfer.model import FusionModel
from xfer.outcomes import Comparison, outcomes
from xfer.quant.cost import predicted_bytes
from xfer.quant.weights import Quantized
from xfer.quantize import calibration_images, quantize_model
from xfer.run import begin, fit, label_space
from xfer.train import DivergedError

REFIT_IMAGES = 2048
SCORED_BATCH = 32
PULL = 1e-3  # of the refitted head towards the trained one


@dataclass(frozen=True)
class Shared:
    """What trials on one trained run have in common. features: [n, N, d] float32; targets: [n] unified; masks: [n, K]
    bool.
    """

    run: Path
    features: Tensor
    targets: Tensor
    masks: Tensor
    calibration: list[Tensor]
    scored: list[Batch]
    sources: dict[str, tuple[str, ...]]


def share(job: Job, num_images: int) -> Shared:
    """Reads the trained run of `job` and makes what its trials share."""
    recipe = job.recipe
    data = open_data(recipe.data)
    trained = open_model(recipe.folder)
    features, targets, masks = _features(trained.model, data, recipe, label_space(data))
    return Shared(
        recipe.folder,
        features,
        targets,
        masks,
        calibration_images(data, recipe.data, recipe.quantize.calibration),
        few(data.validation, recipe.data, num_images, batch_size=SCORED_BATCH),
        {subset.name: tuple(subset.classes) for subset in data.validation},
    )


def _features(model: FusionModel, data: Splits, recipe: Recipe, labels: LabelSpace) -> tuple[Tensor, Tensor, Tensor]:
    names = [subset.name for subset in data.train]
    table, masks = labels.table(names), labels.masks(names)
    features, targets, known = [], [], []
    with torch.inference_mode():
        for batch in few(data.train, recipe.data, REFIT_IMAGES):
            stacked = torch.stack(model.features(batch.images), 1)
            unified = unify(table, batch.sources, batch.targets)
            counted = batch.valid & (unified >= 0)
            features.append(stacked[counted])
            targets.append(unified[counted])
            known.append(masks[batch.sources][counted])
    return torch.cat(features), torch.cat(targets), torch.cat(known)


def refit_head(model: FusionModel, shared: Shared, steps: int = 30) -> None:
    """Fits the linear head to the fused features under the model's present weights: L-BFGS, pulled to the trained
    head.
    """
    features = [f.clone() for f in shared.features.unbind(1)]  # clone: made in inference mode
    with torch.no_grad():
        fused = model.fusion(features)
    head = model.head
    start = [p.detach().clone() for p in head.parameters()]
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, line_search_fn="strong_wolfe")
    targets, masks = shared.targets.clone(), shared.masks.clone()

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = masked_cross_entropy(head(fused), targets, masks).mean()
        value = value + PULL * sum((p - s).square().sum() for p, s in zip(head.parameters(), start, strict=True))
        value.backward()
        return value

    optimizer.step(loss)


def trial(
    values: Mapping[str, Any], run: Path, job: Mapping[str, Any], num_images: int, shared: Shared | None
) -> dict[str, Any]:
    """What one set of values comes to: accuracy, bytes, and images right and scored by source, as plain values.

    Without `shared` the trial first trains its own run in `run`, going on with what is there of it. Raises ValueError
    if that diverged or nothing was scored. `job` is given as plain values: they cross process borders.
    """
    one = replace(Job.model_validate(job), values)
    if shared is None:
        one = replace(one, {"output": str(run.parent), "name": run.name, "data.workers": 0})
        _train(one.recipe)
        shared = share(one, num_images)
    quantized = realize(one.recipe, shared)
    scores = _score(quantized.model, shared)
    accuracy = mean_accuracy(scores)
    if not math.isfinite(accuracy):
        raise ValueError("no validation image has a class that the model knows")
    return {
        "accuracy": accuracy,
        "bytes": int(predicted_bytes(quantized.model, {name: codes.bits for name, codes in quantized.codes.items()})),
        "by_source": {name: score.accuracy for name, score in scores.items() if score.count},
        "correct": {name: score.correct for name, score in scores.items() if score.count},
        "counts": {name: score.count for name, score in scores.items() if score.count},
    }


def realize(recipe: Recipe, shared: Shared) -> Quantized:
    """The trained run with the recipe's fusion weights (its head refitted to them) and the recipe's bits."""
    model = open_model(shared.run).model
    weights = recipe.model.fusion.weights
    if weights and isinstance(model.fusion, WeightedSum):
        model.fusion.set_weights([weights[name] for name in model.branches])
        refit_head(model, shared)
    return quantize_model(model, recipe.quantize, shared.calibration)


def float_row(shared: Shared) -> dict[str, Any]:
    """Accuracy and bytes of the trained run as it is, on the images the trials are scored on."""
    trained = open_model(shared.run)
    return {"accuracy": mean_accuracy(_score(trained.model, shared)), "bytes": trained.weights_bytes}


def compared(quantized: Quantized, shared: Shared) -> Comparison:
    """The trained run and a quantized model on the images the trials are scored on."""
    trained = open_model(shared.run)
    models = {"float32": trained.model, "packed": quantized.model}
    found = outcomes(models, shared.scored, shared.sources, trained.classes, torch.device("cpu"))
    return Comparison("the images the search chose by", found["float32"], found["packed"])


def _score(model: nn.Module, shared: Shared) -> dict:
    classes = open_model(shared.run).classes
    return evaluate(model, shared.scored, shared.sources, classes, torch.device("cpu"))


def _train(recipe: Recipe) -> None:
    begin(recipe)
    try:
        fit(recipe, Slot(), build_engine, lambda row: None)
    except DivergedError as error:
        raise ValueError(f"training diverged: {error}") from None
