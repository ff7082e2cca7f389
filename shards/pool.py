"""Runs tasks in several processes that can be stopped, killed or orphaned at any moment without a trace.

A pipe to each process instead of an executor: progress comes per item and not per task, a killed worker is noticed at
once and named, Ctrl-C stops in milliseconds (the parent alone hears it), and a worker whose parent died finds its
pipe closed and ends. Processes come from a fork server, so no thread or lock of the caller is copied; starting costs
about 3 s once for importing torch.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Work = Callable[[Task, Callable[[int], None]], Result]


class WorkerDiedError(RuntimeError):
    """A process ended without an answer: killed, most likely for memory."""


def run(work: Work, tasks: Sequence[Task], processes: int, advance: Callable[[int], None]) -> Iterator[Any]:
    """Yields `work(task, advance)` for each task, in the order they finish; the first exception stops all.

    `work` must be importable by name; it calls `advance(count)` as it goes. With one process it runs right here.
    """
    if min(processes, len(tasks)) <= 1:
        yield from (work(task, advance) for task in tasks)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([getattr(work, "func", work).__module__])  # `work` may be a functools.partial
    pipes: dict[Connection, Any] = {}
    try:
        for _ in range(min(processes, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            ours.send(work)
            pipes[ours] = process
        yield from _collect(pipes, list(tasks), advance)
    finally:
        for pipe, process in pipes.items():
            pipe.close()
            process.kill()
        for process in pipes.values():
            process.join()


def worthwhile(items: int, few: int = 10_000) -> int:
    """How many processes: one for each CPU, but one alone where starting more takes longer than the work."""
    if items < few:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _collect(pipes: dict[Connection, Any], waiting: list[Any], advance: Callable[[int], None]) -> Iterator[Any]:
    left = len(waiting)
    waiting.reverse()
    for pipe in pipes:
        pipe.send(waiting.pop())
    while left:
        for pipe in wait(list(pipes)):
            assert isinstance(pipe, Connection)
            try:
                kind, value = pipe.recv()
            except (EOFError, ConnectionResetError):
                pipes[pipe].join(5)
                why = "out of memory?" if pipes[pipe].exitcode == -signal.SIGKILL else "see its output above"
                raise WorkerDiedError(f"a worker process died (exit code {pipes[pipe].exitcode}): {why}") from None
            if kind == "advance":
                advance(value)
            elif kind == "failed":
                raise value
            else:
                left -= 1
                if waiting:
                    pipe.send(waiting.pop())
                yield value


def _serve(pipe: Connection) -> None:
    """What a worker does: takes a function, then task after task until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        work = pipe.recv()
        while True:
            task = pipe.recv()
            try:
                result = work(task, lambda count: pipe.send(("advance", count)))
            except Exception as error:
                pipe.send(("failed", error))
            else:
                pipe.send(("done", result))
    except (EOFError, OSError):
        return
