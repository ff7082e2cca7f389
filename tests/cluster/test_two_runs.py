"""Two runs at once on one machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster.launch import run
from shards.settings import ConfigError
from tests.cluster.test_train import job
from xfer.chain import FILE
from xfer.cost import without_cost
from xfer.history import read_metrics
from xfer.run import run_lock

pytestmark = [pytest.mark.ray]


def test_of_one_folder_the_second_is_refused_at_once(recipe_values):
    folder = Path(recipe_values["output"]) / "tiny"
    with run_lock(folder), pytest.raises(ConfigError, match="another process is running this"):
        run(job(recipe_values))


@pytest.mark.deepspeed
@pytest.mark.slow
def test_of_two_folders_both_are_trained(recipe_values, tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"recipe": recipe_values, "cluster": {"workers": 1, "max_failures": 0}}))
    command = [sys.executable, "-m", "xfer", "train", str(path)]
    both = [
        subprocess.Popen([*command, f"name={name}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name in ("one", "other")
    ]
    for process in both:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    folders = [Path(recipe_values["output"]) / name for name in ("one", "other")]
    assert (folders[0] / FILE).read_bytes() == (folders[1] / FILE).read_bytes()
    ends = [without_cost(read_metrics(folder))[-1] for folder in folders]
    assert ends[0] == ends[1]
    assert "accuracy" in ends[0]
