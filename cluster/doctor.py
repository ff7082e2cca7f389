"""Is a cluster fit for this project? What `examine.py` saw there, as findings, each with what to do about it.

Nothing is changed on the cluster. A small job looks at every node at once; one that cannot be looked at is a finding.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.driver import version
from cluster.errand import errand
from shards.settings import ConfigError

SMALLEST_SHM_MB = 1000
FEWEST_FILES = 4096
CLOCK_S = 2.0
"""Beyond it the logs of several nodes cannot be put in order, and drafts of other hosts are held for old too early."""
Nodes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `do`: what to do about it; empty if it is as it should be."""

    check: str
    where: str
    found: str
    do: str = ""


def examined(client: Any, storage: str | None, python: str) -> dict[str, Any]:
    """What the nodes of a cluster are like (`examine.py`). Raises RuntimeError if they cannot be looked at."""
    if storage is not None and not storage.startswith("/"):
        raise ConfigError(f"--storage: must be the absolute path that every node has, got {storage}")
    here = Path(__file__).parent
    sent = {"xfer_examine.py": here / "examine.py", "xfer_driver.py": here / "driver.py"}
    log = errand(client, "doctor", python, sent, ["xfer_examine.py", storage or ""])
    return json.loads(next(line for line in reversed(log.splitlines()) if line.startswith('{"nodes"')))


def findings(seen: Mapping[str, Any], storage: str | None) -> list[Finding]:
    """Of what was `seen`, with what is to be done first."""
    nodes: Nodes = seen["nodes"]
    there = {name: node for name, node in nodes.items() if "lost" not in node}
    found = [
        Finding("node", node["host"], node["lost"], "look at the raylet's log there, or take the node out")
        for node in nodes.values()
        if "lost" in node
    ]
    head = there.get(seen["head"])
    if head:
        found += [one for check in ("xfer", "python") for one in _alike(check, there, head[check])]
        found.append(_like_here(head["xfer"], version(Path(__file__).parents[1])))
    for check in (_token, _clock, _shm, _open_files, _gpus, _reach):
        found += [check(node) for node in there.values()]
    found += [_storage(node, storage) for node in there.values()] if storage else []
    found.append(_dashboard(seen["dashboard"]))
    if not storage:
        found.append(Finding("storage", "", "not looked at; --storage PATH does, with the folder of your runs"))
    return sorted(found, key=lambda one: not one.do)


def text(found: list[Finding]) -> str:
    """A line for each thing that is wrong, with what to do, and one for each check that is passed everywhere."""
    lines = [f"WRONG  {one.check} on {one.where}: {one.found}\n       {one.do}" for one in found if one.do]
    wrong = {one.check for one in found if one.do}
    for check in dict.fromkeys(one.check for one in found if one.check not in wrong):
        said = dict.fromkeys(one.found for one in found if one.check == check)
        lines.append(f"fine   {check}: {'; '.join(said)}")
    return "\n".join(lines)


def _alike(check: str, nodes: Nodes, heads: str) -> Iterator[Finding]:
    for node in nodes.values():
        do = "" if node[check] == heads else f"install there what the head has: {heads}"
        yield Finding(check, node["host"], node[check], do)


def _like_here(heads: str, ours: str) -> Finding:
    """Of the code alone: Ray and torch of the machine that submits run nothing."""
    same = heads.partition(",")[0] == ours.partition(",")[0]
    return Finding("code", "this machine", ours, "" if same else f"submit with --ship-code, or install {heads} here")


def _token(node: Mapping[str, Any]) -> Finding:
    do = "set RAY_AUTH_MODE=token before `ray start`: who reaches Ray's ports can run anything (CVE-2023-48022)"
    return Finding(
        "token", node["host"], "asked for" if node["token"] else "not asked for", "" if node["token"] else do
    )


def _clock(node: Mapping[str, Any]) -> Finding:
    off = node["clock_s"]
    do = "" if abs(off) <= CLOCK_S else "set it by NTP (chrony, systemd-timesyncd)"
    return Finding("clock", node["host"], f"{off:+.1f} s of the head's" if do else f"within {CLOCK_S:g} s", do)


def _shm(node: Mapping[str, Any]) -> Finding:
    do = "loader processes hand batches over there: docker run --shm-size=8g, or a memory volume in the pod"
    small = node["shm_mb"] < SMALLEST_SHM_MB
    return Finding("/dev/shm", node["host"], f"{node['shm_mb']:,} MB free", do if small else "")


def _open_files(node: Mapping[str, Any]) -> Finding:
    count = node["open_files"]
    low = 0 <= count < FEWEST_FILES  # -1: no limit
    said = f"{count:,}" if count >= 0 else "no limit"
    return Finding("open files", node["host"], said, f"ulimit -n {FEWEST_FILES * 16} before `ray start`" if low else "")


def _gpus(node: Mapping[str, Any]) -> Finding:
    devices, known = node["gpus"], int(node["resources"].get("GPU", 0))
    do = f"`ray start --num-gpus={devices}` there, or see to its driver" if devices != known else ""
    return Finding("GPU", node["host"], f"{devices} devices, Ray knows {known}", do)


def _reach(node: Mapping[str, Any]) -> Finding:
    reach = node.get("reach", {"address": "the next node", "fault": "it gave no port"})
    do = "open all TCP ports between the nodes: ranks meet at ports that are chosen anew" if reach["fault"] else ""
    return Finding(
        "ports", node["host"], f"to {reach['address']}: {reach['fault']}" if do else "the next one is reached", do
    )


def _storage(node: Mapping[str, Any], storage: str) -> Finding:
    fault = node.get("storage", "not tried")
    do = f"mount the same storage at {storage} on every node, writable for who runs Ray" if fault else ""
    return Finding("storage", node["host"], fault or f"{storage} is written, renamed and seen by all", do)


def _dashboard(addresses: list[str]) -> Finding:
    open_at = [one for one in addresses if not one.startswith("127.")]
    do = "`ray start --dashboard-host=127.0.0.1`, and ssh -L 8265:127.0.0.1:8265 from elsewhere" if open_at else ""
    return Finding("dashboard", "the head", f"listens on {', '.join(addresses) or 'a socket not seen'}", do)
