"""One trial without Ray: the head follows the fusion weights, whatever the features are like; what is scored."""

import dataclasses

import pytest
import torch

import xfer
from cluster.config import Job
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.settings import replace
from tuning.check import space_faults
from tuning.config import Distribution
from tuning.trial import Shared, compared, float_row, realize, refit_head, share, trial
from xfer import run as one_process
from xfer.begin import begin
from xfer.bundle import open_model
from xfer.checkpoint import checkpoint_name, chosen
from xfer.engine import build_engine
from xfer.folds import folds
from xfer.history import best_step, read_metrics, scores
from xfer.labels import masked_cross_entropy
from xfer.model import FusionModel, build_model
from xfer.model_config import ModelConfig
from xfer.outcomes import outcomes
from xfer.quantize import make_bundle, quantize_model

WEIGHTS = {"model.fusion.weights": {"fine": 0.1, "coarse": 0.9}}


@pytest.fixture
def job(recipe_values) -> Job:
    """Of a run that is trained."""
    job = Job.model_validate({"recipe": recipe_values})
    begin(job.recipe)
    one_process.fit(job.recipe, Slot(), build_engine, lambda row: None)
    return job


def head_loss(model: FusionModel, shared: Shared) -> float:
    """On the images the head is fitted to."""
    with torch.no_grad():
        fused = model.fusion(list(shared.features.unbind(1)))
        return float(masked_cross_entropy(model.head(fused), shared.targets, shared.masks).mean())


def test_the_head_is_refitted_to_the_weights_of_the_trial(job):
    (shared,) = share(job, 24)
    before = open_model(shared.run).model
    before.fusion.set_weights([WEIGHTS["model.fusion.weights"][name] for name in before.branches])
    ours = realize(replace(job, {**WEIGHTS, "quantize.bits": 32}).recipe, shared).model
    assert head_loss(ours, shared) < head_loss(before, shared) - 0.05
    kept = realize(replace(job, {"quantize.bits": 32}).recipe, shared).model
    assert torch.equal(kept.head.weight, open_model(shared.run).model.head.weight)  # pyright: ignore[reportAttributeAccessIssue]


def test_a_trial_is_scored_on_the_images_it_is_compared_on_also_where_the_recipe_decodes_on_a_gpu(job):
    rows = [
        trial({**WEIGHTS, "quantize.bits": 8}, job.recipe.folder, one.model_dump(mode="json"), 24, share(one, 24))
        for one in (job, replace(job, {"data.decode": "gpu"}))
    ]
    assert rows[0] == rows[1]
    assert sum(rows[0]["counts"].values()) >= 24
    shared = share(job, 24)
    found = compared(replace(job, {**WEIGHTS, "quantize.bits": 8}).recipe, shared)
    assert {name: right.sum() for name, right in found.second.items()} == rows[0]["correct"]
    assert {name: right.size for name, right in found.first.items()} == rows[0]["counts"]
    value, low, high = found.mean_difference
    assert low <= value < high


def test_the_size_of_a_trial_is_that_of_the_file(job, tmp_path):
    one = replace(job, {"quantize.bits": 5, "quantize.groups": {"head": 32, "layer4": 3}})
    row = trial({}, job.recipe.folder, one.model_dump(mode="json"), 24, share(one, 24))
    made = make_bundle(open_model(job.recipe.folder), one.recipe, open_data(one.recipe.data), tmp_path / "bundle")
    assert row["bytes"] == pytest.approx(made.bundle.weights_bytes, abs=200)  # less where it came from


@pytest.fixture
def left_out(recipe_values) -> Job:
    """Of a run, not trained, that leaves one source out."""
    recipe_values["model"]["branches"] = {"only": {"backbone": "resnet10"}}
    recipe_values["data"]["validation"] = "leave_one_source_out"
    return Job.model_validate({"recipe": recipe_values})


def test_with_one_source_left_out_a_trial_is_scored_on_each_source_by_the_run_without_it(left_out):
    recipe = left_out.recipe
    assert not space_faults(left_out, {"quantize.bits": Distribution.model_validate({"choice": [2, 8]})})
    xfer.fit(recipe, quiet=True)
    shared = share(left_out, 40)
    assert [[one.name for one in each.subsets] for each in shared] == [["outline"], ["paint"]]
    row = trial({"quantize.bits": 3}, recipe.folder, left_out.model_dump(mode="json"), 40, shared)
    assert set(row["counts"]) == {"outline", "paint"}
    assert all(10 <= count <= 20 for count in row["counts"].values())
    assert row["accuracy"] == pytest.approx(sum(row["by_source"].values()) / 2)
    for source, fold in folds(replace(recipe, {"quantize.bits": 3})).items():
        images = shared[["outline", "paint"].index(source)]
        assert images.run == fold.folder
        quantized = quantize_model(open_model(fold.folder).model, fold.quantize, images.calibration)
        right = outcomes({"m": quantized.model}, images.scored, [source], torch.device("cpu"))["m"]
        assert right[source].sum() == row["correct"][source]
    assert {n: r.sum() for n, r in compared(replace(recipe, {"quantize.bits": 3}), shared).second.items()} == row[
        "correct"
    ]
    assert len(open_model(shared[0].run).classes) < shared[0].num_classes == 4
    assert float_row(left_out, shared)["bytes"] == open_model(recipe.folder).weights_bytes


def test_with_one_source_left_out_a_trial_that_trains_trains_its_folds_alone(left_out, tmp_path):
    run = tmp_path / "trials" / "1" / "run"
    row = trial({"train.steps": 2}, run, left_out.model_dump(mode="json"), 24, None)
    assert set(row["by_source"]) == {"outline", "paint"}
    assert sorted(path.name for path in (run / "folds").iterdir()) == ["without-outline", "without-paint"]
    assert not (run / "checkpoints").exists()


def test_a_trial_that_trains_is_scored_at_the_step_that_its_folds_choose(left_out, tmp_path):
    run = tmp_path / "trials" / "1" / "run"
    values = {"train.select": "best", "train.steps": 4, "train.evaluate_every": 1, "quantize.bits": 32}
    row = trial(values, run, left_out.model_dump(mode="json"), 200, None)
    curves = {fold.name: scores(read_metrics(fold)) for fold in (run / "folds").iterdir()}
    means = {step: sum(curve[step] for curve in curves.values()) / 2 for step in (1, 2, 3, 4)}
    step = best_step(means)
    assert step is not None
    assert {chosen(fold / "checkpoints") for fold in (run / "folds").iterdir()} == {checkpoint_name(step)}
    assert row["accuracy"] == pytest.approx(means[step], abs=0.02)


def synthetic(features: torch.Tensor, num_classes: int = 5, known: int = 5) -> tuple[FusionModel, Shared]:
    """A model of two branches, and features [n, 2, 16] whose classes are 0 and 1 by turns; `known` classes at all."""
    branches = {"fine": {"backbone": "resnet10"}, "coarse": {"backbone": "resnet10"}}
    config = ModelConfig.model_validate({"branches": branches, "fusion": {"width": 16}})
    model = build_model(config, num_classes, 0)
    masks = (torch.arange(num_classes) < known).expand(len(features), -1)
    targets = torch.arange(len(features)) % 2
    return model, Shared(None, features, targets, masks, [], [], (), (), "centre", 5)  # pyright: ignore[reportArgumentType]


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
