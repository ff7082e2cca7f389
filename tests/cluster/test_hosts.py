"""Training on two hosts of a cluster, one of which crashes in the middle."""

import re
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.hosts import Hosts
from xfer.chain import read_chain
from xfer.checkpoint import latest_checkpoint
from xfer.history import read_metrics

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.slow]


def test_a_host_crashes_the_restart_is_reported_and_the_run_ends_whole_when_it_is_back(recipe_values, tmp_path):
    recipe_values["train"] |= {"steps": 60, "save_every": 2, "evaluate_every": 60}
    folder = Path(recipe_values["output"]) / "tiny"
    with Hosts(3) as hosts:
        hosts.start_cluster([0, 1, 1])
        job = {
            "recipe": recipe_values,
            "cluster": {"address": hosts.head, "workers": 2, "max_failures": 1},
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        command = hosts.start(0, [sys.executable, "-m", "xfer", "train", str(path)])
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/step-*/manifest.json")) and time.monotonic() < deadline:
            assert command.poll() is None, command.communicate()
            time.sleep(0.05)
        hosts.crash(2)
        hosts.start_again(2, cpus=1)
        _, errors = command.communicate(timeout=300)
    assert command.returncode == 0, errors
    assert re.search(r"worker of rank \d.*: .*host was lost", errors)  # which host, Ray does not always say
    assert "restart: attempt 2 of 2, from step " in errors
    assert sum(len(row.get("losses", ())) for row in read_metrics(folder)) == 60
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    assert newest.state.step == 60
    assert list(read_chain(folder).steps) == list(range(1, 61))
