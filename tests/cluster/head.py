"""A Ray cluster of one node on this machine that can be killed: an outage."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import psutil

BEGIN_S = 120.0


class Head:
    """A context manager; `address` is that of the cluster."""

    def __init__(self, cpus: int = 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._folder = tempfile.mkdtemp(prefix="xh-", dir="/tmp")  # short: its sockets lie in it
        options = [f"--port={self.port}", f"--num-cpus={cpus}", f"--temp-dir={self._folder}"]
        options += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", "--object-store-memory=100000000"]
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options]
        self._process = psutil.Popen(ray, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> "Head":
        wait_for(self._listens, self._process, BEGIN_S)
        return self

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

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Until it holds. Fails if `process` ends before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.05)
