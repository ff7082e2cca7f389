"""transfer.mode: what is trained when, under every engine; a stopped run goes on in the middle of a stage."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import xfer
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.settings import ConfigError, replace
from tests.xfer.ranks import fit_share
from xfer import run as runs
from xfer.begin import begin
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.cost import without_cost
from xfer.engine import build_engine
from xfer.history import read_metrics
from xfer.surface import Run
from xfer.transfer.stages import stages


@pytest.fixture
def staged(pretrained):
    """Trained in stages, with a checkpoint at each step."""
    pretrained["model"]["fusion"]["width"] = 64
    pretrained["train"] |= {"steps": 7, "save_every": 1, "keep": 20, "warmup": 0, "freeze_batchnorm": False}
    return pretrained | {"transfer": {"mode": "staged"}}


def saved(folder: Path) -> dict[int, dict[str, torch.Tensor]]:
    """The model of every checkpoint, by step."""
    paths = sorted(folder.glob("checkpoints/step-*"))
    return {int(path.name[5:]): load_file(path / "model.safetensors") for path in paths}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """The parts of the model (layer3, head, ...) of which a tensor differs."""
    names = [name for name in before if not torch.equal(before[name], after[name])]
    return {name.removeprefix("branches.only.").split(".")[0] for name in names}


TRAINED = [  # five stages over seven steps: 1, 1, 2, 1, 2 steps
    {"head", "projections", "layer4"},
    {"head", "projections", "layer4", "layer3"},
    {"head", "projections", "layer4", "layer3", "layer2"},
    {"head", "projections", "layer4", "layer3", "layer2"},
    {"head", "projections", "layer4", "layer3", "layer2", "layer1"},
    {"head", "projections", "layer4", "layer3", "layer2", "layer1", "conv1", "bn1"},
    {"head", "projections", "layer4", "layer3", "layer2", "layer1", "conv1", "bn1"},
]


@pytest.mark.parametrize("zero", [None, *[pytest.param(at, marks=pytest.mark.deepspeed) for at in (1, 3)]])
def test_each_stage_trains_one_layer_more_and_batchnorm_is_still_until_the_last(staged, zero, request):
    recipe = Recipe.model_validate(staged)
    begin(recipe)
    if zero is None:
        runs.fit(recipe, Slot(), build_engine, lambda row: None)
    else:
        request.getfixturevalue("two").run(fit_share, recipe, zero)
    models = saved(recipe.folder)
    assert [moved(models[step], models[step + 1]) for step in range(7)] == TRAINED
    statistics = [name for name in models[0] if "running_" in name]
    still = [all(torch.equal(models[0][name], models[step][name]) for name in statistics) for step in range(1, 8)]
    assert still == [True] * 5 + [False] * 2
    rates = {row["step"]: row["learning_rate"] for row in read_metrics(recipe.folder) if "loss" in row}
    assert [rates[step] for step in (1, 2, 3, 5, 6)] == pytest.approx([1e-4 * 0.3**k for k in range(5)])
    scored = [row["step"] for row in read_metrics(recipe.folder) if "accuracy" in row]
    assert scored == [0, 1, 2, 4, 5, 7]  # the probe, and the end of each stage


@pytest.mark.parametrize("changes", [{}, {"train.optimizer": "adamw", "train.ema": 0.9, "transfer.l2_sp": 0.1}])
def test_a_run_stopped_in_or_between_stages_goes_on_to_the_same_model(staged, changes):
    whole = replace(Recipe.model_validate(staged), changes)
    xfer.fit(whole, quiet=True)
    expected = saved(whole.folder)[7]
    for stop in (2, 4, 5):
        recipe = replace(whole, {"name": f"stopped-{stop}"})
        begin(recipe)

        def until(row, stop=stop):
            if "loss" in row and row["step"] == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            runs.fit(recipe, Slot(), build_engine, until)
        again = xfer.fit(recipe, quiet=True)
        last = saved(again.folder)[7]
        assert all(torch.equal(last[name], expected[name]) for name in expected), stop
        assert without_cost(again.metrics) == without_cost(Run(whole.folder).metrics)


@pytest.mark.parametrize("micro_batch", [None, 5])
def test_l2_sp_pulls_the_branches_to_where_they_began_and_takes_the_place_of_weight_decay(pretrained, micro_batch):
    """Of plain SGD: the second step differs by rate x pull x the way of the first."""
    pretrained["train"] |= {"steps": 2, "save_every": 1, "keep": 9, "warmup": 0, "schedule": "constant", "momentum": 0}
    pretrained["train"] |= {"micro_batch": micro_batch}
    free, held, plain = (
        saved(
            xfer.fit(pretrained, {"name": name, "transfer.l2_sp": pull, "train.weight_decay": decay}, quiet=True).folder
        )
        for name, pull, decay in (("free", 1e-9, 0.5), ("held", 5e3, 0.5), ("plain", 0, 0))
    )
    names = [name for name in free[0] if name.startswith("branches.") and name.endswith(("weight", "bias"))]
    for name in names:
        assert torch.equal(held[1][name], plain[1][name])
        pulled = 0.5 * (held[1][name] - held[0][name])
        torch.testing.assert_close(free[2][name] - held[2][name], pulled, atol=1e-6, rtol=1e-2)
        assert pulled.any()
    assert not torch.equal(held[1]["head.weight"], plain[1]["head.weight"])  # what is new still decays


def test_l2_sp_without_pretrained_weights_or_the_checkpoint_of_step_0_is_refused(pretrained, recipe_values):
    run = xfer.fit(pretrained, {"transfer.l2_sp": 0.1}, quiet=True)
    shutil.rmtree(run.folder / "checkpoints" / "step-00000000")
    with pytest.raises(ConfigError, match="step-00000000"):
        xfer.fit(pretrained, {"transfer.l2_sp": 0.1, "train.steps": 9}, quiet=True)
    for mode in ("feature", "quant"):
        with pytest.raises(ConfigError, match=rf"transfer\.l2_sp: must be left out with transfer\.mode {mode}"):
            xfer.fit(pretrained, {"name": "other", "transfer.l2_sp": 0.1, "transfer.mode": mode}, quiet=True)
    for changes in ({"train.probe_images": 0}, {"model.branches.only.weights": None}):
        with pytest.raises(ConfigError, match=r"transfer\.l2_sp: holds pretrained branches near"):
            xfer.fit(pretrained, {"name": "other", "transfer.l2_sp": 0.1, **changes}, quiet=True)


def test_no_branch_is_trained_deeper_than_its_train_from(staged):
    weights = staged["model"]["branches"]["only"]["weights"]
    staged["model"]["branches"]["other"] = {"backbone": "resnet10", "weights": weights, "train_from": "none"}
    staged["model"]["branches"]["only"]["train_from"] = "layer3"
    recipe = Recipe.model_validate(staged)
    depths = [[stage.recipe.model.branches[name].train_from for name in ("only", "other")] for stage in stages(recipe)]
    assert depths == [["layer4", "none"], ["layer3", "none"]]
    assert [(stage.start, stage.end) for stage in stages(recipe)] == [(0, 3), (3, 7)]
    assert "steps 4 to 7: layer3 and above, learning rate 3e-05" in str(stages(recipe)[1])


def test_feature_is_the_probe_of_all_training_images_and_nothing_after_it(staged, capsys):
    run = xfer.fit(staged, {"transfer.mode": "feature"}, quiet=True)
    data = open_data(run.recipe.data)
    count = sum(subset.num_samples for subset in data.train)
    assert f"fitted on {count} training images" in capsys.readouterr().err
    assert [row["step"] for row in run.metrics] == [0]
    (row,) = run.metrics
    scores = run.evaluate()
    assert {name: score.correct / score.count for name, score in scores.items()} == pytest.approx(row["accuracy"])
    branch = load_file(staged["model"]["branches"]["only"]["weights"])
    model = open_model(run.folder).model.state_dict()
    assert all(torch.equal(model[f"branches.only.{name}"], value) for name, value in branch.items())
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("checkpoints/*/*")}
    again = xfer.fit(staged, {"transfer.mode": "feature"}, quiet=True)
    assert before == {path: path.stat().st_mtime_ns for path in again.folder.rglob("checkpoints/*/*")}
    assert again.metrics == [row]
    assert run.quantize(bits=4).classes == run.model.classes


def test_probe_images_bounds_feature_too(staged, capsys):
    xfer.fit(staged, {"transfer.mode": "feature", "train.probe_images": 30}, quiet=True)
    assert "fitted on 30 training images" in capsys.readouterr().err


def test_what_cannot_be_transferred_is_refused_at_once(staged):
    def faults(**changes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            xfer.fit(staged, {key.replace("__", "."): value for key, value in changes.items()}, quiet=True)
        return caught.value.faults

    assert faults(train__steps=4) == ["train.steps: must be at least 5, one for each stage of transfer.mode staged"]
    (fault,) = faults(train__probe_images=0)
    assert fault.startswith("train.probe_images: must be at least 1 for transfer.mode staged")
    (fault,) = faults(transfer__stage_rate=2)
    assert fault == "transfer.stage_rate: must be at most 1, got 2"
    (fault,) = faults(transfer__mode="stagd")
    assert fault.endswith("got 'stagd'; did you mean 'staged'?")
    del staged["model"]["branches"]["only"]["weights"]
    for mode in ("staged", "feature"):
        (fault,) = faults(transfer__mode=mode)
        assert fault.startswith(f"transfer.mode: {mode} moves pretrained branches, and none has weights")


def test_the_mode_and_its_rate_cannot_change_within_a_run(staged):
    xfer.fit(staged, {"train.steps": 5}, quiet=True)
    for change, line in (
        ({"transfer.mode": "full"}, "transfer.mode: was staged, is now full"),
        ({"transfer.stage_rate": 0.5}, "transfer.stage_rate: was 0.3, is now 0.5"),
    ):
        with pytest.raises(ConfigError, match=line):
            xfer.fit(staged, change, quiet=True)
