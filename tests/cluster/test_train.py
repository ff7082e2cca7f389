"""Ray Train and DeepSpeed for real: the same losses on any number of workers, resume after signals, refusals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from cluster import session
from cluster.config import Job
from cluster.launch import run
from shards.loading.batch import Slot
from shards.settings import ConfigError, replace
from tests.cluster.listening import listening_of
from xfer import run as one_process
from xfer.backbone import Branch
from xfer.begin import begin
from xfer.chain import read_chain
from xfer.checkpoint import latest_checkpoint
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.folds import folds
from xfer.history import left_out_scores, probe_row, read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def one_session() -> Iterator[None]:
    """One local session for all: each costs a quarter of a minute."""
    with session.connect():
        yield


def losses(folder: Path) -> list[float]:
    return [loss for row in read_metrics(folder) for loss in row.get("losses", ())]


def fit(recipe: Recipe) -> list[float]:
    begin(recipe)
    one_process.fit(recipe, Slot(), build_engine, lambda row: None)
    return losses(recipe.folder)


def job(recipe_values: dict[str, Any], **cluster: Any) -> Job:
    return Job.model_validate({"recipe": recipe_values, "cluster": {"max_failures": 0, **cluster}})


def test_one_process_one_worker_and_two_workers_agree(recipe_values, tmp_path):
    """Batch of 12 over BatchNorm in evaluation mode: the world only divides the work. A pretrained branch, so all begin
    at step 0 with a linear probe.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(Branch("resnet10").state_dict(), tmp_path / "weights.safetensors")
    recipe_values["model"]["branches"]["fine"]["weights"] = str(tmp_path / "weights.safetensors")
    recipe_values["train"] |= {"learning_rate": 1e-5}
    expected = fit(replace(Recipe.model_validate(recipe_values), {"name": "plain"}))
    for workers, stage in ((1, 1), (2, 1)):
        one = replace(job(recipe_values, workers=workers, zero_stage=stage), {"name": f"w{workers}z{stage}"})
        with listening_of("RayTrainWorker") as listening:
            result = run(one)
        assert result.error is None
        assert listening == {"127.0.0.1"}  # neither torch's store nor gloo takes connections from elsewhere
        assert losses(result.path) == pytest.approx(expected, abs=1e-4)
        assert set(result.metrics["accuracy"]) == {"paint", "outline"}
        assert probe_row(read_metrics(result.path))


def test_a_run_of_one_process_goes_on_under_two_workers_and_back(recipe_values):
    """The portable checkpoint: SGD momentum and all, from PlainEngine to ZeRO 2 on two ranks and back."""
    recipe_values["train"] |= {"steps": 6, "save_every": 2}
    recipe = Recipe.model_validate(recipe_values)
    whole = replace(recipe, {"name": "whole"})
    expected = fit(whole)
    fit(recipe)
    cut_back_to(recipe.folder, 4)
    result = run(job(recipe_values, workers=2, zero_stage=2))
    assert result.error is None
    assert losses(recipe.folder) == pytest.approx(expected, abs=1e-4)
    cut_back_to(recipe.folder, 6)
    assert latest_checkpoint(recipe.folder / "checkpoints").state.step == 6  # written by two ranks, whole
    assert fit(recipe) == pytest.approx(expected, abs=1e-4)
    ends = [read_chain(one.folder).steps[6] for one in (whole, recipe)]
    assert ends[0]["images"] == ends[1]["images"]
    assert [ends[1]["ranks"], ends[0]["ranks"]] == [2, 1]


def cut_back_to(folder: Path, step: int) -> None:
    """Damages every checkpoint behind `step`."""
    for path in (folder / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            (path / "manifest.json").unlink()


def test_sigterm_then_ctrl_c_then_the_same_command(recipe_values, tmp_path):
    recipe_values["train"] |= {"steps": 100, "save_every": 5}
    recipe_values["data"]["workers"] = 1
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"recipe": recipe_values, "cluster": {"workers": 2}}))
    command = [sys.executable, "-m", "xfer", "train", str(path)]
    folder = Path(recipe_values["output"]) / "tiny"
    done = [0]
    for end, status, said in ((signal.SIGTERM, 143, "stopped by SIGTERM"), (signal.SIGINT, 130, "stopped")):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 200
        while saved(folder) == done[-1] and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        os.kill(process.pid, end)
        _, errors = process.communicate(timeout=100)
        assert process.returncode == status, errors
        assert errors.endswith(f"xfer: {said}; the same command goes on from here\n")
        assert "Traceback" not in errors
        done.append(saved(folder))
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert again.returncode == 0, again.stderr
    assert len(losses(folder)) == 100
    assert 0 < done[1] < done[2] < 100


def saved(folder: Path) -> int:
    """The step of the newest checkpoint; 0: there is none."""
    checkpoint = latest_checkpoint(folder / "checkpoints")
    return checkpoint.state.step if checkpoint else 0


def test_leave_one_source_out_trains_a_run_without_each_source_and_is_not_run_again(recipe_values, capsys):
    recipe_values["data"]["validation"] = "leave_one_source_out"
    one = job(recipe_values, workers=1)
    result = run(one)
    assert result.error is None
    assert "fold 2 of 2, without paint" in capsys.readouterr().err
    for source, fold in folds(one.recipe).items():
        expected = fit(replace(fold, {"name": f"plain-{source}"}))
        assert losses(fold.folder) == pytest.approx(expected, abs=1e-4)
        assert (fold.folder / "job.yaml").is_file()
    assert set(left_out_scores(result.path)) == {"outline", "paint"}
    assert latest_checkpoint(result.path / "checkpoints").state.classes == ["circle", "cross", "square", "star"]
    started = time.monotonic()
    assert run(one).error is None
    assert time.monotonic() - started < 5  # no Ray
    assert capsys.readouterr().err.count("trained and scored already") == 2


def test_several_seeds_are_those_of_one_process_and_are_not_run_again(recipe_values, tmp_path, capsys):
    import xfer

    one = job(recipe_values, workers=2)
    result = run(one, seeds=2)
    assert result.error is None
    assert "tiny, seed 2 of 2" in capsys.readouterr().err
    plain = xfer.fit(recipe_values, {"output": str(tmp_path / "plain")}, quiet=True, seeds=2)
    for ours, theirs in zip(xfer.Seeds(result.path).seeds, plain.seeds, strict=True):
        assert losses(ours.folder) == pytest.approx(losses(theirs.folder), abs=1e-4)
        assert (ours.folder / "job.yaml").is_file()
    assert xfer.Seeds(result.path).means == plain.means
    started = time.monotonic()
    assert run(one, seeds=2).error is None
    assert time.monotonic() - started < 5  # no Ray
    with pytest.raises(ConfigError, match="holds runs of several seeds; add more with --seeds"):
        run(one)


def test_impossible_worker_counts_are_refused_before_anything_starts(recipe_values):
    with pytest.raises(ConfigError) as caught:
        run(job(recipe_values, workers=64))
    text = str(caught.value)
    assert "64 workers of 1 CPU each do not fit" in text
    assert "cannot share data.batch_size: 12" in text
    assert not (Path(recipe_values["output"]) / "tiny" / "metrics.jsonl").exists()


def test_a_failing_worker_is_reported_not_raised(recipe_values, shards_root, tmp_path):
    """Damage beyond the budget on a worker: the error comes back with the run folder."""
    import shutil

    broken = tmp_path / "shards"
    shutil.copytree(shards_root, broken)
    for tar in (broken / "paint").glob("*.tar"):
        tar.write_bytes(b"\0" * tar.stat().st_size)
    recipe_values["data"]["root"] = str(broken)
    result = run(job(recipe_values, workers=1))
    assert result.error is not None
    assert "paint" in result.error
