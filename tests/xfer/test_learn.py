"""Fusion weights that are learned: on what is set apart they find the branch that helps, on the training loss the one
that memorises; a run with them goes on at any step, on any number of ranks.
"""

import hashlib
from itertools import cycle
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import xfer
from shards.loading.apart import apart_batches
from shards.loading.batch import Batch, Slot
from shards.loading.open import open_data
from shards.settings import ConfigError, load, replace
from tests.xfer.ranks import fit_share
from xfer.begin import begin
from xfer.bundle import BundleRecipe, open_model
from xfer.checkpoint import latest_checkpoint
from xfer.config import Recipe
from xfer.cost import without_cost
from xfer.engine import PlainEngine
from xfer.history import read_metrics
from xfer.labels import Objective
from xfer.learn import KEPT, LEARNED, MIXTURE, WEIGHTS, Learner, choose
from xfer.model import FusionModel
from xfer.optimizer import build_optimizer
from xfer.prepare import prepare
from xfer.train import set_training, train_step

CLASSES, CHANNELS = 4, 64
CPU = torch.device("cpu")


class Sees(nn.Module):
    """Says the class of an image, which its mean tells but for noise."""

    channels: ClassVar = {5: CHANNELS}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        directions = torch.linspace(-2, 2, CHANNELS)[None, :] * x.mean((1, 2, 3))[:, None]
        return {"C5": directions.sin()[:, :, None, None]}


class Memorises(nn.Module):
    """Knows each image from every other, by a hash, and nothing of what they have in common."""

    channels: ClassVar = {5: CHANNELS}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        rows = []
        for image in x:
            seed = int.from_bytes(hashlib.sha256(image.numpy().tobytes()).digest()[:7])
            rows.append(torch.randn(CHANNELS, generator=torch.Generator().manual_seed(seed)))
        return {"C5": 3 * torch.stack(rows)[:, :, None, None]}


def drawn(count: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (count,), generator=generator)
    level = 60 + 40 * targets + 30 * torch.randn(count, generator=generator)
    noise = 10 * torch.randn(count, 3, 8, 8, generator=generator)
    images = (level[:, None, None, None] + noise).clamp(0, 255).to(torch.uint8)
    positions = torch.arange(count)
    return Batch(images, targets, torch.zeros_like(targets), positions, positions >= 0)


def learned(on: str) -> dict[str, float]:
    """w after training on 48 images again and again."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        branches: dict[str, Any] = {"memorises": Memorises(), "sees": Sees()}
        model = FusionModel(branches, {"memorises": None, "sees": None}, "wsum", None, CHANNELS, CLASSES)
    engine = PlainEngine(model, build_optimizer(model, "sgd", 0.005, 0.9, 0.0), device=CPU)
    objective = Objective(torch.ones(1, CLASSES, dtype=torch.bool), ["s"])
    trained, apart = drawn(48, seed=1), cycle([drawn(48, seed=2), drawn(48, seed=3)])
    learner = Learner(engine, objective, 48, apart if on == "held_out" else None)
    for step in range(1, 81):
        set_training(model, freeze_batchnorm=False)
        train_step(engine, trained, objective, 48)
        learner.after(step, trained, 1.0)
    assert model.fusion_weights
    return model.fusion_weights


def test_a_branch_that_memorises_gets_a_low_weight_held_out_and_a_high_one_on_the_training_loss():
    assert learned("held_out")["memorises"] < 0.1
    assert learned("train")["memorises"] > 0.6


def test_one_branch_is_kept_unless_the_mixture_is_better_by_more_than_the_standard_error():
    better = {MIXTURE: [1.0, 1.1, 0.9], "a": [1.5, 1.6, 1.4], "b": [2.0, 2.1, 1.9]}
    assert choose(better) == MIXTURE
    assert choose({**better, "b": [1.2, 0.9, 0.95]}) == "b", "within the noise"
    assert choose({**better, "a": [1.0, 1.0, 0.9], "b": [1.0, 1.1, 0.9]}) == "a", "the better of two"
    assert choose({MIXTURE: [1.0], "a": [1.01]}) == MIXTURE


@pytest.fixture
def values(recipe_values) -> dict[str, Any]:
    recipe_values["model"]["fusion"]["learn"] = "held_out"
    recipe_values["train"] |= {"steps": 8, "learning_rate": 0.05, "evaluate_every": 8}
    return recipe_values


def weights(run: Any) -> list[dict[str, float]]:
    return [row[WEIGHTS] for row in run.metrics if WEIGHTS in row]


def keys(subsets: Any) -> set[int]:
    return {int(key) for subset in subsets for key in subset.key_hashes()}


def test_what_is_set_apart_is_never_trained_or_validated_on(values):
    recipe = Recipe.model_validate(values)
    assert recipe.data.set_apart == 0.1
    data, before = open_data(recipe.data), open_data(replace(recipe, {"data.set_apart": 0}).data)
    assert keys(data.apart)
    assert not keys(data.apart) & (keys(data.train) | keys(data.validation))
    assert keys(data.apart) | keys(data.train) | keys(data.validation) == keys(before.train) | keys(before.validation)
    assert [one.name for one in data.apart] == ["outline", "paint"]
    held = open_data(replace(recipe, {"data.validation": ["paint"]}).data)
    assert [one.name for one in held.apart] == ["paint"], "a source that is held out gives it"
    assert keys(held.train) == keys([one for one in before.train if one.name == "outline"]) | keys(
        [one for one in before.validation if one.name == "outline"]
    )
    assert not keys(held.apart) & keys(held.validation)


def test_batches_of_what_is_set_apart_take_the_sources_in_turn_on_any_number_of_ranks(values):
    recipe = Recipe.model_validate(values)
    apart = open_data(recipe.data).apart
    whole = list(apart_batches(apart, recipe.data, Slot(), 0, 5))
    assert [set(batch.sources.tolist()) for batch in whole] == [{0}, {1}, {0}, {1}, {0}]
    assert {int(p) for batch in whole for p in batch.positions} == set(range(sum(one.num_samples for one in apart)))
    parts = zip(*(apart_batches(apart, recipe.data, Slot(rank, 5), 3, 5) for rank in range(5)), strict=True)
    for batch, shares in zip(whole[3:], parts, strict=True):
        assert torch.equal(torch.cat([one.positions for one in shares]), batch.positions)
        assert torch.equal(torch.cat([one.images for one in shares]), batch.images)


def test_a_run_learns_its_weights_says_so_and_repeats_to_the_bit(values, capsys):
    run = xfer.fit(values, quiet=True)
    found = weights(run)
    assert len(found) == 8
    assert found[0] == found[2] == {"coarse": 0.5, "fine": 0.5}
    assert found[3] != found[2], "after every fourth step"
    assert found[3] == found[6]
    last = run.metrics[-2]
    assert last[KEPT] in (MIXTURE, "coarse", "fine")
    assert run.model.model.fusion_weights == pytest.approx(last[WEIGHTS])
    assert last[WEIGHTS] == last[LEARNED] or last[WEIGHTS][last[KEPT]] == 1.0
    again = xfer.fit(values, {"name": "again"}, quiet=True)
    assert without_cost(again.metrics) == without_cost(run.metrics)
    given = xfer.fit(values, {"name": "given", "model.fusion.learn": None, "data.set_apart": 0}, quiet=True)
    assert not weights(given)
    assert "As they were learned" in run.report().read_text()
    bundle = run.quantize()
    assert load(bundle.path / "recipe.yaml", BundleRecipe).model.fusion.given == pytest.approx(last[WEIGHTS])
    assert bundle.model.fusion_weights == pytest.approx(last[WEIGHTS])


def test_weights_are_learned_on_the_training_batches_with_train_which_is_warned_of(values, capsys):
    run = xfer.fit(values, {"model.fusion.learn": "train"}, quiet=True)
    assert "rewards the branch that memorises" in capsys.readouterr().err
    assert run.recipe.data.set_apart == 0
    assert weights(run)[-1] != weights(run)[0]
    assert KEPT not in run.metrics[-2]


def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(values):
    whole = xfer.fit(values, {"name": "whole"}, quiet=True)
    cut = xfer.fit(values, {"name": "cut"}, quiet=True)
    newest = latest_checkpoint(cut.folder / "checkpoints")
    assert newest is not None
    (newest.path / "model.safetensors").write_bytes(b"")
    assert latest_checkpoint(cut.folder / "checkpoints").state.step == 6  # pyright: ignore[reportOptionalMemberAccess]
    again = xfer.fit(values, {"name": "cut"}, quiet=True)
    assert without_cost(again.metrics) == without_cost(whole.metrics)


@pytest.mark.deepspeed
@pytest.mark.parametrize("stage", [1, 3])
def test_two_ranks_learn_the_weights_of_one_process(values, two, stage):
    one = xfer.fit(values, quiet=True)
    recipe = replace(Recipe.model_validate(values), {"name": f"two-{stage}", "train.micro_batch": 4})
    prepare(recipe, 2)
    begin(recipe)
    two.run(fit_share, recipe, stage)
    rows = read_metrics(recipe.folder)
    found = [row[WEIGHTS] for row in rows if WEIGHTS in row]
    for mine, theirs in zip(weights(one), found, strict=True):
        assert theirs == pytest.approx(mine, abs=1e-4)
    assert open_model(recipe.folder).model.fusion_weights == pytest.approx(weights(one)[-1], abs=1e-4)


def test_left_out_sources_learn_the_weights_of_the_run_on_all(values, capsys):
    values["data"] |= {"validation": "leave_one_source_out", "test": {}}
    values["train"] |= {"steps": 4, "save_every": 4, "evaluate_every": 4}
    run = xfer.fit(values, quiet=True)
    folds = [xfer.surface.Run(run.folder / "folds" / f"without-{name}") for name in ("paint", "outline")]
    each = [fold.model.model.fusion_weights for fold in folds]
    assert each[0] != each[1]
    mean = {name: sum(one[name] for one in each) / 2 for name in each[0]}
    assert run.model.model.fusion_weights == pytest.approx(mean)
    assert not weights(run), "nothing is learned on the sources that it is trained on"
    for fold, name in zip(folds, ("paint", "outline"), strict=True):
        row = run.left_out[name]
        (held,) = open_data(fold.recipe.data).validation
        assert row["count"] + row["not_counted"] == held.num_samples
    assert "the mean of what each run learned on the source it leaves out" in run.report().read_text()


REFUSED = {
    "concat": ({"model.fusion.kind": "concat"}, "fusion.learn: must be left out for concat"),
    "nothing apart": ({"data.set_apart": 0}, "learns on what data.set_apart holds back, and it is 0"),
    "too few steps": ({"train.steps": 3}, "takes a step after every 4 of training, and this run has 3"),
    "apart for nothing": ({"model.fusion.learn": None, "data.set_apart": 0.1}, "data.set_apart: must be 0, got 0.1"),
    "too little": ({"data.set_apart": 0.0001}, "leaves none on one side"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_learned_is_refused_with_the_reason(values, name):
    changes, reason = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        xfer.fit(values, changes, quiet=True)
    assert reason in str(caught.value)


def test_one_branch_has_nothing_to_learn(values):
    values["model"]["branches"].pop("coarse")
    with pytest.raises(ConfigError, match=r"fusion.learn: needs two branches or more"):
        xfer.fit(values, quiet=True)
