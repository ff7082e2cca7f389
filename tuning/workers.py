"""Long-lived worker processes on a Ray cluster, one for each trial at once, spread over all nodes.

A worker imports torch and gets what the trials share once, then takes one piece of work after the other. An error in
the work is an answer. A worker that dies (killed, its node lost) is no answer: its work is handed to another one, a few
times, and a new worker takes its place. A cluster that does not answer any more ends it all with ClusterGoneError.
"""

import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from cluster.capacity import free, room, total
from cluster.outage import ASK_S, GOES_ON, SILENCE_S, ClusterGoneError, answers, await_answer
from shards.settings import ConfigError

Work = Callable[..., dict[str, Any]]
ATTEMPTS = 3  # workers that one piece of work may lose
ROOM_S = 5.0  # longest wait for what has just ended to leave
START_S = 600.0  # nobody works and nobody has come up for so long: give up
POLL_S = 0.5
LAST_LINES = 12


@dataclass(frozen=True)
class Task:
    """Arguments of one piece of work; attempt: how often it was begun, this time included; lost: workers it lost."""

    name: str
    arguments: dict[str, Any]
    attempt: int = 1
    lost: int = 0


@dataclass(frozen=True)
class Answer:
    """What came of a task: `result`, or `error` with the last lines of its traceback."""

    task: Task
    host: str
    result: dict[str, Any] | None = None
    error: str | None = None
    traceback: str = ""


class _Worker:
    """The actor. `make` is called once, in the worker's process; what it returns is called for each task."""

    def __init__(self, make: Callable[[], Work], num_threads: int, has_gpu: bool):
        from cluster.session import hide_gpus

        if not has_gpu:
            hide_gpus()
        import torch

        torch.set_num_threads(num_threads)
        self.work = make()

    def host(self) -> str:
        return socket.gethostname()

    def do(self, arguments: dict[str, Any]) -> dict[str, Any]:
        import traceback

        try:
            return {"result": self.work(**arguments)}
        except BaseException as error:  # SystemExit too: the cause is the answer, whatever it is
            lines = traceback.format_exception(error)
            message = str(error).strip() or "no message"
            return {
                "error": f"{type(error).__name__}: {message}",
                "traceback": "".join(lines).rstrip().splitlines()[-LAST_LINES:],
            }


@dataclass
class _Slot:
    """One worker: its actor, the call that is under way, and the node it runs on once it is up."""

    actor: Any
    call: Any
    task: Task | None = None
    host: str = ""
    deaths: int = 0


class Workers:
    """Workers that call what `make` returns, at most `count` of them; none: as many as there is room for.

    resources: what one worker takes, by Ray's names. Raises ConfigError if no node has that. Usable inside a Ray
    session, as a context manager.
    """

    def __init__(self, make: Callable[[], Work], resources: Mapping[str, float], count: int | None = None):
        if not room(total(), resources):
            asked = " and ".join(f"{amount:g} {name}" for name, amount in resources.items())
            raise ConfigError(f"cluster.cpus_per_worker, gpus_per_worker: a trial asks for {asked}; no node has that")
        self._make = ray.put(make)
        self._resources = dict(resources)
        self.slots = [self._start() for _ in range(_how_many(resources, count))]
        self._waiting: deque[Task] = deque()
        self._quiet_since = self._heard = time.monotonic()
        self._last_death = ""

    def _start(self, deaths: int = 0) -> _Slot:
        cpus, gpus = self._resources.get("CPU", 0), self._resources.get("GPU", 0)
        others = {name: amount for name, amount in self._resources.items() if name not in ("CPU", "GPU")}
        remote: Any = ray.remote(_Worker)
        actor = remote.options(
            num_cpus=cpus, num_gpus=gpus, resources=others, scheduling_strategy="SPREAD", max_restarts=0
        ).remote(self._make, max(1, int(cpus)), gpus > 0)
        return _Slot(actor, actor.host.remote(), deaths=deaths)

    @property
    def free(self) -> int:
        """How many tasks can begin at once: workers that are up and idle, less the tasks that wait."""
        return sum(bool(slot.host) and slot.task is None for slot in self.slots) - len(self._waiting)

    @property
    def busy(self) -> int:
        """Tasks that are under way."""
        return sum(slot.task is not None for slot in self.slots) + len(self._waiting)

    def begin(self, task: Task) -> None:
        """Hands the task to the next idle worker."""
        self._waiting.append(task)
        self._hand_out()

    def wait(self) -> Iterator[Answer]:
        """Waits up to half a second, and yields the answers that are there. Raises ClusterGoneError."""
        self._check()
        calls = {slot.call: slot for slot in self.slots if slot.call is not None}
        try:
            ready = ray.wait(list(calls), timeout=POLL_S)[0] if calls else []
        except RayError as error:
            raise ClusterGoneError(f"the Ray cluster is gone: {error}; {GOES_ON}") from None
        for call in ready:
            answer = self._take(calls[call])
            if answer is not None:
                yield answer
        self._hand_out()

    def _take(self, slot: _Slot) -> Answer | None:
        task, call, slot.call = slot.task, slot.call, None
        try:
            result: Any = ray.get(call, timeout=SILENCE_S)
        except GetTimeoutError:
            slot.call = call
            return None
        except RayError as error:
            return self._lost(slot, task, error)
        self._quiet_since = time.monotonic()
        if task is None:  # it has just come up
            slot.host, slot.deaths = result, 0
            return None
        slot.task = None
        lines = "\n".join(result.get("traceback", []))
        return Answer(task, slot.host, result.get("result"), result.get("error"), lines)

    def _lost(self, slot: _Slot, task: Task | None, error: RayError) -> Answer | None:
        """Its worker died, or what it needs was lost: the task goes to another one, `ATTEMPTS` times in all."""
        self._last_death = f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
        self._await_cluster()
        self.slots[self.slots.index(slot)] = self._start(slot.deaths + (task is None))
        if task is None:
            return None
        where = slot.host or "a host unknown"
        if task.lost + 1 < ATTEMPTS:
            self._waiting.appendleft(Task(task.name, task.arguments, task.attempt + 1, task.lost + 1))
            return None
        cause = f"its worker died in each of {ATTEMPTS} attempts, the last on {where}: {self._last_death}"
        return Answer(task, slot.host, error=f"WorkerDiedError: {cause}")

    def _hand_out(self) -> None:
        for slot in self.slots:
            if self._waiting and slot.host and slot.task is None:
                slot.task = self._waiting.popleft()
                slot.call = slot.actor.do.remote(slot.task.arguments)

    def _check(self) -> None:
        now = time.monotonic()
        if now - self._heard > ASK_S:
            self._await_cluster()
        if any(slot.host for slot in self.slots):
            self._quiet_since = now
        elif now - self._quiet_since > START_S:
            raise ClusterGoneError(
                f"no worker came up for {START_S:g} s; {self._last_death or 'no node has room'}; {GOES_ON}"
            )
        if min(slot.deaths for slot in self.slots) >= ATTEMPTS:
            raise ClusterGoneError(f"every worker died {ATTEMPTS} times in a row; the last: {self._last_death}")

    def _await_cluster(self) -> None:
        """Waits until the cluster answers, since Ray's own calls would wait much longer."""
        await_answer()
        self._heard = time.monotonic()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        if answers():
            for slot in self.slots:
                ray.kill(slot.actor)


def _how_many(resources: Mapping[str, float], count: int | None) -> int:
    """As many as have room, at most `count`. A worker that waits for a place that others hold would take no work, so
    what others hold is not counted; what a run has just left may take a moment to be free.
    """
    wanted = min(room(total(), resources), count or room(total(), resources))
    deadline = time.monotonic() + ROOM_S
    while room(free(), resources) < wanted and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return max(1, min(wanted, room(free(), resources)))
