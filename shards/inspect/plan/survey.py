"""What a bounded number of global batches show of an order: who gets what, and from how many shards.

A run is cut into phases, at the stages of its blend and evenly between them, because who gets a lane may drift over
time. The same number of batches is looked at in each, evenly spread and a little at random, or all of them if they are
few. 2^20 samples in all, so a second or two, however long the run is.

Who gets a lane is found for all sources together: within a lane samples go by position, and there sources are mixed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from shards.format.hashing import Ints, key, uniforms
from shards.inspect.plan.downloads import Chances, Floats
from shards.order.order import Located, Order, rank_share

_PHASES, _SAMPLES_A_LANE, _AT_ONCE = 16, 1024, 1 << 17
SAMPLES = 1 << 20


@dataclass(frozen=True)
class World:
    """Machines: ranks, the same number on each node."""

    ranks: int = 1
    nodes: int = 1


@dataclass(frozen=True)
class Run:
    """How far an order is read: steps of `batch_size` positions."""

    batch_size: int
    steps: int

    @property
    def samples(self) -> int:
        """Positions."""
        return self.batch_size * self.steps


@dataclass(frozen=True)
class Survey:
    """What was seen. `starts`: the step at which each phase begins, and the end, int64 [phases + 1].

    For each source: `least` samples in a batch, int64 [sources]; on average over the batches that have any
    of it `samples`, and `shards`, distinct ones, float64 [sources]. `open_shards`: distinct ones, of all sources, that
    one rank reads in a batch, on average. `is_complete`: all batches were looked at.
    """

    starts: Ints
    chances: Chances
    least: Ints
    samples: Floats
    shards: Floats
    open_shards: float
    is_complete: bool


@dataclass(frozen=True)
class Chosen:
    """Steps to look at in each phase, int64 [n] each; `starts`: the step at which each phase begins, and the end."""

    starts: Ints
    steps: tuple[Ints, ...]

    @property
    def num_steps(self) -> int:
        """Of all phases."""
        return sum(map(len, self.steps))


def choose(order: Order, run: Run, samples: int = SAMPLES) -> Chosen:
    """Batches of about `samples` samples in all."""
    starts = _phases(order, run, samples)
    most = max(1, samples // (len(starts) - 1) // run.batch_size)
    return Chosen(starts, tuple(_spread(first, end, most) for first, end in pairwise(starts.tolist())))


def survey(
    order: Order, run: Run, world: World, plan: Chosen, advance: Callable[[int], object] | None = None
) -> Survey:
    """Looks at the batches of a plan; calls `advance` with the number of steps done."""
    seen = _Sums(len(order.names), order.lanes, world, len(plan.steps))
    at_once = max(1, _AT_ONCE // run.batch_size)
    for phase, steps in enumerate(plan.steps):
        for part in (steps[i : i + at_once] for i in range(0, len(steps), at_once)):
            positions = part[:, None] * run.batch_size + np.arange(run.batch_size)
            seen.add(phase, order.locate(positions.ravel()), len(part))
            if advance:
                advance(len(part))
    counts = np.array([order.blend.counts(step * run.batch_size) for step in plan.starts.tolist()])
    return seen.survey(plan, counts, plan.num_steps == run.steps)


def ranks_of(lane: Ints, ranks: int) -> Ints:
    """The rank of each sample of whole batches; lane and result int64 [batches, batch size]."""
    batch_size = lane.shape[1]
    by_place = np.repeat(np.arange(ranks), np.diff(np.arange(ranks + 1) * batch_size // ranks))
    found = np.empty_like(lane)
    for of, lanes in zip(found, lane, strict=True):
        of[rank_share(lanes, 0, 1)] = by_place
    return found


def _phases(order: Order, run: Run, samples: int) -> Ints:
    """The step at which each phase begins, and the end, int64 [phases + 1]."""
    wanted = int(np.clip(samples // max(order.lanes * _SAMPLES_A_LANE, run.batch_size), 1, _PHASES))
    even = np.arange(wanted + 1) * run.steps // wanted
    stages = -(-order.blend.starts // run.batch_size)
    return np.unique(np.concatenate([even, stages[stages < run.steps]]))


def _spread(first: int, end: int, most: int) -> Ints:
    """At most so many steps of [first, end), one somewhere in each of as many equal parts."""
    count = min(end - first, most)
    inside = (np.arange(count) + uniforms(count, np.array([key(first, end)], np.uint64))[0]) * ((end - first) / count)
    return first + inside.astype(np.int64)


class _Sums:
    """Sums over the batches seen so far."""

    def __init__(self, num_sources: int, lanes: int, world: World, phases: int):
        self._world = world
        self._of_node = np.zeros((phases, lanes, world.nodes))
        self._least = np.full(num_sources, np.iinfo(np.int64).max)
        self._most = np.zeros(num_sources, np.int64)
        self._samples, self._shards, self._batches = np.zeros((3, num_sources))
        self._open = 0

    def add(self, phase: int, at: Located, batches: int) -> None:
        """Batches of one phase, one after the other."""
        lanes, nodes = self._of_node.shape[1:]
        rank = ranks_of(at.lane.reshape(batches, -1), self._world.ranks).ravel()
        node = rank * nodes // self._world.ranks
        self._of_node[phase] += np.bincount(at.lane * nodes + node, minlength=lanes * nodes).reshape(lanes, nodes)
        sources = len(self._shards)
        batch = np.repeat(np.arange(batches), len(rank) // batches)
        each = np.bincount(batch * sources + at.source, minlength=batches * sources).reshape(batches, sources)
        self._least = np.minimum(self._least, each.min(axis=0))
        self._most = np.maximum(self._most, each.max(axis=0))
        self._samples += each.sum(axis=0)
        self._batches += (each > 0).sum(axis=0)
        shard = (at.source * batches + batch) * (1 + at.shard.max()) + at.shard
        distinct, which = np.unique(shard, return_inverse=True)
        self._shards += np.bincount(distinct // ((1 + at.shard.max()) * batches), minlength=sources)
        self._open += len(np.unique(which * self._world.ranks + rank))

    def survey(self, plan: Chosen, counts: Ints, is_complete: bool) -> Survey:
        """What all of it comes to."""
        lanes, nodes = self._of_node.shape[1:]
        total = self._of_node.sum(axis=2, keepdims=True)
        even = np.eye(nodes)[np.arange(lanes) * nodes // lanes]  # of a lane that was not met
        p = np.where(total > 0, self._of_node / np.maximum(total, 1), even)
        samples, shards = (summed / np.maximum(self._batches, 1) for summed in (self._samples, self._shards))
        open_shards = self._open / (plan.num_steps * self._world.ranks)
        return Survey(
            plan.starts, Chances(p, counts, self._most), self._least, samples, shards, open_shards, is_complete
        )
