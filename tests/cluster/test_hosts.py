"""Training on two hosts of a cluster, one of which crashes in the middle and comes back later."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.hosts import Hosts
from xfer.chain import read_chain
from xfer.checkpoint import latest_checkpoint
from xfer.history import read_metrics

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.slow]
HURRIED = "from cluster import growth; growth.LOOK_S = growth.STAYS_S = 1; growth.WORTH_S = 0; "


def test_after_a_host_crashed_fewer_workers_go_on_until_it_is_back_and_no_step_is_lost(recipe_values, tmp_path):
    """Then SIGTERM, which saves: so the run is long enough on any machine."""
    recipe_values["train"] |= {"steps": 100_000, "save_every": 2, "evaluate_every": 100_000}
    folder, log = Path(recipe_values["output"]) / "tiny", tmp_path / "said"

    def wait(until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 240
        while not until():
            assert command.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def trained() -> int:
        return max((row["step"] for row in read_metrics(folder)), default=0)

    def goes_on() -> None:
        step = trained()
        wait(lambda: trained() > step + 4)

    with Hosts(3) as hosts:
        hosts.start_cluster([0, 1, 1])
        job = {
            "recipe": recipe_values,
            "cluster": {"address": hosts.head, "workers": {"min": 1, "max": 2}, "max_failures": 1},
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        main = f"from xfer.__main__ import main; main(['train', {str(path)!r}])"
        command = hosts.start(0, [sys.executable, "-c", HURRIED + main], log)
        goes_on()
        hosts.crash(2)
        wait(lambda: "going on with 1 workers, not 2" in log.read_text())
        goes_on()
        hosts.start_again(2, cpus=1)
        wait(lambda: "room for 2 workers, not 1: restart, from step " in log.read_text())
        goes_on()
        command.terminate()
        assert command.wait(120) == 143, log.read_text()
    said = log.read_text()
    assert re.search(r"worker of rank \d.*: .*host was lost", said)  # which host, Ray does not always say
    assert "restart: attempt 2 of 2, from step " in said
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    assert sum(len(row.get("losses", ())) for row in read_metrics(folder)) == newest.state.step == trained()
    assert list(read_chain(folder).steps) == list(range(1, newest.state.step + 1))
