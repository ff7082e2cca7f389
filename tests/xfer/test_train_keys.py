"""Every key of `train`, and what it does: a key that did nothing would be found here."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shards.loading.batch import Batch, Slot
from shards.loading.evaluate import eval_stream
from shards.loading.open import open_data
from shards.loading.train import train_stream
from shards.settings import replace
from xfer import run
from xfer.begin import begin
from xfer.checkpoint import latest_checkpoint
from xfer.config import Recipe, TrainConfig
from xfer.engine import Engine, PlainEngine, build_engine, shares
from xfer.evaluate import evaluate, evaluate_subsets, score_row
from xfer.history import read_metrics
from xfer.labels import Objective, annotated
from xfer.metrics import Scores
from xfer.model import FusionModel, build_model
from xfer.train import learning_rate, set_training, train_step

CPU = torch.device("cpu")


class Net(nn.Module):
    """A convolution, a BatchNorm and a classifier, small enough to compute by hand."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images.float() / 255)).mean((2, 3)))


@pytest.fixture
def recipe(recipe_values) -> Recipe:
    """One branch, one source, one step."""
    recipe_values["data"] |= {"sources": {"paint": {"path": "paint"}}}
    recipe_values["model"] = {"branches": {"a": {"backbone": "resnet10"}}, "fusion": {"width": 16}}
    recipe_values["train"] = {"steps": 1, "warmup": 0, "learning_rate": 0.01, "freeze_batchnorm": True}
    return Recipe.model_validate(recipe_values)


def engine_of(recipe: Recipe, model: nn.Module | None = None, **keys: Any) -> PlainEngine:
    """The engine of a recipe whose `train` has these keys."""
    changed = replace(recipe, {f"train.{name}": value for name, value in keys.items()})
    engine = build_engine(model or Net(), changed, Slot(), device=CPU)
    assert isinstance(engine, PlainEngine)
    return engine


def moved(engine: Engine, gradients: list[float]) -> list[float]:
    """How far a step takes a weight of the head, for each gradient on it; all other gradients are zero."""
    weights, path = dict(engine.module.named_parameters()), []
    for gradient in gradients:
        before = weights["head.weight"][0, 0].item()
        engine.backward(weights["head.weight"][0, 0] * gradient + sum(p.sum() for p in weights.values()) * 0)
        engine.step()
        path.append(weights["head.weight"][0, 0].item() - before)
    return path


def fit(recipe: Recipe, **keys: Any) -> tuple[list[run.Row], dict[str, Tensor]]:
    """Rows and last checkpoint of a run whose `train` has these keys."""
    name = "-".join(f"{key}-{value}" for key, value in keys.items()).replace(".", "_") or "as-it-is"
    recipe = replace(recipe, {"name": name, **{f"train.{key}": value for key, value in keys.items()}})
    begin(recipe)
    run.fit(recipe, Slot(), build_engine, lambda row: None)
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    assert checkpoint is not None
    return read_metrics(recipe.folder), checkpoint.model()


def first_batch(recipe: Recipe) -> tuple[FusionModel, Batch, Objective]:
    """What a run begins with."""
    data = open_data(recipe.data)
    model = build_model(recipe.model, len(data.classes), recipe.train.seed)
    batch = next(train_stream(data.train, recipe.data, Slot()))
    return model, batch, Objective(annotated(data.train, len(data.classes)), [subset.name for subset in data.train])


def test_optimizer_momentum_and_learning_rate_are_those_of_sgd_and_adamw(recipe):
    for rate, m in ((0.1, 0.5), (0.2, 0.8)):
        keys = {"learning_rate": rate, "momentum": m, "weight_decay": 0}
        nesterov = [-rate * 3 * (1 + m), -rate * 3 * (1 + m + m * m)]
        assert moved(engine_of(recipe, optimizer="sgd", **keys), [3, 3]) == pytest.approx(nesterov, abs=1e-5)
        adam = [-rate, rate * (1 - m) / (1 + m)]  # of gradients of equal size and other signs; momentum is beta 1
        assert moved(engine_of(recipe, optimizer="adamw", **keys), [3, -3]) == pytest.approx(adam, abs=1e-4)
    plain = engine_of(recipe, momentum=0, weight_decay=0, learning_rate=0.1)
    assert moved(plain, [3, 3]) == pytest.approx([-0.3, -0.3], abs=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_shrinks_weights_but_not_norms_and_biases(recipe, optimizer):
    keys = {"optimizer": optimizer, "learning_rate": 0.5, "momentum": 0, "weight_decay": 0.1}
    engine = engine_of(recipe, **keys)
    nn.init.ones_(engine.module.get_parameter("norm.bias"))
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    moved(engine, [0.0])
    for name, p in engine.module.named_parameters():
        left = 0.95 if name in ("conv.weight", "head.weight") else 1.0
        torch.testing.assert_close(p.detach(), before[name] * left, msg=lambda text, name=name: f"{name}: {text}")


def test_clip_norm_is_the_longest_gradient(recipe):
    keys = {"learning_rate": 1.0, "momentum": 0, "weight_decay": 0}
    assert moved(engine_of(recipe, clip_norm=0.5, **keys), [4, 0.25]) == pytest.approx([-0.5, -0.25], abs=1e-4)
    assert moved(engine_of(recipe, **keys), [4]) == pytest.approx([-4], abs=1e-4)


def noting(seen: list[torch.dtype]) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
    """A forward hook that notes the dtype of what comes out."""
    return lambda module, inputs, output: seen.append(output.dtype)


def test_bf16_is_what_the_model_computes_in_and_fp32_what_it_keeps(recipe):
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    for precision, expected in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        engine = engine_of(recipe, precision=precision)
        seen: list[torch.dtype] = []
        for part in map(engine.module.get_submodule, ("conv", "head")):
            part.register_forward_hook(noting(seen))
        engine.backward(engine.forward(images).float().sum())
        assert seen == [expected, expected]
        assert {p.dtype for p in engine.module.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in engine.module.parameters() if p.grad is not None} == {torch.float32}


def test_micro_batch_is_the_most_a_model_sees_at_once_and_changes_nothing_else(recipe):
    model, batch, objective = first_batch(recipe)
    small, seen = engine_of(recipe, model, micro_batch=5), []
    small.module.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    whole = engine_of(recipe, first_batch(recipe)[0])
    for engine in (small, whole):
        set_training(engine.module, freeze_batchnorm=True)
        train_step(engine, batch, objective, 12)
    assert seen == [4, 4, 4]
    for found, expected in zip(small.module.parameters(), whole.module.parameters(), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    changed = replace(recipe, {"train.micro_batch": 5})
    assert [shares(changed, world) for world in (1, 2, 12)] == [(5, 3), (5, 2), (1, 1)]


def test_warmup_rises_to_the_rate_and_a_cosine_ends_at_zero(recipe):
    rates = [learning_rate(step, 12, 0.6, 4) for step in range(12)]
    assert rates[:4] == pytest.approx([0.15, 0.3, 0.45, 0.6])
    assert rates[4:] == pytest.approx([0.3 * (1 + math.cos(math.pi * k / 8)) for k in range(8)])
    start = first_batch(recipe)[0].get_parameter("head.weight").detach()
    whole, tenth = (fit(recipe, warmup=count, weight_decay=0)[1]["head.weight"] - start for count in (1, 10))
    torch.testing.assert_close(tenth, whole / 10, rtol=1e-3, atol=1e-6)
    assert whole.abs().sum() > 0


def test_a_constant_schedule_stays_at_the_peak_after_the_warmup(recipe):
    rates = [learning_rate(step, 12, 0.6, 4, "constant") for step in range(12)]
    assert rates == pytest.approx([0.15, 0.3, 0.45] + [0.6] * 9)
    rows, _ = fit(recipe, steps=4, schedule="constant", log_every=1)
    assert [row["learning_rate"] for row in rows if "loss" in row] == [0.01] * 4


def test_layer_decay_lowers_the_rate_of_each_layer_below_the_one_above_it(recipe):
    """Of plain SGD a step is the rate times the gradient: against a step without it, layer by layer."""
    keys = {"momentum": 0, "weight_decay": 0, "learning_rate": 1e-3}
    start = first_batch(recipe)[0].state_dict()
    one, other = (fit(recipe, layer_decay=decay, **keys)[1] for decay in (1.0, 0.5))
    expected = {"head": 1, "projections.a.0": 1, "branches.a.layer4": 0.5, "branches.a.layer3": 0.25}
    expected |= {"branches.a.layer1": 0.0625, "branches.a.conv1": 0.03125, "branches.a.bn1": 0.03125}
    for part, share in expected.items():
        names = [name for name in start if name.startswith(part) and name.endswith("weight")]
        found, whole = (sum((model[name] - start[name]).norm() for name in names) for model in (other, one))
        assert found / whole == pytest.approx(share, rel=0.1), part


def test_ema_hands_over_scores_and_goes_on_with_the_average_of_the_weights(recipe):
    """By hand: of the weights after each step the n-th leaves min(decay, (1 + n) / (10 + n)) to the average before."""
    keys = {"steps": 3, "save_every": 1, "keep": 9, "evaluate_every": 1, "learning_rate": 0.1}
    fit(recipe, **keys)
    rows, last = fit(recipe, **keys, ema=0.2)
    with_it, without = (
        [load_file(path / "model.safetensors") for path in sorted(folder.glob("checkpoints/step-*"))]
        for folder in sorted(recipe.folder.parent.iterdir(), key=lambda folder: "ema" not in folder.name)
    )
    average = first_batch(recipe)[0].state_dict()["head.weight"]
    for n, (found, raw) in enumerate(zip(with_it, without, strict=True), 1):
        average = torch.lerp(average, raw["head.weight"], 1 - min(0.2, (1 + n) / (10 + n)))
        torch.testing.assert_close(found["head.weight"], average)
        assert not torch.equal(average, raw["head.weight"])
    model = build_model(recipe.model, len(last["head.bias"]), seed=0)
    model.load_state_dict(last)
    data = open_data(recipe.data)
    row = score_row(evaluate_subsets(model, data.validation, recipe.data, data.classes, "validation"))
    assert row["evaluation_loss"] == pytest.approx(rows[-1]["evaluation_loss"])


def test_label_smoothing_spreads_the_target_evenly(recipe):
    model, batch, _ = first_batch(recipe)
    set_training(model, freeze_batchnorm=True)
    expected = nn.functional.cross_entropy(model(batch.images), batch.targets, label_smoothing=0.3).item()
    assert fit(recipe, label_smoothing=0.3)[0][0]["losses"] == pytest.approx([expected], abs=1e-5)
    assert fit(recipe)[0][0]["losses"] != pytest.approx([expected], abs=1e-3)


def test_freeze_batchnorm_keeps_its_statistics_through_the_run(recipe):
    for frozen in (True, False):
        model = fit(recipe, steps=2, evaluate_every=1, freeze_batchnorm=frozen)[1]
        counts = {name: int(value) for name, value in model.items() if name.endswith("num_batches_tracked")}
        assert set(counts.values()) == {0 if frozen else 2}
        assert (model["projections.a.1.running_mean"] == 0).all() == frozen


def test_steps_intervals_and_what_is_kept(recipe):
    keys = {"steps": 7, "log_every": 2, "evaluate_every": 5, "save_every": 3}
    rows, _ = fit(recipe, **keys, keep=2)
    assert [row["step"] for row in rows if "loss" in row] == [2, 3, 4, 6, 7]
    assert [len(row["losses"]) for row in rows if "loss" in row] == [2, 1, 1, 2, 1]
    assert [row["step"] for row in rows if "accuracy" in row] == [5, 7]
    fit(recipe, **keys, keep=9)
    saved = {
        folder.name.rpartition("keep-")[2]: sorted(path.name for path in folder.glob("checkpoints/step-*"))
        for folder in recipe.folder.parent.iterdir()
    }
    assert saved == {
        "2": ["step-00000006", "step-00000007"],
        "9": ["step-00000003", "step-00000006", "step-00000007"],
    }


def test_seed_is_that_of_the_initial_weights_and_not_of_the_order(recipe):
    one, other = (fit(recipe, seed=seed, learning_rate=1e-9) for seed in (1, 2))
    assert not torch.allclose(one[1]["head.weight"], other[1]["head.weight"])
    expected = build_model(recipe.model, len(one[1]["head.bias"]), seed=1).get_parameter("head.weight")
    torch.testing.assert_close(one[1]["head.weight"], expected.detach(), atol=1e-6, rtol=1e-4)
    assert torch.equal(*(first_batch(replace(recipe, {"train.seed": seed}))[1].positions for seed in (1, 2)))


def test_mixed_images_are_trained_on_with_both_their_labels(recipe):
    """The first loss of a run, by hand from the batch that its stream gives."""
    mixed = replace(recipe, {"data.augment.mixup": 1.0, "data.augment.cutmix": 1.0})
    model, batch, objective = first_batch(mixed)
    set_training(model, freeze_batchnorm=True)
    expected = objective(model(batch.images), batch).item() / len(batch)
    losses = nn.functional.cross_entropy(model(batch.images), batch.targets, reduction="none")
    assert batch.own_share is not None
    others = nn.functional.cross_entropy(model(batch.images), batch.other_targets, reduction="none")
    assert expected == pytest.approx((batch.own_share * losses + (1 - batch.own_share) * others).mean().item())
    assert fit(mixed)[0][0]["losses"] == pytest.approx([expected], abs=1e-5)


def test_every_key_of_train_has_its_test_here():
    tested = {"steps", "optimizer", "learning_rate", "momentum", "weight_decay", "warmup", "label_smoothing"}
    tested |= {"clip_norm", "freeze_batchnorm", "precision", "micro_batch", "evaluate_every", "save_every"}
    tested |= {"log_every", "keep", "seed"}
    tested |= {"ema", "layer_decay", "schedule"}
    tested |= {"select", "patience"}  # in test_select.py
    tested |= {"keep_evaluated"}  # in test_choice.py
    tested |= {"teacher"}  # in transfer/test_teacher.py
    tested |= {"probe_images"}  # in transfer/test_probe.py
    assert set(TrainConfig.model_fields) == tested


def test_evaluation_neither_drops_nor_counts_and_a_run_goes_on_training(recipe):
    """Batches of 12 or of 5, a model that was training: the same score, and BatchNorm as it was."""
    recipe = replace(recipe, {"model.dropout": 0.5})
    model, scores = first_batch(recipe)[0].train(), []
    before = {name: value.clone() for name, value in model.named_buffers()}
    subsets = open_data(recipe.data).validation
    for size in (12, 5):
        batches = eval_stream(subsets, replace(recipe, {"data.batch_size": size}).data, Slot())
        collected = Scores([one.name for one in subsets], subsets[0].classes, CPU)
        evaluate(model.train(), batches, collected, CPU)
        scores.append(collected.result()["paint"].loss)
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    for name, value in model.named_buffers():
        assert torch.equal(value, before[name]), name
    keys = {"steps": 3, "freeze_batchnorm": False, "log_every": 3}
    often, once = (fit(recipe, **keys, evaluate_every=every)[1] for every in (1, 3))
    assert all(torch.equal(often[name], once[name]) for name in once if name.endswith("num_batches_tracked"))
