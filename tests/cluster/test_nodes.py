"""Waiting until a cluster that is being started has its nodes."""

import subprocess
import sys

import pytest

from tests.cluster.head import Head, free_ports


def gather(address: str, count: int, limit_s: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.nodes", address, str(count), str(limit_s)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_head_that_never_comes_is_waited_for_no_longer_than_it_is_said():
    done = gather(f"127.0.0.1:{free_ports(1)[0]}", 1, 0.5)
    assert done.returncode == 1
    assert done.stderr == "xfer: 0 of 1 nodes started Ray within 0.5 s; see what the others say\n"


@pytest.mark.ray
@pytest.mark.slow
def test_nodes_are_counted_until_they_are_enough():
    with Head() as head:
        assert gather(head.address, 1, 60).returncode == 0
        done = gather(head.address, 2, 1)
        assert done.returncode == 1
        assert done.stderr == "xfer: 1 of 2 nodes started Ray within 1 s; see what the others say\n"
