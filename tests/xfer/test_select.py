"""train.select and train.patience: which checkpoint is the model, and when training ends."""

import json
import shutil
from typing import Any

import pytest
import yaml

import xfer
from shards.loading.batch import Slot
from shards.settings import ConfigError, replace
from xfer import run as runs
from xfer.begin import begin
from xfer.bundle import open_model
from xfer.checkpoint import checkpoint_name, chosen, latest_checkpoint
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.history import best_step, is_stalled, model_row, scores
from xfer.surface import Run


@pytest.fixture
def worse_and_worse(pretrained) -> dict[str, Any]:
    """Training that spoils the probe it begins as, scored at each other step."""
    pretrained["train"] |= {"steps": 12, "evaluate_every": 2, "save_every": 100, "keep": 1, "learning_rate": 0.1}
    pretrained["train"] |= {"select": "best", "log_every": 2, "clip_norm": 1.0}
    return pretrained


def accuracies(run: Run) -> dict[int, float]:
    rows = [row for row in run.metrics if row.get("accuracy")]
    return {row["step"]: sum(row["accuracy"].values()) / len(row["accuracy"]) for row in rows}


def best_of(found: dict[int, float]) -> int:
    return max(found, key=lambda step: (found[step], -step))


def test_the_best_checkpoint_is_the_model_of_the_run_and_what_is_packed(worse_and_worse):
    run = xfer.fit(worse_and_worse, quiet=True)
    found = accuracies(run)
    assert list(found) == [0, 2, 4, 6, 8, 10, 12]
    best = best_of(found)
    assert best < 12
    assert open_model(run.folder).weights_file.parent.name == checkpoint_name(best)
    scores = run.evaluate()
    assert sum(one.accuracy for one in scores.values()) / len(scores) == pytest.approx(found[best])
    assert model_row(run.folder)["step"] == best
    left = sorted(path.name for path in run.folder.glob("checkpoints/step-*"))
    assert left == sorted({checkpoint_name(step) for step in (0, best, 12)})
    packed = run.quantize(bits=8)
    float_weights = open_model(run.folder).model.head.weight
    assert (packed.model.head.weight - float_weights).abs().max() < 0.02 * float_weights.abs().max()


def test_last_is_the_newest_and_a_change_of_mind_takes_effect(worse_and_worse):
    run = xfer.fit(worse_and_worse, {"train.select": "last"}, quiet=True)
    assert open_model(run.folder).weights_file.parent.name == checkpoint_name(12)
    again = xfer.fit(worse_and_worse, {"train.steps": 14}, quiet=True)
    found = {step: value for step, value in accuracies(again).items() if step in (0, 12, 14)}  # the others are gone
    assert open_model(again.folder).weights_file.parent.name == checkpoint_name(best_of(found))
    back = xfer.fit(worse_and_worse, {"train.steps": 16, "train.select": "last"}, quiet=True)
    assert open_model(back.folder).weights_file.parent.name == checkpoint_name(16)
    assert chosen(back.folder / "checkpoints") is None


def test_a_change_of_mind_takes_effect_on_a_run_that_is_done(worse_and_worse, capsys):
    run = xfer.fit(worse_and_worse, quiet=True)
    best = best_of(accuracies(run))
    last = xfer.fit(worse_and_worse, {"train.select": "last"})
    assert "nothing is trained, the model is that of the last step now" in capsys.readouterr().err
    assert open_model(last.folder).weights_file.parent.name == checkpoint_name(12)
    assert last.recipe.train.select == "last"
    xfer.fit(worse_and_worse)
    assert f"the model is that of {checkpoint_name(best)} now" in capsys.readouterr().err
    assert open_model(run.folder).weights_file.parent.name == checkpoint_name(best)
    xfer.fit(worse_and_worse)
    assert "nothing is changed" in capsys.readouterr().err
    saved = yaml.safe_load((run.folder / "recipe.yaml").read_text())
    del saved["train"]["select"]  # as a version wrote it that did not know the key
    (run.folder / "recipe.yaml").write_text(yaml.safe_dump(saved))
    xfer.fit(worse_and_worse, {"train.select": "last"})
    assert open_model(last.folder).weights_file.parent.name == checkpoint_name(12)


def test_training_ends_when_patience_does_and_the_same_command_has_nothing_to_do(worse_and_worse):
    run = xfer.fit(worse_and_worse, {"train.patience": 4}, quiet=True)
    found = accuracies(run)
    assert max(found) == best_of(found) + 4 < 12
    files = [path for path in run.folder.rglob("*") if path.is_file() and path.name != ".lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = xfer.fit(worse_and_worse, {"train.patience": 4}, quiet=True)
    assert accuracies(again) == found
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    more = accuracies(xfer.fit(worse_and_worse, {"train.patience": 6}, quiet=True))
    assert max(more) == min(best_of(more) + 6, 12)


def test_a_run_stopped_before_its_patience_ends_at_the_same_step(worse_and_worse):
    recipe = replace(Recipe.model_validate(worse_and_worse), {"train.patience": 4})
    whole = accuracies(xfer.fit(recipe, quiet=True))
    stopped = replace(recipe, {"name": "stopped"})
    begin(stopped)

    def until(row: dict[str, Any]) -> None:
        if row["step"] == 2 and "accuracy" in row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.fit(stopped, Slot(), build_engine, until)
    checkpoint = latest_checkpoint(stopped.folder / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.state.step == 2
    assert accuracies(xfer.fit(stopped, quiet=True)) == whole


def test_a_chosen_checkpoint_that_is_gone_is_said_and_the_newest_taken(worse_and_worse, capsys):
    run = xfer.fit(worse_and_worse, quiet=True)
    name = chosen(run.folder / "checkpoints")
    assert name is not None
    shutil.rmtree(run.folder / "checkpoints" / name)
    assert open_model(run.folder).weights_file.parent.name == checkpoint_name(12)
    assert name in capsys.readouterr().err


def test_the_best_is_the_first_of_the_highest_and_patience_counts_steps():
    rows: list[dict[str, Any]] = [
        {"step": 5 * i, "accuracy": {"a": a, "b": 0.5}} for i, a in enumerate((0.1, 0.4, 0.3, 0.4, 0.2))
    ]
    rows.insert(2, {"step": 7, "loss": 1.0})
    found = scores(rows)
    assert found == pytest.approx({0: 0.3, 5: 0.45, 10: 0.4, 15: 0.45, 20: 0.35})
    assert best_step(found) == 5
    assert best_step({}) is None
    assert best_step({0: 0.0, 5: 0.0, 10: 0.0}) == 10, "nothing is right yet: no step is better than more training"
    assert [is_stalled(found, patience) for patience in (None, 15, 16)] == [False, True, False]
    assert not is_stalled({}, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.select": "last", "train.patience": 5}, "train.patience: waits for a better checkpoint"),
        (
            {"train.patience": 5, "transfer.mode": "staged"},
            "train.patience: must be left out with",
        ),
        ({"data.validation": 0}, "train.select: best chooses by validation"),
        (
            {"data.validation": "leave_one_source_out", "train.patience": 5},
            "train.patience: must be left out with data.validation: leave_one_source_out",
        ),
    ],
)
def test_what_cannot_be_chosen_is_refused(worse_and_worse, changes, message):
    with pytest.raises(ConfigError) as caught:
        xfer.fit(worse_and_worse, changes, quiet=True)
    assert message in str(caught.value)


def test_fit_says_which_step_is_the_model(worse_and_worse, tmp_path, capsys):
    from xfer.__main__ import app

    (tmp_path / "recipe.yaml").write_text(json.dumps(worse_and_worse))
    app(["fit", str(tmp_path / "recipe.yaml"), "train.patience=4"], result_action="return_value")
    said = capsys.readouterr().out
    best = best_of(accuracies(Run(tmp_path / "runs" / "tiny")))
    assert f"ended at step {best + 4} of 12: no accuracy was better than that of step {best} (train.patience 4)" in said
    assert "the best, " in said or "the probe is the model" in said
