"""A search with real Ray Tune on a real run: rows, front, best.yaml, bundle, report; stopped and gone on; refusals."""

import json
import signal
import subprocess
import sys
import time

import pytest

from cluster.config import Job
from shards.loading.batch import Slot
from shards.settings import ConfigError, dump, load, replace
from tuning import study as search
from tuning.config import Study
from tuning.pareto import read_rows
from tuning.report import write_report
from xfer import run as one_process
from xfer.__main__ import main
from xfer.bundle import open_model
from xfer.config import Recipe

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def study(recipe_values) -> Study:
    """Its run is trained already, in this process."""
    recipe = Recipe.model_validate(recipe_values)
    one_process.begin(recipe)
    one_process.fit(recipe, Slot(), one_process.plain_engine, lambda row: None)
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


def test_a_search_and_going_on_with_it(study, capsys):
    rows, _ = search.run(study)
    assert [row.error for row in rows] == [None] * 3
    more = replace(study, {"search.trials": 5})
    again, _ = search.run(more)
    assert [row.trial for row in again[:3]] == [row.trial for row in rows]
    assert len(again) == 5

    folder = search.folder_of(study)
    job = load(folder / "best.yaml", Job)
    weights = job.recipe.model.fusion.weights
    assert weights is not None
    assert sum(weights.values()) == pytest.approx(1)
    assert job.recipe.name == "search-best"
    bundle = open_model(folder / "bundle")
    assert bundle.model.fusion_weights == pytest.approx(weights, abs=1e-4)
    predicted = {row.bytes for row in again}
    assert min(abs(bundle.weights_bytes / size - 1) for size in predicted) < 0.01
    with pytest.raises(SystemExit, match="0"):
        main(["evaluate", str(folder / "bundle"), "--split", "test"])
    assert json.loads((folder / "evaluation-bundle.json").read_text())["test"]["neon"]["count"] == 120

    page = write_report(folder).read_text()
    assert page.count("<svg") >= 1
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
    assert 1 <= len(kept) < 6
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "best.yaml" in done.stdout
    assert read_rows(rows.parent)[: len(kept)] == kept
    assert len(read_rows(rows.parent)) == 6


def test_other_paths_train_a_run_in_each_trial(recipe_values):
    values = {
        "name": "search",
        "job": {"recipe": recipe_values},
        "space": {"train.learning_rate": {"log_uniform": [0.001, 0.1]}},
        "search": {"trials": 2, "images": 24, "sampler": "random"},
    }
    rows, _ = search.run(Study.model_validate(values))
    assert [row.error for row in rows] == [None] * 2
    assert len({row.values["train.learning_rate"] for row in rows}) == 2
    assert len(list(search.folder_of(Study.model_validate(values)).glob("trials/*/run/checkpoints"))) == 2


def test_another_space_in_the_same_folder_is_refused(study):
    folder = search.folder_of(study)
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(dump(study))
    with pytest.raises(ConfigError, match="holds another study"):
        search.run(replace(study, {"search.seed": 9}))
