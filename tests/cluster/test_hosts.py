"""Training on two hosts of a cluster, one of which crashes in the middle and comes back later."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.hosts import Hosts
from xfer.checkpoint import latest_checkpoint
from xfer.history import read_metrics

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.slow]
HURRIED = "from cluster import growth; growth.LOOK_S = growth.STAYS_S = 1; growth.WORTH_S = 0; "
STEPS = 400


def await_step(command: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 180
    while not any(row["step"] >= step for row in read_metrics(folder)):
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_after_a_host_crashed_fewer_workers_go_on_until_it_is_back_and_no_step_is_lost(recipe_values, tmp_path):
    recipe_values["train"] |= {"steps": STEPS, "save_every": 2, "evaluate_every": STEPS}
    folder = Path(recipe_values["output"]) / "tiny"
    with Hosts(3) as hosts:
        hosts.start_cluster([0, 1, 1])
        job = {
            "recipe": recipe_values,
            "cluster": {"address": hosts.head, "workers": {"min": 1, "max": 2}, "max_failures": 1},
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        main = f"from xfer.__main__ import main; main(['train', {str(path)!r}])"
        command = hosts.start(0, [sys.executable, "-c", HURRIED + main])
        await_step(command, folder, 6)  # so something is saved
        hosts.crash(2)
        before = read_metrics(folder)[-1]["step"]
        await_step(command, folder, before + 2)
        hosts.start_again(2, cpus=1)
        _, errors = command.communicate(timeout=300)
    assert command.returncode == 0, errors
    assert re.search(r"worker of rank \d.*: .*host was lost", errors)  # which host, Ray does not always say
    assert "restart: attempt 2 of 2, from step " in errors
    assert "going on with 1 workers, not 2" in errors
    assert re.search(r"room for 2 workers, not 1: restart, from step \d+", errors)
    assert sum(len(row.get("losses", ())) for row in read_metrics(folder)) == STEPS
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    assert newest.state.step == STEPS
