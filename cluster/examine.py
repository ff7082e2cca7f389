"""What the nodes of a cluster are like, for `xfer cluster doctor`: looked at on each, printed as a line of JSON.

It is sent to the cluster, with driver.py beside it, and needs nothing but Ray there.
"""

import json
import logging
import os
import platform
import resource
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from glob import glob
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from ray._private import worker
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

START_S = 120.0  # a node may take this long to start a process
ANSWER_S = 30.0
CONNECT_S = 5.0


class Node:
    """A process on one node. Files that it writes are named after the node."""

    def __init__(self, node: str):
        self.node = node

    def facts(self) -> dict[str, Any]:
        driver = import_module("xfer_driver")  # as it is called where it was sent
        root = driver.place()
        return {
            "host": socket.gethostname(),
            "xfer": driver.version(root) if root else "not installed",
            "python": platform.python_version(),
            "token": is_token_auth_enabled(),
            "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            "shm_mb": shutil.disk_usage("/dev/shm").free // 1_000_000 if Path("/dev/shm").is_dir() else 0,
            "gpus": len(glob("/dev/nvidia[0-9]*")),
        }

    def clock(self) -> float:
        """Seconds since 1970."""
        return time.time()

    def write(self, folder: str) -> str:
        """Writes, flushes and renames a file, as checkpoints do. What went wrong, or empty."""
        path = Path(folder, f".xfer-doctor-{self.node}")
        draft = path.with_suffix(".tmp")
        try:
            with open(draft, "w") as file:
                file.write(self.node)
                os.fsync(file.fileno())
            os.replace(draft, path)
        except OSError as error:
            return f"{error.strerror}: {error.filename or folder}"
        return ""

    def unseen(self, folder: str, nodes: Sequence[str]) -> list[str]:
        """Of `nodes` that have written, those whose file is not read here as it was written."""
        return [node for node in nodes if _content(Path(folder, f".xfer-doctor-{node}")) != node]

    def remove(self, folder: str) -> None:
        Path(folder, f".xfer-doctor-{self.node}").unlink(missing_ok=True)

    def listen(self, address: str) -> int:
        """A port at the node's own address that takes one connection."""
        server = socket.create_server((address, 0))

        def take() -> None:
            with server:
                server.settimeout(ANSWER_S)
                server.accept()[0].close()

        threading.Thread(target=take, daemon=True).start()
        return server.getsockname()[1]

    def reach(self, address: str, port: int) -> str:
        """Why there is no connection to another node, or empty."""
        try:
            socket.create_connection((address, port), timeout=CONNECT_S).close()
        except OSError as error:
            return error.strerror or str(error)
        return ""


def _content(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def examine(folder: str) -> dict[str, Any]:
    """folder: of shared storage, or empty. By node: what it is like; and the addresses at which the dashboard listens.
    Inside a Ray session, on the head.
    """
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    kind: Any = ray.remote(Node)
    actors = {
        name: kind.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False)).remote(
            name
        )
        for name in alive
    }
    found = {
        name: {
            "address": node["NodeManagerAddress"],
            "host": node["NodeManagerHostname"],
            "resources": node["Resources"],
        }
        for name, node in alive.items()
    }
    facts = _ask({name: actor.facts.remote() for name, actor in actors.items()}, START_S)
    for name, answer in facts.items():
        found[name] |= answer if isinstance(answer, dict) else {"lost": answer}
    there = {name: actor for name, actor in actors.items() if "lost" not in found[name]}
    for name, actor in there.items():
        before = time.time()
        told: Any = ray.get(actor.clock.remote(), timeout=ANSWER_S)
        found[name]["clock_s"] = told - (before + time.time()) / 2
    ports = _ask({name: actor.listen.remote(found[name]["address"]) for name, actor in there.items()}, ANSWER_S)
    ring = dict(zip(there, [*list(there)[1:], *list(there)[:1]], strict=True))
    calls = {
        a: there[a].reach.remote(found[b]["address"], ports[b]) for a, b in ring.items() if isinstance(ports[b], int)
    }
    for name, answer in _ask(calls, ANSWER_S).items():
        found[name]["reach"] = {"address": found[ring[name]]["address"], "fault": answer}
    if folder:
        _storage(there, folder, found)
    return {"nodes": found, "dashboard": _dashboard(), "head": ray.get_runtime_context().get_node_id()}


def _storage(actors: Mapping[str, Any], folder: str, found: dict[str, dict[str, Any]]) -> None:
    written = _ask({name: actor.write.remote(folder) for name, actor in actors.items()}, ANSWER_S)
    names = [name for name, fault in written.items() if not fault]
    unseen = _ask({name: actors[name].unseen.remote(folder, names) for name in names}, ANSWER_S)
    _ask({name: actors[name].remove.remote(folder) for name in names}, ANSWER_S)
    for name, fault in written.items():
        hosts = unseen.get(name, [])
        missing = hosts if isinstance(hosts, str) else ", ".join(found[other]["host"] for other in hosts)
        found[name]["storage"] = fault or (f"what was written by {missing} is not seen" if missing else "")


def _ask(calls: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The answers, or in words why there is none."""
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds) if calls else None
    answers = {}
    for name, call in calls.items():
        try:
            answers[name] = ray.get(call, timeout=0.1)
        except Exception as error:
            text = "" if isinstance(error, GetTimeoutError) else str(error).strip()
            answers[name] = text.splitlines()[-1] if text else f"no answer within {seconds:g} s"
    return answers


def _dashboard() -> list[str]:
    """Addresses at which the dashboard of this node listens, read from /proc: 0.0.0.0 is all of them."""
    node: Any = worker.global_worker.node
    url = node.address_info.get("webui_url") or ""
    port = int(url.rpartition(":")[2] or 0)
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        address, _, digits = local.partition(":")
        if state == "0A" and int(digits, 16) == port:
            found.add(socket.inet_ntoa(bytes.fromhex(address)[::-1]))
    for line in Path("/proc/net/tcp6").read_text().splitlines()[1:] if Path("/proc/net/tcp6").exists() else ():
        local, state = line.split()[1], line.split()[3]
        if state == "0A" and int(local.partition(":")[2], 16) == port:
            found.add("::")
    return sorted(found)


if __name__ == "__main__":
    ray.init(address="auto", log_to_driver=False, logging_level=logging.WARNING)
    print(json.dumps(examine(sys.argv[1])))
