"""A search with real Ray Tune on a real run: rows, front, best.yaml, bundle, report; stopped and gone on; refusals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from cluster import session
from cluster.config import Job
from shards.loading.batch import Slot
from shards.settings import ConfigError, dump, load, replace
from tuning import study as search
from tuning.config import Study
from tuning.record import num_trials, read_history, read_rows
from xfer import run as one_process
from xfer.__main__ import main
from xfer.begin import begin
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.engine import build_engine

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def one_session() -> Iterator[None]:
    """One local session for all: each costs a quarter of a minute."""
    with session.connect():
        yield


@pytest.fixture
def study(recipe_values) -> Study:
    """Its run is trained already, in this process."""
    recipe = Recipe.model_validate(recipe_values)
    begin(recipe)
    one_process.fit(recipe, Slot(), build_engine, lambda row: None)
    return Study.model_validate(
        {
            "name": "search",
            "job": {"recipe": recipe_values},
            "space": {
                "model.fusion.weights": {"simplex": ["fine", "coarse"]},
                "quantize.groups.layer4": {"choice": [2, 4, 8]},
            },
            "search": {"trials": 3, "images": 24},
        }
    )


def test_a_search_and_going_on_with_it(study, capsys, monkeypatch):
    from tuning.workers import Workers

    slots, images = [], []
    share = search.share
    monkeypatch.setattr(search, "share", lambda job, count: images.append(count) or share(job, count))
    monkeypatch.setattr(Workers, "__enter__", lambda self: slots.append(len(self.slots)) or self)
    rows = search.run(study).rows
    assert [row.error for row in rows] == [None] * 5
    assert num_trials(rows) == study.search.trials
    assert {row.baseline for row in rows if row.baseline} == {"plain 8 bits", "plain 4 bits"}
    assert all(sum(row.counts.values()) >= 24 and set(row.counts) == {"paint", "outline"} for row in rows)
    assert all(row.accuracy == pytest.approx(sum(row.by_source.values()) / 2) and row.host for row in rows)
    more = replace(study, {"search.trials": 5, "search.concurrent": 1})
    found = search.run(more)
    assert found.rows[:5] == rows
    assert num_trials(found.rows) == 5
    assert len({json.dumps(row.values, sort_keys=True) for row in found.rows}) == 7
    assert images == [24, 24]
    assert slots == [os.cpu_count(), 1]
    small = search.run(replace(more, {"search.tolerance": 0.99})).best
    assert small
    assert small.bytes == min(row.bytes for row in found.rows if row.in_space)
    assert len(slots) == 2  # nothing was missing, so no worker was started
    found = search.run(more)

    folder = search.folder_of(study)
    assert found.best
    assert found.best.in_space
    job = load(folder / "best.yaml", Job)
    weights = job.recipe.model.fusion.given
    assert weights is not None
    assert sum(weights.values()) == pytest.approx(1)
    assert job.recipe.name == "search-best"
    bundle = open_model(folder / "bundle")
    assert bundle.model.fusion_weights == pytest.approx(weights, abs=1e-4)
    assert bundle.weights_bytes == pytest.approx(found.best.bytes, rel=0.01)
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", str(folder / "bundle"), "--split", "test"])
    assert json.loads((folder / "evaluation-bundle.json").read_text())["test"]["neon"]["count"] == 120

    page = found.report.read_text()
    assert page.count("<svg") >= 1
    assert "plain 8 bits" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )


def test_ctrl_c_keeps_the_ended_trials_and_the_same_command_goes_on(study, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(dump(replace(study, {"search.trials": 6, "search.concurrent": 1})))
    command = [sys.executable, "-m", "xfer", "tune", str(path)]
    rows = search.folder_of(study) / "trials.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while not rows.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    kept = read_rows(rows.parent)
    assert 1 <= len(kept) < 8
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "best.yaml" in done.stdout
    assert read_rows(rows.parent)[: len(kept)] == kept
    assert num_trials(read_rows(rows.parent)) == 6
    assert "6/6 trials" in done.stderr
    assert "plain 4 bits" in done.stdout or "plain 8 bits" in (rows.parent / "report.html").read_text()


def test_other_paths_train_a_run_in_each_trial_and_one_that_diverges_is_a_row_with_its_cause(
    recipe_values, tmp_path, capsys
):
    values = {
        "name": "search",
        "job": {"recipe": recipe_values},
        "space": {"train.learning_rate": {"choice": [0.01, 0.02, 1e30]}},
        "search": {"trials": 6, "images": 24, "sampler": "random", "concurrent": 1},
    }
    path = tmp_path / "study.yaml"
    path.write_text(dump(Study.model_validate(values)))
    with pytest.raises(SystemExit, match="0"):
        main(["tune", str(path)])
    assert "all 3 combinations tried" in capsys.readouterr().out
    folder = search.folder_of(Study.model_validate(values))
    rows = {row.values.get("train.learning_rate", row.trial): row for row in read_rows(folder)}
    assert set(rows) == {0.01, 0.02, 1e30, "plain-4-bits"}  # the job itself, at plain 8 bits, is one of the three
    assert rows[0.01].baseline == "plain 8 bits"
    assert {row.host for row in rows.values()} == {socket.gethostname()}
    assert len(list(folder.glob("trials/*/run/recipe.yaml"))) == 3  # the two baselines share one
    diverged = rows[1e30]
    assert diverged.error
    assert diverged.traceback
    assert "NoneType" not in diverged.error
    assert load(folder / "best.yaml", Job).recipe.train.learning_rate in (0.01, 0.02)
    kept = read_history(folder)

    with pytest.raises(SystemExit, match="0"):
        main(["tune", str(path)])
    assert read_history(folder) == kept
    with pytest.raises(SystemExit, match="0"):
        main(["tune", str(path), "--retry-failed"])
    assert read_history(folder)[:-1] == kept
    again = read_history(folder)[-1]
    assert (again.trial, again.values, again.attempt) == (diverged.trial, diverged.values, 2)


def test_if_every_trial_fails_there_is_a_report_and_status_1(recipe_values, tmp_path, capsys):
    recipe_values["train"]["learning_rate"] = 1e30
    values = {
        "name": "search",
        "job": {"recipe": recipe_values},
        "space": {"train.learning_rate": {"log_uniform": [1e30, 1e31]}},
        "search": {"trials": 1, "images": 24},
    }
    path = tmp_path / "study.yaml"
    path.write_text(dump(Study.model_validate(values)))
    with pytest.raises(SystemExit, match="1"):
        main(["tune", str(path)])
    assert "every trial failed" in capsys.readouterr().err
    assert "No trial has succeeded" in (tmp_path / "runs" / "search" / "report.html").read_text()


def test_a_second_process_on_the_same_study_is_refused(recipe_values):
    space = {"quantize.bits": {"choice": [4, 8]}}
    study = Study.model_validate({"name": "search", "job": {"recipe": recipe_values}, "space": space})
    with one_process.run_lock(search.folder_of(study)), pytest.raises(ConfigError, match="another process"):
        search.run(study)


def test_another_space_in_the_same_folder_is_refused(study):
    folder = search.folder_of(study)
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(dump(study))
    with pytest.raises(ConfigError, match="holds another study"):
        search.run(replace(study, {"search.seed": 9}))
