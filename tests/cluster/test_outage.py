"""The cluster goes in the middle of a run."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.session import set_environment
from tests.cluster.head import Head, wait_for
from xfer.checkpoint import latest_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.slow]

set_environment()  # before Ray is imported, and for the cluster that is started here


def test_an_outage_ends_the_run_with_its_cause_and_what_was_saved(recipe_values, tmp_path):
    recipe_values["train"] |= {"steps": 10_000, "save_every": 2, "evaluate_every": 10_000}
    folder, path = Path(recipe_values["output"]) / "tiny", tmp_path / "job.yaml"
    with Head() as head:
        path.write_text(yaml.safe_dump({"recipe": recipe_values, "cluster": {"address": head.address, "workers": 1}}))
        command = [sys.executable, "-m", "xfer", "train", str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: bool(list(folder.glob("checkpoints/step-*/manifest.json"))), process)
        head.kill()
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "the Ray cluster has not answered for 20 s" in errors
    assert "the same command goes on" in errors
    assert latest_checkpoint(folder / "checkpoints")
