"""A loss that is not finite stops the run, and nothing after it is kept."""

import json

import pytest
import torch

from shards.loading.batch import Slot
from shards.settings import replace
from xfer import run
from xfer.__main__ import main
from xfer.begin import begin
from xfer.checkpoint import TrainState, latest_checkpoint
from xfer.config import Recipe
from xfer.cost import without_cost
from xfer.engine import build_engine
from xfer.history import read_metrics
from xfer.train import DivergedError, check_finite


def no_constants(name: str) -> None:
    raise AssertionError(f"metrics.jsonl holds {name}")


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_finite_checkpoint(recipe_values, tmp_path, save_every):
    recipe_values["train"] |= {"steps": 2, "warmup": 0}
    fit = lambda values: run.fit(Recipe.model_validate(values), Slot(), build_engine, lambda row: None)  # noqa: E731
    begin(Recipe.model_validate(recipe_values))
    fit(recipe_values)
    recipe_values["train"] |= {"steps": 40, "learning_rate": 1e30, "log_every": 7, "save_every": save_every}
    with pytest.raises(DivergedError) as caught:
        fit(recipe_values)
    folder = Recipe.model_validate(recipe_values).folder
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    assert all(value.isfinite().all() for value in {**newest.model(), **newest.optimizer()}.values())
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=no_constants)
    text = str(caught.value)
    assert "step " in text
    assert str(newest.path) in text
    for setting in ("train.learning_rate (now 1e+30)", "train.warmup (now 0)", "train.clip_norm (now none)"):
        assert setting in text
    if save_every == 3:
        assert "paint" in text
        assert "outline" in text


def test_the_command_exits_with_1_and_says_why(recipe_values, tmp_path, capsys):
    recipe_values["train"] |= {"steps": 40, "warmup": 0, "learning_rate": 1e30, "save_every": 50, "evaluate_every": 50}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe_values))
    with pytest.raises(SystemExit) as caught:
        main(["fit", str(path)])
    said = capsys.readouterr()
    assert caught.value.code == 1
    assert "the loss of step" in said.err
    assert "no checkpoint was written yet" in said.err
    assert "trained" not in said.out


def test_weights_that_are_not_finite_are_never_saved():
    good = {"w": torch.ones(2), "count": torch.tensor(3)}
    check_finite(good, 1)
    with pytest.raises(DivergedError, match="after step 5 the model is not finite: bad and 1 more"):
        check_finite({**good, "bad": torch.tensor([1, torch.nan]), "worse": torch.tensor(torch.inf)}, 5)


def test_a_run_that_was_stopped_between_checkpoint_and_score_is_scored_when_it_goes_on(recipe_values):
    recipe = Recipe.model_validate(recipe_values)
    begin(recipe)
    run.fit(recipe, Slot(), build_engine, lambda row: None)
    metrics = recipe.folder / "metrics.jsonl"
    whole = metrics.read_text().splitlines(keepends=True)
    assert "accuracy" in whole[-1]
    metrics.write_text("".join(whole[:-1]))
    state = run.fit(replace(recipe, {"train.log_every": 1}), Slot(), build_engine, lambda row: None)
    assert isinstance(state, TrainState)
    assert without_cost(read_metrics(recipe.folder)) == without_cost(list(map(json.loads, whole)))
