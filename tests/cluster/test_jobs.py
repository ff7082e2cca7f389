"""Jobs on a real cluster of one node, through its dashboard."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import fetch
from cluster.session import set_environment
from tests.cluster.head import Head, wait_for
from xfer.__main__ import main
from xfer.checkpoint import latest_checkpoint
from xfer.history import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow]

set_environment()  # before Ray is imported, and for the cluster that is started here
Xfer = Callable[..., tuple[int, str, str]]
PYTHON = ("--python", sys.executable)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with Head(cpus=2, dashboard=True) as head:
        yield head


@pytest.fixture
def xfer(head, capsys, monkeypatch) -> Xfer:
    """`xfer cluster VERB ... --address URL`: (exit status, stdout, stderr)."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # as it was, afterwards

    def xfer(*words: str) -> tuple[int, str, str]:
        try:
            main(["cluster", *words, "--address", head.url])
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return xfer


@pytest.fixture
def job_file(recipe_values: dict[str, Any], tmp_path: Path) -> Path:
    """Trains for ever, and saves only when it is told to stop."""
    recipe_values["train"] |= {"steps": 100_000, "save_every": 100_000, "evaluate_every": 100_000}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"recipe": recipe_values, "cluster": {"workers": 1}}))
    return path


def test_a_job_from_its_submission_to_its_folder(xfer, head, job_file, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "tiny"
    status, out, _ = xfer("submit", str(job_file), "--id", "one", "--no-wait", *PYTHON)
    assert status == 0
    assert f"xfer cluster logs one -f --address {head.url}" in out
    assert f"output  {tmp_path}/runs" in out
    status, _, err = xfer("submit", str(job_file), "name=other", "--id", "one")
    assert (status, err.count("\n")) == (2, 1)
    assert "--id: the cluster has a job one already" in err
    status, _, err = xfer("submit", str(job_file))
    assert (status, err.count("\n")) == (2, 1)
    assert f"job one writes into {folder} now" in err

    command = [sys.executable, "-m", "xfer", "cluster", "logs", "one", "-f", "--address", head.url]
    watching = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (folder / "metrics.jsonl").exists() and len(read_metrics(folder)) > 1, watching)
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=30)
    finally:
        watching.kill()
    assert watching.returncode == 130
    assert err == f"\nxfer: not watching any more; job one goes on: xfer cluster logs one -f --address {head.url}\n"
    assert "starting 1 Ray workers" in out
    status, out, _ = xfer("status", "one")
    assert status == 0
    assert out.startswith("job one: RUNNING, train tiny\n")

    status, out, _ = xfer("stop", "one")
    saved = latest_checkpoint(folder / "checkpoints").state.step
    assert saved == read_metrics(folder)[-1]["step"] < 100_000
    assert (status, out.splitlines()[-3]) == (0, f"saved: step {saved}")
    assert out.endswith("job one: STOPPED\n")
    assert f"saved: step {saved}" in (folder / "driver-one.log").read_text()
    assert not (folder / ".stop").exists()
    assert xfer("status", "one")[0] == 1
    assert xfer("stop", "one") == (0, "job one had ended before: STOPPED\n", "")
    assert "one  STOPPED  train tiny" in xfer("list")[1]

    assert xfer("fetch", "one", str(tmp_path / "near"))[0] == 0
    monkeypatch.setattr(fetch, "log_name", lambda submission: "on storage that is not seen")
    status, out, _ = xfer("fetch", "one", str(tmp_path / "far"))
    assert (status, "through the job server" in out) == (0, True)
    near, far = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("near", "far"))
    assert near == far
    assert {"metrics.jsonl", "recipe.yaml", "job.yaml", "driver-one.log"} <= set(near)
    assert "checkpoints" not in near
    assert xfer("fetch", "one", str(tmp_path / "far"))[0] == 2
    assert xfer("list")[1].startswith("fetch-one-")


def test_a_cluster_of_one_node_that_is_fine_is_found_to_be(xfer, tmp_path):
    status, out, _ = xfer("doctor", "--storage", str(tmp_path), *PYTHON)
    assert status == 0
    assert f"fine   storage: {tmp_path} is written, renamed and seen by all\n" in out
    assert "fine   token: asked for\n" in out
    assert "fine   dashboard: listens on 127.0.0.1\n" in out
    assert list(tmp_path.iterdir()) == []
    status, out, _ = xfer("doctor", "--storage", str(tmp_path / "gone"), "--json", *PYTHON)
    (wrong,) = [one for one in json.loads(out) if one["do"]]
    assert (status, wrong["check"]) == (1, "storage")
    assert "No such file or directory" in wrong["found"]


def test_a_job_that_fails_ends_with_its_own_error(xfer, job_file):
    """Of the code that was sent along, which is what looked for the data there."""
    words = ("data.root=/nowhere", "name=lost", "--unseen", "--ship-code", "--id", "lost", *PYTHON)
    status, out, err = xfer("submit", str(job_file), *words)
    assert (status, err) == (2, "")
    assert out.endswith("data.test.neon: /nowhere/neon: no such folder of shards\n")
    assert "working_dir_files" in next(line for line in out.splitlines() if line.startswith("job lost: xfer 0"))
    assert xfer("logs", "lost")[0] == 2
    assert xfer("status", "lost")[0] == 2


def test_a_submission_needs_no_torch_and_a_python_that_is_not_there_is_named(xfer, head, job_file):
    code = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    code += "from xfer.__main__ import main; main(sys.argv[1:])"
    words = ["submit", str(job_file), "--id", "none", "--python", "/no/python", "--no-wait", "--address", head.url]
    done = subprocess.run([sys.executable, "-c", code, "cluster", *words], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout.splitlines()[-1]) == ("", "False")
    status, _, err = xfer("logs", "none", "-f")
    assert (status, err) == (
        1,
        "xfer: job none: no such Python on the cluster: name the one that has the project with --python\n",
    )


def test_without_the_clusters_token_nothing_is_told_but_that(head):
    away = {"RAY_AUTH_TOKEN_PATH": "", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-m", "xfer", "cluster", "list", "--address", head.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | away)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert f"xfer: --address: the cluster at {head.url} wants its token: put it into" in done.stderr
