"""The cluster goes in the middle of a search."""

import subprocess
import sys

import pytest

from cluster.session import set_environment
from shards.loading.batch import Slot
from shards.settings import dump
from tests.cluster.head import Head, wait_for
from tuning.config import Study
from tuning.record import num_trials, read_rows
from xfer import run as one_process
from xfer.begin import begin
from xfer.config import Recipe
from xfer.engine import build_engine

pytestmark = [pytest.mark.ray, pytest.mark.slow]

set_environment()  # before Ray is imported, and for the cluster that is started here


def test_an_outage_keeps_the_rows_and_the_same_command_goes_on_elsewhere(recipe_values, tmp_path):
    recipe = Recipe.model_validate(recipe_values)
    begin(recipe)
    one_process.fit(recipe, Slot(), build_engine, lambda row: None)
    study = {
        "name": "search",
        "job": {"recipe": recipe_values},
        "space": {"model.fusion.weights": {"simplex": ["fine", "coarse"]}},
        "search": {"trials": 1000, "images": 24, "concurrent": 1},
    }
    path, folder = tmp_path / "study.yaml", tmp_path / "runs" / "search"
    path.write_text(dump(Study.model_validate(study)))
    command = [sys.executable, "-m", "xfer", "tune", str(path)]
    with Head() as head:
        away = [*command, f"job.cluster.address={head.address}"]
        process = subprocess.Popen(away, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: (folder / "trials.jsonl").exists(), process)
        head.kill()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "the same command goes on" in errors
    kept = read_rows(folder)
    assert kept
    assert [row.error for row in kept] == [None] * len(kept)
    trials = num_trials(kept) + 1
    here = [*command, f"search.trials={trials}"]
    done = subprocess.run(here, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = read_rows(folder)
    assert rows[: len(kept)] == kept
    assert num_trials(rows) == trials
