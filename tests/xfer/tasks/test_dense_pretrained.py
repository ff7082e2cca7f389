"""Detectors and segmenters that begin with pretrained branches: settled, taken over, staged, frozen."""

import pytest
import torch
from safetensors.torch import load_file

from shards.settings import ConfigError, replace
from tests.xfer.tasks.conftest import Values
from tests.xfer.tasks.runs import EVERY, fit, losses
from xfer.begin import begin
from xfer.checkpoint import START, latest_checkpoint
from xfer.config import Recipe
from xfer.prepare import prepare
from xfer.soup import make_soup


def begun(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The weights of step 0."""
    prepare(recipe, say=False)
    begin(recipe)
    return load_file(recipe.folder / "checkpoints" / START / "model.safetensors")


def newest(recipe: Recipe) -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint.model()


def statistics(tensors: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tensors.items() if name.startswith(part) and "running" in name}


@pytest.mark.parametrize("kind", EVERY)
def test_batchnorm_above_pretrained_branches_begins_with_statistics_of_images(
    pretrained_values: Values, branch_weights, kind
):
    recipe = Recipe.model_validate(pretrained_values(kind))
    assert recipe.train.freeze_batchnorm
    found, given = begun(recipe), load_file(branch_weights)
    for name, value in given.items():
        assert torch.equal(found[f"branches.main.{name}"], value), name
    settled = statistics(found, "projections.")
    assert settled
    for name, value in settled.items():
        fresh = torch.zeros_like(value) if name.endswith("mean") else torch.ones_like(value)
        assert not torch.allclose(value, fresh, atol=1e-3), name
    if kind in ("lraspp", "deeplabv3"):
        assert all((value != 0).any() for name, value in statistics(found, "head.").items() if "mean" in name)
    fit(recipe)
    after = newest(recipe)
    for name, value in statistics(found, "").items():
        assert torch.equal(after[name], value), f"{name} stays still"


@pytest.mark.parametrize("kind", ["fcos", "fpn", "deeplabv3"])
def test_a_classifiers_branches_are_taken_and_that_is_said(values: Values, recipe_values, kind, capsys):
    recipe_values["model"] = {"branches": {"main": {"backbone": "resnet10"}}, "fusion": {"width": 16}}
    recipe_values["train"] |= {"steps": 1, "save_every": 1, "evaluate_every": 1}
    source = Recipe.model_validate(recipe_values | {"name": "source"})
    fit(source)
    given = values(kind)
    given["model"] = {"from": str(source.folder), "fusion": {"width": 32}, "head": {"kind": kind}}
    recipe = Recipe.model_validate(given)
    capsys.readouterr()
    found, theirs = begun(recipe), newest(source)
    said = capsys.readouterr().err
    assert f"begins as {source.folder}" in said
    assert "resnet10 taken; its projections new" in said
    for name, value in theirs.items():
        if name.startswith("branches."):
            assert torch.equal(found[name], value), name
    assert len(fit(recipe)) == 4


@pytest.mark.parametrize("kind", ["fcos", "fpn"])
def test_staged_training_unfreezes_from_the_top(pretrained_values: Values, kind):
    given = pretrained_values(kind)
    given["transfer"] = {"mode": "staged"}
    given["train"] |= {"steps": 5, "save_every": 1, "keep": 10, "evaluate_every": 5}
    recipe = Recipe.model_validate(given)
    start = begun(recipe)
    found = fit(recipe)
    assert len(found) == len(losses(recipe.folder)) == 5
    first = load_file(recipe.folder / "checkpoints" / "step-00000001" / "model.safetensors")
    last = newest(recipe)
    stem = "branches.main.conv1.weight"
    layer4 = next(name for name in start if name.startswith("branches.main.layer4") and name.endswith("conv2.weight"))
    assert torch.equal(first[stem], start[stem])
    assert not torch.equal(first[layer4], start[layer4])
    assert not torch.equal(last[stem], start[stem])


@pytest.mark.parametrize("kind", ["fcos", "lraspp"])
def test_a_frozen_branch_does_not_move(pretrained_values: Values, kind):
    given = pretrained_values(kind)
    given["model"]["branches"]["main"]["train_from"] = "none"
    recipe = Recipe.model_validate(given)
    start = begun(recipe)
    fit(recipe)
    moved = {name for name, value in newest(recipe).items() if not torch.equal(value, start[name])}
    assert not {name for name in moved if name.startswith("branches.")}
    assert {name.split(".")[0] for name in moved} >= {"projections", "head"}


def test_resume_of_a_pretrained_run_equals_the_uninterrupted_one(pretrained_values: Values):
    recipe = Recipe.model_validate(pretrained_values("fcos"))
    expected = fit(replace(recipe, {"name": "whole"}))
    cut = replace(recipe, {"name": "cut"})
    fit(cut)
    checkpoint = latest_checkpoint(cut.folder / "checkpoints")
    assert checkpoint is not None
    (checkpoint.path / "model.safetensors").write_bytes(b"")
    assert fit(cut) == expected


def test_a_soup_of_detectors_tells_their_measure_and_wants_one_head(pretrained_values, tmp_path):
    recipe = Recipe.model_validate(pretrained_values("fcos"))
    changes = {"one": {}, "two": {"data.seed": 1}, "other": {"data.seed": 1, "train.seed": 1}}
    runs = {name: replace(recipe, {"name": name, **change}) for name, change in changes.items()}
    for run in runs.values():
        fit(run)
    soup = make_soup([runs["one"].folder, runs["two"].folder], tmp_path / "soup")
    assert "AP alone" in soup.text()
    with pytest.raises(ConfigError, match=r"train\.seed: 1, not 0"):
        make_soup([runs["one"].folder, runs["other"].folder], tmp_path / "other")
