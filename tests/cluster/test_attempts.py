"""Restarts under real Ray: a killed worker is reported and replaced; what would come again is not tried again."""

import json
import os
import re
import shutil
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

import cluster
import xfer
from cluster import session
from cluster.launch import run
from tests.cluster.test_train import job, losses
from xfer.__main__ import main
from xfer.checkpoint import TrainState, latest_checkpoint, write_checkpoint, write_manifest
from xfer.cost import without_cost
from xfer.history import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def one_session() -> Iterator[None]:
    with session.connect():
        yield


def train(values: dict[str, Any], tmp_path: Path, **cluster: Any) -> int:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"recipe": values, "cluster": cluster}))
    with pytest.raises(SystemExit) as ended:
        main(["train", str(path)])
    return int(ended.value.code or 0)


def kill_a_rank_each_time_a_checkpoint_comes(folder: Path, times: int) -> threading.Thread:
    """kill -9 of one Ray Train worker of this process, `times` times, each after another new checkpoint."""

    def kill() -> None:
        for _ in range(times):
            known = set(folder.glob("checkpoints/step-*/manifest.json"))
            while not set(folder.glob("checkpoints/step-*/manifest.json")) - known:
                time.sleep(0.05)
            ranks = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.cmdline()[0]]
            os.kill(ranks[-1].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    return killer


def test_killed_workers_are_reported_then_given_up_and_the_same_command_goes_on(recipe_values, tmp_path, capfd):
    """Two ranks; one is killed in each of two attempts: the other one, which lost it, is not taken for the cause."""
    recipe_values["train"] |= {"steps": 60, "save_every": 2, "evaluate_every": 60}
    folder = Path(recipe_values["output"]) / "tiny"
    killer = kill_a_rank_each_time_a_checkpoint_comes(folder, 2)
    assert train(recipe_values, tmp_path, workers=2, max_failures=1) == 1
    killer.join()
    errors = capfd.readouterr().err
    assert errors.count("its process was killed, as by signal 9") == 2
    assert errors.count("restart: ") == 1
    assert "restart: attempt 2 of 2, from step " in errors
    assert f"on host {os.uname().nodename} (127.0.0.1)" in errors
    assert "training failed; the same command resumes it" in errors
    done = latest_checkpoint(folder / "checkpoints").state.step
    assert 4 <= done < 60
    assert train(recipe_values, tmp_path, workers=1, max_failures=0) == 0
    assert len(losses(folder)) == 60


def test_a_run_that_diverges_is_not_started_again(recipe_values, tmp_path, capfd):
    recipe_values["train"] |= {"steps": 30, "learning_rate": 1e30}
    assert train(recipe_values, tmp_path, workers=2, max_failures=2) == 1
    errors = capfd.readouterr().err
    assert "DivergedError" in errors
    assert "restart" not in errors
    assert "resumes it" not in errors


def test_faults_of_input_on_a_worker_end_with_status_2_and_faults_of_the_program_with_1(
    recipe_values, shards_root, tmp_path, capfd, monkeypatch
):
    from cluster import launch

    begin, prepare = launch.begin, launch.prepare
    root = tmp_path / "shards"
    shutil.copytree(shards_root, root)
    recipe_values["data"]["root"] = str(root)

    def begin_and_lose(*arguments: Any) -> None:
        """As if the data were on this machine only."""
        begin(*arguments)
        root.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(launch, "begin", begin_and_lose)
    assert train(recipe_values, tmp_path, workers=1, max_failures=2) == 2
    errors = capfd.readouterr().err
    assert str(root) in errors
    assert f"(on host {os.uname().nodename})" in errors
    assert "restart" not in errors

    (tmp_path / "elsewhere").rename(root)
    monkeypatch.setattr(launch, "begin", begin)

    def prepare_and_spoil(*arguments: Any) -> Any:
        """As if another version of the program had written a checkpoint."""
        found = prepare(*arguments)
        path = write_checkpoint(Path(recipe_values["output"]) / "tiny" / "checkpoints", TrainState(), {}, {})
        (path / "state.json").write_text('{"unheard_of": 1}')
        write_manifest(path, {})
        return found

    monkeypatch.setattr(launch, "prepare", prepare_and_spoil)
    monkeypatch.setattr(launch, "latest_checkpoint", lambda folder: None)
    monkeypatch.setattr(launch, "model_checkpoint", lambda folder: (None, []))
    monkeypatch.setattr(launch, "all_done", lambda *arguments: False)
    assert train(recipe_values, tmp_path, workers=1, max_failures=2) == 1
    errors = capfd.readouterr().err
    assert "TypeError" in errors
    assert "restart" not in errors
    assert "resumes it" not in errors


def test_a_run_stopped_between_its_last_save_and_its_score_is_scored(recipe_values):
    whole = xfer.fit(recipe_values, quiet=True)
    rows = whole.folder / "metrics.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    whole_metrics = whole.metrics[-1]
    assert "accuracy" in lines[-1]
    rows.write_text("".join(lines[:-1]))
    again = run(job(recipe_values, workers=1))
    assert again.error is None
    assert without_cost([again.metrics]) == without_cost([whole_metrics])
    assert read_metrics(whole.folder)[-1]["step"] == 4


def test_a_host_that_does_not_come_back_is_said_with_what_is_left():
    from cluster.capacity import NoRoomError, await_return
    from cluster.config import Between, ClusterConfig

    cores = os.cpu_count() or 1
    assert await_return(ClusterConfig(workers=1, wait_s=10)) == 1
    assert await_return(ClusterConfig(workers=Between(min=1, max=cores + 3), wait_s=10)) == cores
    with pytest.raises(NoRoomError) as missing:
        await_return(ClusterConfig(workers=1 + cores, wait_s=1))
    assert "waited 1 s for room" in str(missing.value)
    assert "goes on with what is left" in str(missing.value)


def test_prometheus_gets_what_ranks_do_and_the_dashboard_draws_what_there_is():
    import ray

    from cluster.gauges import GAUGES, PART, Gauges

    row = {"step": 40, "images_per_s": 71.5, "replaced": 0, "exchange": 0.25, "mean": {"data": 0.125, "step": 0.5}}
    gauges, node, found = Gauges("shown", 3), ray.nodes()[0], ""
    deadline = time.monotonic() + 60
    while "ray_xfer_step_seconds" not in found and time.monotonic() < deadline:
        gauges.show(row)
        time.sleep(1)
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        found = urllib.request.urlopen(url, timeout=10).read().decode()
    ours = [line for line in found.splitlines() if line.startswith("ray_xfer") and 'run="shown"' in line]
    assert any(line.startswith("ray_xfer_images_per_s{") and line.endswith(" 71.5") for line in ours), found[-3000:]
    assert any(line.startswith("ray_xfer_step_seconds{") and 'part="data"' in line for line in ours)
    assert all('rank="3"' in line for line in ours)
    drawn = (Path(cluster.__file__).parent / "grafana.json").read_text()
    names = {target["expr"] for panel in json.loads(drawn)["panels"] for target in panel["targets"]}
    assert set(re.findall(r"ray_(xfer_\w+)", " ".join(names))) == {PART, *GAUGES}
