"""Streams under Ray Train: workers are killed and started again, two, one and three; nothing lost, nothing twice."""

import os
import random
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from cluster.session import connect
from shards.loading.batch import Slot
from tests.shards.images import built, config
from tests.shards.restarts import End, Run, delivered, run_rank, uninterrupted

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_KILLS = {2: 1, 1: 1, 3: 1}
"""Ranks -> how often one of them is killed; Ray Train starts all of them again."""


def work(settings: dict[str, Any]) -> None:
    """A Ray Train worker: one rank of one restart."""
    import ray.train
    import torch
    from torch import distributed

    run = Run(**settings)
    context = ray.train.get_context()
    slot = Slot(context.get_world_rank(), context.get_world_size())
    begun = [len(list(run.folder.glob("*.pids")))]
    distributed.broadcast_object_list(begun, src=0)
    pids: list[Any] = [None] * slot.world_size
    distributed.all_gather_object(pids, os.getpid())
    if slot.rank == 0:
        (run.folder / f"{begun[0]:03d}.pids").write_text(" ".join(map(str, pids)))

    def together() -> None:
        ended = torch.tensor([int((run.folder / f"{slot.world_size}.end").exists())])
        distributed.all_reduce(ended)
        if ended:
            raise End

    with suppress(End):
        run_rank(run, begun[0], slot, 12 * slot.world_size, together)


def kill(run: Run, world: int, times: int, rng: random.Random) -> None:
    """Kills a rank of each new restart at a random moment; lets the last one work a little and then end."""
    seen = len(list(run.folder.glob("*.pids")))
    for restart in range(seen, seen + times + 1):
        path = run.folder / f"{restart:03d}.pids"
        while not path.exists() or not any(f"{restart:03d}-" in log.name and log.stat().st_size for log in run.logs()):
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 1))
        if restart < seen + times:
            os.kill(int(rng.choice(path.read_text().split())), signal.SIGKILL)
    (run.folder / f"{world}.end").touch()


def test_three_kills_on_two_one_and_three_workers(tmp_path):
    for seed, name in enumerate(("a", "b")):
        built(tmp_path, name, seed=seed)
    settings = config(tmp_path, "a", "b", workers=1, block=12, augment={"color": 0.4})
    run = Run(tmp_path / "run", settings, 1 << 40)
    run.folder.mkdir()
    with connect():  # before Ray is imported: it reads its environment then
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        for world, times in _KILLS.items():
            killer = threading.Thread(target=kill, args=(run, world, times, random.Random(world)), daemon=True)
            killer.start()
            TorchTrainer(
                work,
                train_loop_config={"folder": run.folder, "config": settings, "end": run.end},
                scaling_config=ScalingConfig(num_workers=world, resources_per_worker={"CPU": 0.5}),
                run_config=RunConfig(
                    name=f"world-{world}",
                    storage_path=str(tmp_path / "ray"),
                    failure_config=FailureConfig(max_failures=times),
                ),
            ).fit()
            killer.join()
    cut = Run(run.folder, settings, run.state().position)
    restarts = list(run.folder.glob("*.pids"))
    assert len(restarts) == sum(_KILLS.values()) + len(_KILLS)
    assert delivered(cut) == uninterrupted(cut)
