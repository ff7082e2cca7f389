"""How machines are sized for a job."""

import pytest

from cluster.manifest.needs import needs
from shards.settings import ConfigError


def test_a_machine_has_room_for_its_share_of_the_workers_and_their_loaders(sized):
    assert (sized.nodes, sized.counted_cpus, sized.cpus) == (2, 3, 9)
    assert (sized.gpus, sized.memory_gib, sized.max_failures) == (1, 12, 3)


def test_each_worker_has_a_machine_of_its_own_unless_it_is_said(order, job):
    made = needs(order, job, None, 6, 1)
    assert (made.nodes, made.counted_cpus, made.cpus, made.gpus, made.memory_gib) == (4, 2, 5, 1, 6)


def test_what_cannot_be_shared_evenly_is_told_with_all_else(order, job):
    with pytest.raises(ConfigError) as caught:
        needs(order, job, 3, 1, 0.1)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["--nodes", "--memory-gib", "--hours"]
    assert "evenly, got 3; 1, 2, 4 would" in caught.value.faults[0]
    for hours in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="--hours"):
            needs(order, job, 2, 6, hours)
