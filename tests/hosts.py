"""Several hosts on one Linux machine, for tests of what happens when one of them is lost.

A host is a network namespace with an address of its own, on a bridge in yet another namespace with no way out, and a
private folder for Ray's sockets, bound over the same path in each. All else of the file system is shared, as storage of
a cluster is. Needs root.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

PORT = 6379
BEGIN_S = 180.0
SETUP = 'mount --bind "$1" "$2" && mount --bind "$3" /etc/hosts && hostname "$4" && shift 4 && exec "$@"'


def missing() -> str:
    """Why there can be no hosts here; empty if there can."""
    if sys.platform != "linux" or os.geteuid():
        return "hosts need Linux and root"
    absent = [tool for tool in ("ip", "unshare", "mount", "hostname") if not shutil.which(tool)]
    if absent:
        return f"hosts need {', '.join(absent)}"
    name = f"xfer-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"no network namespaces here: {tried.stderr.strip()}"
    pair = ["ip", "-n", name, "link", "add", "name", "v0", "type", "veth", "peer", "name", "v1"]
    bridge = ["ip", "-n", name, "link", "add", "br0", "type", "bridge"]
    entered = ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "true"]
    failed = [done.stderr.strip() for done in map(_try, (pair, bridge, entered)) if done.returncode]
    _ip("netns", "del", name)
    return f"no hosts here: {failed[0]}" if failed else ""


def _try(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """`count` hosts, named h0, h1, ...; a context manager. Skips the test where there can be none."""

    def __init__(self, count: int):
        if why := missing():
            pytest.skip(why)
        self.count, self._prefix = count, f"xfer-{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(prefix="xh-", dir="/tmp"))  # short: sockets lie in it
        self.private = self.folder / "r"
        self.names = self.folder / "hosts"
        names = [f"{self.address(host)} h{host}\n" for host in range(count)]
        self.names.write_text("127.0.0.1 localhost\n" + "".join(names))
        token = self.folder / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        away = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
        self.environment = {name: value for name, value in os.environ.items() if name not in away} | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
        }

    def address(self, host: int) -> str:
        return f"10.78.0.{10 + host}"

    @property
    def head(self) -> str:
        """The address of the cluster."""
        return f"{self.address(0)}:{PORT}"

    def __enter__(self) -> "Hosts":
        self.private.mkdir()
        switch = self._namespace("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", switch, "link", "set", "br0", "up")
        for host in range(self.count):
            self._plug_in(host, switch)
        return self

    def __exit__(self, *exception: object) -> None:
        for host in range(self.count):
            self.crash(host)
        for name in ("switch", *map(str, range(self.count))):
            _try(["ip", "netns", "del", self._namespace(name)])
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, host: int, command: list[str], log: Path | None = None) -> subprocess.Popen[str]:
        """Begins `command` on the host. Without a `log` its output is to be read from what is returned."""
        own = self.folder / f"h{host}"
        own.mkdir(exist_ok=True)
        enter = ["ip", "netns", "exec", self._namespace(str(host)), "unshare", "--mount", "--uts"]
        inside = ["sh", "-c", SETUP, "sh", str(own), str(self.private), str(self.names), f"h{host}", *command]
        if log:
            with log.open("a") as out:
                return subprocess.Popen([*enter, *inside], stdout=out, stderr=out, text=True, env=self.environment)
        pipe = subprocess.PIPE
        return subprocess.Popen([*enter, *inside], stdout=pipe, stderr=pipe, text=True, env=self.environment)

    def crash(self, host: int) -> None:
        """Kills all processes of the host at once."""
        deadline = time.monotonic() + 10
        while pids := _try(["ip", "netns", "pids", self._namespace(str(host))]).stdout.split():
            for pid in pids:
                _signal(int(pid))
            if time.monotonic() > deadline:
                raise RuntimeError(f"h{host} does not end: {pids}")
            time.sleep(0.05)

    def start_cluster(self, cpus: Sequence[int]) -> None:
        """Ray on all hosts, with so many CPUs each; h0 is the head. Returns when all are up."""
        self._await_ray(*self._begin_ray(0, cpus[0]))
        for begun in [self._begin_ray(host, count) for host, count in enumerate(cpus) if host]:
            self._await_ray(*begun)

    def start_again(self, host: int, cpus: int) -> None:
        """Ray on a host that crashed."""
        self._await_ray(*self._begin_ray(host, cpus))

    def _begin_ray(self, host: int, cpus: int) -> tuple[subprocess.Popen[str], Path]:
        log = self.folder / f"ray-{host}-{time.monotonic_ns()}.log"
        node = [f"--node-ip-address={self.address(host)}", f"--num-cpus={cpus}", "--object-store-memory=100000000"]
        head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={self.private}"]
        place = [f"--address={self.head}"] if host else head
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *place, *node]
        return self.start(host, ray, log), log

    def _await_ray(self, process: subprocess.Popen[str], log: Path) -> None:
        deadline = time.monotonic() + BEGIN_S
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ray did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)

    def _namespace(self, name: str) -> str:
        return f"{self._prefix}-{name}"

    def _plug_in(self, host: int, switch: str) -> None:
        own = self._namespace(str(host))
        _ip("netns", "add", own)
        _ip("-n", switch, "link", "add", f"p{host}", "type", "veth", "peer", "name", "eth0", "netns", own)
        _ip("-n", switch, "link", "set", f"p{host}", "master", "br0", "up")
        _ip("-n", own, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            _ip("-n", own, "link", "set", link, "up")


def _signal(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
