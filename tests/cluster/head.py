"""A Ray cluster of one node on this machine that can be killed: an outage."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

BEGIN_S = 120.0
STARTS = 3


class Head:
    """A context manager; `address` is that of the cluster, `url` that of its dashboard, if it is to have one."""

    def __init__(self, cpus: int = 1, dashboard: bool = False):
        self.port, dashboard_port, agent_port = free_ports(3)
        self.url = f"http://127.0.0.1:{dashboard_port}" if dashboard else ""
        self.address = f"127.0.0.1:{self.port}"
        self._folder = tempfile.mkdtemp(prefix="xh-", dir="/tmp")  # short: its sockets lie in it
        options = [f"--port={self.port}", f"--num-cpus={cpus}", f"--temp-dir={self._folder}"]
        options += ["--node-ip-address=127.0.0.1", "--object-store-memory=100000000"]
        options += [f"--include-dashboard={str(dashboard).lower()}", f"--dashboard-port={dashboard_port}"]
        options += [f"--dashboard-agent-listen-port={agent_port}"]
        self._command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options]

    def __enter__(self) -> "Head":
        for _ in range(STARTS):
            if self._starts():
                return self
        raise AssertionError(f"Ray did not start {STARTS} times")

    def _starts(self) -> bool:
        """Ray gives its own processes 30 seconds to start, which a busy machine may not keep."""
        said = Path(self._folder, "said")
        with said.open("w") as out:
            self._process = psutil.Popen(self._command, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + BEGIN_S
        while "Ray runtime started" not in said.read_text():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                return False
            time.sleep(0.1)
        return True

    def __exit__(self, *exception: object) -> None:
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """All of it, its workers too, at once."""
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [*self._process.children(recursive=True), self._process]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Until it holds. Fails if `process` ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.05)
