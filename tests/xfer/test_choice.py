"""train.select: best with leave_one_source_out: the sources that runs never saw choose the step of the run on all."""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from safetensors.torch import load_file

import xfer
from shards.loading.batch import Slot
from shards.settings import ConfigError, replace
from tests.xfer.command import status
from xfer import run as runs
from xfer.begin import begin
from xfer.bundle import open_model
from xfer.checkpoint import checkpoint_name, latest_checkpoint
from xfer.choice import Choice, read_choice
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.folds import compare_folds, folds
from xfer.history import best_step, is_trained, last_step, read_metrics, scores
from xfer.surface import Run

LEFT_OUT = {"data.validation": "leave_one_source_out", "train.select": "best"}


@pytest.fixture
def values(pretrained, fast) -> dict[str, Any]:
    """Training that moves a lot, scored at each other of 6 steps and at its probe."""
    pretrained["train"] |= {"steps": 6, "evaluate_every": 2, "save_every": 100, "keep": 1, "learning_rate": 0.02}
    pretrained["train"] |= {"clip_norm": 1.0}
    return pretrained


def curves(run: Run) -> dict[str, dict[int, float]]:
    return {
        source: scores(read_metrics(run.folder / "folds" / f"without-{source}")) for source in run.recipe.data.sources
    }


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def model_step(folder: Path) -> str:
    return open_model(folder).weights_file.parent.name


def chosen_before(recipe: Recipe, step: int) -> None:
    """As folds that chose this step leave the run folder."""
    recipe.folder.mkdir(parents=True)
    chosen = Choice(step, recipe.steps, {"paint": {step: 0.5}}).to_json()
    (recipe.folder / "leave_one_source_out.json").write_text(json.dumps({"sources": {}, "chosen": chosen}))


def test_the_step_with_the_highest_mean_over_left_out_sources_is_the_model_of_the_run_and_its_folds(
    values, tmp_path, capsys
):
    run = xfer.fit(values, LEFT_OUT, quiet=True)
    found = curves(run)
    assert all(list(curve) == [0, 2, 4, 6] for curve in found.values())
    means = {step: fmean(curve[step] for curve in found.values()) for step in (0, 2, 4, 6)}
    step = best_step(means)
    assert step is not None
    choice = read_choice(run.folder)
    assert choice == Choice(step, 6, found)
    for folder in (run.folder, *(fold.folder for fold in folds(run.recipe).values())):
        assert model_step(folder) == checkpoint_name(step)
    assert steps_in(run.folder) == sorted({0, step})
    for source, fold in folds(run.recipe).items():
        assert steps_in(fold.folder) == sorted({0, step, 6})
        assert run.left_out[source]["accuracy"] == pytest.approx(found[source][step])
        assert run.left_out[source]["step"] == step
    compared = compare_folds(run.folder, run.recipe)
    assert compared is not None
    assert {name: right.mean() for name, right in compared.first.items()} == pytest.approx(
        {source: curve[step] for source, curve in found.items()}
    )

    files = [path for path in run.folder.rglob("*") if path.is_file() and path.name not in (".lock", "recipe.yaml")]
    before = {path: path.read_bytes() for path in files}
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    assert status("fit", str(tmp_path / "recipe.yaml"), *(f"{path}={value}" for path, value in LEFT_OUT.items())) == 0
    said = capsys.readouterr()
    assert f"step {step} of 6" in said.out
    assert f"of 4 evaluated steps; cost: 2 more runs of 6 steps. {choice.text().split('. ')[1]}" in said.out
    assert "up to the step that they choose" in said.err
    assert {path: path.read_bytes() for path in files} == before
    assert status("report", str(run.folder)) == 0
    assert choice.text() in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("mode", ["full", "staged"])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_the_run_ends_at_the_chosen_step_as_the_model_that_all_its_steps_pass_through(values, step, mode):
    values["transfer"] = {"mode": mode}
    values["train"]["steps"] = 10  # staged: a stage ends with step 2, another one with 4
    whole = xfer.fit(
        values,
        {"name": "whole", "data.validation": 0, "train.keep_evaluated": True},
        quiet=True,
    )
    assert steps_in(whole.folder) == [0, 2, 4, 6, 8, 10]
    recipe = replace(Recipe.model_validate(values), LEFT_OUT)
    chosen_before(recipe, step)
    begin(recipe)
    runs.fit(recipe, Slot(), build_engine, lambda row: None)
    assert max(steps_in(recipe.folder)) == last_step(recipe) == step
    assert is_trained(recipe, latest_checkpoint(recipe.folder / "checkpoints"))
    name = f"checkpoints/{checkpoint_name(step)}/model.safetensors"
    expected, got = (load_file(run / name) for run in (whole.folder, recipe.folder))
    assert all((got[key] == value).all() for key, value in expected.items())


@pytest.mark.parametrize("stop", [{"step": 1, "loss": 0}, {"step": 4, "loss": 0}])
def test_a_run_that_was_stopped_ends_at_the_chosen_step_too(values, stop):
    values["train"] |= {"steps": 10, "save_every": 1, "log_every": 1}
    recipe = replace(Recipe.model_validate(values), LEFT_OUT)
    chosen_before(recipe, 4)
    begin(recipe)

    def until(row: dict[str, Any]) -> None:
        if row["step"] == stop["step"]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.fit(recipe, Slot(), build_engine, until)
    assert not is_trained(recipe, latest_checkpoint(recipe.folder / "checkpoints"))
    runs.fit(recipe, Slot(), build_engine, lambda row: None)
    assert max(steps_in(recipe.folder)) == 4
    other = replace(recipe, {"name": "other"})
    chosen_before(other, 4)
    begin(other)
    runs.fit(other, Slot(), build_engine, lambda row: None)
    name = f"checkpoints/{checkpoint_name(4)}/model.safetensors"
    one, two = (load_file(each.folder / name) for each in (recipe, other))
    assert all((one[key] == value).all() for key, value in two.items())


def test_a_change_of_mind_takes_effect_and_what_cannot_be_had_is_said(values):
    run = xfer.fit(values, {**LEFT_OUT, "train.select": "last"}, quiet=True)
    assert model_step(run.folder) == checkpoint_name(6)
    assert read_choice(run.folder) is None

    run = xfer.fit(values, LEFT_OUT, quiet=True)  # of the steps whose checkpoints are there
    choice = read_choice(run.folder)
    assert choice is not None
    means = choice.means
    step = best_step({step: means[step] for step in (0, 6)})
    assert choice.step == step
    assert all(
        model_step(each) == checkpoint_name(choice.step) for each in (run.folder, *(run.folder / "folds").iterdir())
    )
    higher = [f"step {at}" for at, mean in means.items() if mean > means[choice.step]]
    assert ("scored higher" in choice.text()) == bool(higher)

    assert run.recipe.train.select == "best", "what was run is what recipe.yaml says"

    run = xfer.fit(values, {**LEFT_OUT, "train.select": "last"}, quiet=True)
    assert run.recipe.train.select == "last"
    assert all(model_step(each) == checkpoint_name(6) for each in (run.folder, *(run.folder / "folds").iterdir()))
    assert {row["step"] for row in run.left_out.values()} == {6}

    for fold in (run.folder / "folds").iterdir():  # as if the probe had scored best, and its checkpoint were gone
        rows = read_metrics(fold)
        rows[0]["accuracy"] = dict.fromkeys(rows[0]["accuracy"], 1.0)
        (fold / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for file in (run.folder / "checkpoints" / checkpoint_name(0)).iterdir():
        file.unlink()
    (run.folder / "checkpoints" / checkpoint_name(0)).rmdir()
    with pytest.raises(ConfigError, match="left-out sources chose step 0, and this run is at step 6"):
        xfer.fit(values, LEFT_OUT, quiet=True)
    assert all(model_step(each) == checkpoint_name(6) for each in (run.folder, *(run.folder / "folds").iterdir()))
    assert {row["step"] for row in run.left_out.values()} == {6}


def test_the_mean_decides_and_each_source_is_told_at_the_step_that_the_others_choose():
    choice = Choice(
        4,
        9,
        {
            "a": {0: 0.5, 4: 0.9, 8: 0.6},
            "b": {0: 0.6, 4: 0.7, 8: 0.8},
            "c": {4: 0.2, 8: 0.2, 9: 1.0},
        },
    )
    assert choice.means == pytest.approx({4: 0.6, 8: 1.6 / 3})
    assert choice.by_the_others == pytest.approx(fmean([0.6, 0.7, 0.2]))  # a: at 8; b: 4; c: at 4
    assert "step 4 of 9 is the model" in choice.text()


def test_of_three_sources_or_more_a_random_part_is_said_to_choose_worse(values, shards_root, capsys):
    del values["data"]["test"]
    values["train"] |= {"steps": 1, "select": "best"}
    values["data"]["validation"] = 0.2
    xfer.fit(values, {"name": "two"}, quiet=True)
    assert "leave_one_source_out chooses better" not in capsys.readouterr().err
    values["data"]["sources"]["neon"] = {"path": "neon"}
    xfer.fit(values, {"name": "three"}, quiet=True)
    said = capsys.readouterr().err
    assert said.count("leave_one_source_out chooses better, at the cost of 3 more runs") == 1
