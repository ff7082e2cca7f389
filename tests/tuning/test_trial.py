"""One trial without Ray: the head follows the fusion weights, whatever the features are like; what is scored."""

import dataclasses

import pytest
import torch

from cluster.config import Job
from shards.loading.batch import Slot
from shards.settings import replace
from tuning.trial import Shared, compared, realize, refit_head, share, trial
from xfer import run as one_process
from xfer.bundle import open_model
from xfer.config import ModelConfig
from xfer.engine import build_engine
from xfer.labels import masked_cross_entropy
from xfer.model import FusionModel, build_model

WEIGHTS = {"model.fusion.weights": {"fine": 0.1, "coarse": 0.9}}


@pytest.fixture
def job(recipe_values) -> Job:
    """Of a run that is trained."""
    job = Job.model_validate({"recipe": recipe_values})
    one_process.begin(job.recipe)
    one_process.fit(job.recipe, Slot(), build_engine, lambda row: None)
    return job


def head_loss(model: FusionModel, shared: Shared) -> float:
    """On the images the head is fitted to."""
    with torch.no_grad():
        fused = model.fusion(list(shared.features.unbind(1)))
        return float(masked_cross_entropy(model.head(fused), shared.targets, shared.masks).mean())


def test_the_head_is_refitted_to_the_weights_of_the_trial(job):
    shared = share(job, 24)
    before = open_model(shared.run).model
    before.fusion.set_weights([WEIGHTS["model.fusion.weights"][name] for name in before.branches])
    ours = realize(replace(job, {**WEIGHTS, "quantize.bits": 32}).recipe, shared).model
    assert head_loss(ours, shared) < head_loss(before, shared) - 0.05
    kept = realize(replace(job, {"quantize.bits": 32}).recipe, shared).model
    assert torch.equal(kept.head.weight, open_model(shared.run).model.head.weight)


def test_a_trial_is_scored_on_the_images_it_is_compared_on_also_where_the_recipe_decodes_on_a_gpu(job):
    rows = [
        trial({**WEIGHTS, "quantize.bits": 8}, job.recipe.folder, one.model_dump(mode="json"), 24, share(one, 24))
        for one in (job, replace(job, {"data.decode": "gpu"}))
    ]
    assert rows[0] == rows[1]
    assert sum(rows[0]["counts"].values()) >= 24
    shared = share(job, 24)
    found = compared(realize(replace(job, {**WEIGHTS, "quantize.bits": 8}).recipe, shared), shared)
    assert {name: right.sum() for name, right in found.packed.items()} == rows[0]["correct"]
    assert {name: right.size for name, right in found.float32.items()} == rows[0]["counts"]
    value, low, high = found.mean_difference
    assert low <= value < high


def synthetic(features: torch.Tensor, num_classes: int = 5, known: int = 5) -> tuple[FusionModel, Shared]:
    """A model of two branches, and features [n, 2, 16] whose classes are 0 and 1 by turns; `known` classes at all."""
    branches = {"fine": {"backbone": "resnet10"}, "coarse": {"backbone": "resnet10"}}
    config = ModelConfig.model_validate({"branches": branches, "fusion": {"width": 16}})
    model = build_model(config, num_classes, 0)
    masks = (torch.arange(num_classes) < known).expand(len(features), -1)
    targets = torch.arange(len(features)) % 2
    return model, Shared(None, features, targets, masks, [], [], {})  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("known", [2, 5])
@pytest.mark.parametrize(
    "features",
    [
        torch.zeros(8, 2, 16),
        torch.full((8, 2, 16), 3.0),
        torch.ones(1, 2, 16),
        torch.linspace(-1e4, 1e4, 256).view(8, 2, 16),
    ],
    ids=["zero", "constant", "one image", "large"],
)
def test_a_head_is_refitted_whatever_the_features_and_classes_are_like(features, known):
    model, shared = synthetic(features, known=known)
    start = model.head.weight.detach().clone()
    before = head_loss(model, shared)
    refit_head(model, shared)
    assert all(p.isfinite().all() for p in model.head.parameters())
    assert head_loss(model, shared) <= before + 1e-6
    # Classes that no source names have no gradient: their rows stay.
    assert torch.allclose(model.head.weight[known:], start[known:])


def test_no_image_to_refit_the_head_to_leaves_it_as_it_is():
    model, shared = synthetic(torch.zeros(0, 2, 16))
    start = model.head.weight.detach().clone()
    refit_head(model, dataclasses.replace(shared, targets=torch.zeros(0, dtype=torch.int64)))
    assert torch.equal(model.head.weight, start)
