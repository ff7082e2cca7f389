"""What is found of a cluster, and what is to be done about it."""

from pathlib import Path
from typing import Any

import pytest

from cluster import doctor
from cluster.doctor import examined, findings, text
from cluster.driver import version
from shards.settings import ConfigError

STORAGE = "/shared/runs"
OURS = version(Path(doctor.__file__).parents[1])


def node(host: str, **changes: Any) -> dict[str, Any]:
    fine = {
        "host": host,
        "address": f"10.0.0.{host[-1]}",
        "resources": {"CPU": 4.0, "GPU": 2.0},
        "xfer": OURS,
        "python": "3.11.7",
        "token": True,
        "open_files": 65536,
        "shm_mb": 8000,
        "gpus": 2,
        "clock_s": 0.3,
        "reach": {"address": "10.0.0.9", "fault": ""},
        "storage": "",
    }
    return fine | changes


def seen(*nodes: dict[str, Any], dashboard: tuple[str, ...] = ("127.0.0.1",)) -> dict[str, Any]:
    return {"nodes": {one["host"]: one for one in nodes}, "dashboard": list(dashboard), "head": "h1"}


def test_a_cluster_that_is_fine_has_a_line_for_each_check():
    found = findings(seen(node("h1"), node("h2")), STORAGE)
    assert not [one for one in found if one.do]
    lines = text(found).splitlines()
    assert all(line.startswith("fine   ") for line in lines)
    assert {line.split(":")[0].removeprefix("fine   ") for line in lines} == {
        "xfer", "python", "code", "token", "clock", "/dev/shm", "open files", "GPU", "ports", "storage", "dashboard",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "check", "do"),
    [
        ({"xfer": "0.0.9 (code 0, Ray 2, torch 2)"}, "xfer", "install there what the head has"),
        ({"python": "3.12.1"}, "python", "install there what the head has: 3.11.7"),
        ({"token": False}, "token", "RAY_AUTH_MODE=token"),
        ({"clock_s": -5.0}, "clock", "NTP"),
        ({"shm_mb": 64}, "/dev/shm", "--shm-size"),
        ({"open_files": 1024}, "open files", "ulimit -n"),
        ({"gpus": 1}, "GPU", "--num-gpus=1"),
        ({"reach": {"address": "10.0.0.1", "fault": "Connection refused"}}, "ports", "open all TCP ports"),
        ({"storage": "Permission denied: /shared/runs"}, "storage", "mount the same storage at /shared/runs"),
        ({"lost": "no answer within 120 s"}, "node", "raylet"),
    ],
)
def test_what_is_wrong_on_a_node_is_told_with_the_node_and_what_to_do(changes, check, do):
    (wrong,) = [one for one in findings(seen(node("h1"), node("h2", **changes)), STORAGE) if one.do]
    assert (wrong.check, wrong.where) == (check, "h2")
    assert do in wrong.do
    first, second, *_ = text(findings(seen(node("h1"), node("h2", **changes)), STORAGE)).splitlines()
    assert first == f"WRONG  {check} on h2: {wrong.found}"
    assert second.strip() == wrong.do


def test_a_dashboard_that_all_reach_and_other_code_than_ours_are_told():
    other = node("h1", xfer="0.1.0 (code 00000000, Ray 2.60.0, torch 2.15.0)")
    wrong = {one.check: one for one in findings(seen(other, dashboard=("0.0.0.0",)), STORAGE) if one.do}
    assert set(wrong) == {"code", "dashboard"}
    assert "0.0.0.0" in wrong["dashboard"].found
    assert "--ship-code" in wrong["code"].do


def test_another_torch_than_ours_is_no_fault():
    code = OURS.partition(",")[0]
    assert not [one for one in findings(seen(node("h1", xfer=f"{code}, Ray 2, torch 1)")), STORAGE) if one.do]


def test_storage_that_is_not_named_is_said_not_to_be_looked_at():
    assert "fine   storage: not looked at; --storage PATH does" in text(findings(seen(node("h1")), None))
    with pytest.raises(ConfigError, match="--storage: must be the absolute path"):
        examined(None, "runs", "python")
