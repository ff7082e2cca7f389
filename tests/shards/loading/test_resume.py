"""Killed twenty times, on other numbers of ranks and with other batch sizes each time: nothing lost, nothing twice."""

import multiprocessing
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from shards.loading.batch import Slot
from tests.shards.images import built, config
from tests.shards.restarts import Run, delivered, run_rank, uninterrupted

_WORLDS = (2, 1, 3)
_KILLS = 20


def start(run: Run, restart: int) -> int:
    """A restart as a process group of its own: launcher, ranks, loader processes. Returns the group."""
    launcher = os.fork()
    if launcher:
        os.setpgid(launcher, launcher)
        return launcher
    os.setpgid(0, 0)
    world = _WORLDS[restart % len(_WORLDS)]
    barrier = multiprocessing.Barrier(world)
    left = run.end - run.state().position
    batch_size = next(size for size in ((24, 12, 36)[restart % 3], 12) if left % size == 0)
    ranks = [
        multiprocessing.Process(target=run_rank, args=(run, restart, Slot(rank, world), batch_size, barrier.wait))
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    os._exit(max(abs(rank.exitcode or 0) for rank in ranks) and 1)


def processes(group: int) -> list[int]:
    """All of a group that are alive."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if entry.isdigit() and int(fields[2]) == group and fields[0] != "Z":
            found.append(int(entry))
    return found


def kill(group: int, rng: random.Random) -> None:
    """SIGKILL for all at once, or for one of them first: a rank or a loader process, whoever it is."""
    if rng.random() < 0.5 and (alive := [pid for pid in processes(group) if pid != group]):
        with suppress(ProcessLookupError):
            os.kill(rng.choice(alive), signal.SIGKILL)
        time.sleep(0.2)
    os.killpg(group, signal.SIGKILL)
    os.waitpid(group, 0)
    while processes(group):
        time.sleep(0.01)


@pytest.mark.slow
def test_twenty_kills_on_two_one_and_three_ranks(tmp_path):
    for seed, name in enumerate(("a", "b")):
        built(tmp_path, name, seed=seed)
    settings = config(tmp_path, "a", "b", workers=1, block=12, augment={"color": 0.4})
    run = Run(tmp_path / "run", settings, 12 * 6000)
    run.folder.mkdir()
    rng = random.Random(0)
    for restart in range(_KILLS):
        group = start(run, restart)
        while not any(f"{restart:03d}-" in path.name for path in run.logs()):
            assert os.waitpid(group, os.WNOHANG)[0] == 0, "it ended by itself"
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.6))
        kill(group, rng)
    reached = run.state().position
    cut = Run(run.folder, settings, reached)
    assert reached > 12 * _KILLS, "it got on"
    assert delivered(cut) == uninterrupted(cut)


@pytest.mark.slow
def test_a_killed_run_ends_as_if_never_stopped(tmp_path):
    built(tmp_path, "a")
    run = Run(tmp_path / "run", config(tmp_path, "a", workers=1, block=12), 12 * 60)
    run.folder.mkdir()
    kill(start(run, 0), random.Random(0))
    group = start(run, 1)
    assert os.waitstatus_to_exitcode(os.waitpid(group, 0)[1]) == 0
    assert sorted(delivered(run)) == list(range(run.end))
    assert delivered(run) == uninterrupted(run)
