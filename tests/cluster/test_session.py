"""One Ray session on this machine, whatever the machine around it looks like."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cluster import session
from cluster.cpus import usable_cpus
from shards.settings import ConfigError

SESSION = """
import sys
from cluster.config import ClusterConfig
from cluster.session import connect
from shards.settings import ConfigError
with connect():
    import ray
    from cluster.capacity import check_capacity
    assert ray.get(ray.remote(lambda: 7).options(num_cpus=0).remote()) == 7
    for node in ray.nodes():
        print("folder", node["ObjectStoreSocketName"])
    print("cpus", ray.cluster_resources()["CPU"])
    try:
        with connect("10.9.8.7:6379"):
            raise SystemExit("another address was taken for this session's")
    except ConfigError as error:
        assert "cluster.address" in str(error) and "10.9.8.7:6379" in str(error), error
    with connect(ray.get_runtime_context().gcs_address), connect():
        pass
    one = ClusterConfig(workers=1)
    check_capacity(one, 8)
    taken = ray.remote(type("Holder", (), {"ready": lambda self: 1})).options(num_cpus=ray.cluster_resources()["CPU"])
    holder = taken.remote()
    ray.get(holder.ready.remote())
    try:
        check_capacity(one.model_copy(update={"wait_s": 3}), 8)
        raise SystemExit("taken CPUs were counted as free")
    except ConfigError as error:
        assert "of which 0 CPU" in str(error) and "waited 3 s for room" in str(error), error
    ray.kill(holder)
    check_capacity(one, 8)
    try:
        check_capacity(ClusterConfig(workers=4, cpus_per_worker=1000), 8)
        raise SystemExit("4000 CPUs fit")
    except ConfigError as error:
        assert "4 workers of 1000 CPU each do not fit" in str(error), error
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_session_on_a_machine_that_gets_in_its_way(tmp_path):
    """Another project's RAY_ADDRESS, no home folder, a proxy, one CPU of several, a long TMPDIR: all at once."""
    long = tmp_path / ("long" * 20)
    long.mkdir()
    away = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR"}
    environment = {name: value for name, value in os.environ.items() if name not in away} | {
        "RAY_ADDRESS": "127.0.0.1:6399",
        "HOME": "/proc",
        "TMPDIR": str(long),
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
    }
    bound = {min(os.sched_getaffinity(0))}
    done = subprocess.run(
        [sys.executable, "-c", SESSION],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, bound),
    )
    assert done.returncode == 0, done.stderr
    assert "cpus 1.0" in done.stdout
    assert "waiting for room" in done.stderr
    socket = next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("folder"))
    assert len(socket) <= 107
    parts = Path(socket).parts
    folder = Path(*parts[: next(i for i, part in enumerate(parts) if part.startswith("session_"))])
    assert folder.name.startswith("xfer-")
    assert not folder.exists()


def test_cpus_are_those_of_the_control_group(tmp_path):
    assert usable_cpus(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cpus(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    assert usable_cpus(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert usable_cpus(tmp_path) == 1
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cpus(tmp_path) == 1


def test_no_folder_short_enough_is_a_message(tmp_path, monkeypatch):
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert session._short_folder() == "/tmp"
    monkeypatch.setattr(session, "LONGEST_FOLDER", 2)
    with pytest.raises(ConfigError, match="RAY_TMPDIR"):
        session._short_folder()


def test_a_token_that_cannot_be_kept(monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc")
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN_PATH"):
        session._make_token("10.9.8.7:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # put back at the end, whatever is set below
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    session._make_token(None)
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_token_is_made_once_and_is_private(tmp_path):
    path = tmp_path / ".ray" / "auth_token"
    session._write_token(path)
    token = path.read_text()
    session._write_token(path)
    assert path.read_text() == token
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["auth_token"]
