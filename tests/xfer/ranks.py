"""Two real ranks over gloo on loopback, started once and given any number of functions to run."""

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from shards.loading.batch import Slot
from xfer import run
from xfer.config import Recipe
from xfer.engine import build_engine

PATIENCE_S = 300


class Ranks:
    """Worker processes of one process group."""

    def __init__(self, pipes: list[Connection]):
        self._pipes = pipes

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(*arguments)`, of a module that can be imported, returns on each rank."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers: dict[int, Any] = {}
        while len(answers) < len(self._pipes):  # in any order: where one fails, the others wait for it for ever
            silent = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in answers}
            ready = wait(list(silent), PATIENCE_S)
            assert ready, f"ranks {list(silent.values())} do not answer: a deadlock?"
            for pipe in ready:
                assert isinstance(pipe, Connection)
                failed, answer = pipe.recv()
                assert not failed, f"rank {silent[pipe]}: {answer}"
                answers[silent[pipe]] = answer
        return [answers[rank] for rank in range(len(self._pipes))]


@contextlib.contextmanager
def started(world_size: int) -> Iterator[Ranks]:
    """Starts the ranks, and ends them with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(world_size)]
    processes = [
        context.Process(target=_serve, args=(theirs, rank, world_size, port), daemon=True)
        for rank, (_, theirs) in enumerate(pairs)
    ]
    for process in processes:
        process.start()
    try:
        yield Ranks([ours for ours, _ in pairs])
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(pipe: Connection, rank: int, world_size: int, port: int) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send((False, function(*arguments)))
        except BaseException:
            pipe.send((True, traceback.format_exc()))


def fit_share(recipe: Recipe, zero_stage: int) -> None:
    """A rank's part of a run under DeepSpeed."""
    engine = partial(build_engine, kind="deepspeed", zero_stage=zero_stage, device=torch.device("cpu"))
    run.fit(recipe, Slot(dist.get_rank(), dist.get_world_size()), engine, lambda row: None)
