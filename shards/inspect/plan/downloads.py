"""Which node fetches which shard, and how long it needs it: an expectation, from rows a shard alone.

    stretch   a piece of an epoch's list of samples that lies in one shard, one lane and one window
    chance    p, that a sample of a lane goes to a node: 0 or 1, or between where nodes share a lane
    fetch     a node fetches a shard unless it gets none of its rows: 1 - product over stretches of (1 - p)^rows
    disk      a node needs a shard from the first window that it lies in to the last one, and already in the window
              before (if batches span several, in as many before), when it is fetched ahead: the most bytes at a time

The list of an epoch is the one that `Order` reads, shuffle and all; p is measured (`survey.py`), so nothing here
depends on why lanes are shared. Rows are taken as independent, and all of a window as needed throughout: where a window
is shorter than a lane's part of a batch, nodes fetch less. Costs some 0.2 us a stretch and epoch; an epoch has about as
many stretches as shards and windows, at most 5 for each shard.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.format.hashing import Ints
from shards.order.order import Order, shuffled_shards

Floats = NDArray[np.float64]
_STRETCHES_A_SHARD, _EPOCHS, _NEVER, _MOMENT = 4, 16, 1e-9, 1e-6


@dataclass(frozen=True)
class Shape:
    """A source: samples, int64 [shards], and bytes, float64 [shards], of each shard."""

    name: str
    rows: Ints
    bytes: Floats


@dataclass(frozen=True)
class Stretches:
    """An epoch's list of samples, cut into stretches; int64 [n] each. `begin`, `end`: how many samples of the epoch the
    source has given when a stretch's window begins and when it is over; `share`: how much of the window is read at all,
    float64 [n].
    """

    shard: Ints
    lane: Ints
    window: Ints
    rows: Ints
    begin: Ints
    end: Ints
    share: Floats


@dataclass(frozen=True)
class Chances:
    """p of each lane and node in each phase of a run, float64 [phases, lanes, nodes]; `counts`: samples that each
    source has given before a phase, and at the end, int64 [phases + 1, sources]; `most`: those it gives in a batch, at
    most, int64 [sources].
    """

    p: Floats
    counts: Ints
    most: Ints

    @property
    def num_nodes(self) -> int:
        """Nodes."""
        return self.p.shape[2]

    def over(self, source: int, node: int, begin: Ints, end: Ints, lane: Ints) -> Floats:
        """p of a lane while a source's counter goes from `begin` to `end`; float64 [n]."""
        p = self.p[:, :, node]
        summed = np.concatenate([np.zeros((1, p.shape[1])), np.cumsum(p, axis=0)])
        phases = np.arange(len(summed), dtype=np.float64)
        first, last = (np.interp(count, self.counts[:, source], phases) for count in (begin, end))
        first = np.minimum(first, len(p) - _MOMENT)
        last = np.maximum(last, first + _MOMENT)

        def until(phase: Floats) -> Floats:
            whole = np.minimum(phase.astype(np.int64), len(p) - 1)
            return summed[whole, lane] + (phase - whole) * p[whole, lane]

        return (until(last) - until(first)) / (last - first)


@dataclass(frozen=True)
class Fetches:
    """Bytes of one source that each node fetches, float64 [nodes]: `once`, of one whole epoch; `windows`, of the run,
    if a node keeps a shard as long as an epoch needs it; `ever`, if it keeps everything. `disk`: what it must hold so
    that it fetches nothing twice in an epoch.
    """

    once: Floats
    windows: Floats
    ever: Floats
    disk: Floats


def cut(shape: Shape, seed: int, epoch: int, lanes: int, window: int, count: int | None = None) -> Stretches:
    """The stretches of an epoch of which the first `count` samples are read; None: all of them."""
    shards = shuffled_shards(len(shape.rows), seed, shape.name, epoch)
    ends = np.cumsum(shape.rows[shards])
    n = int(ends[-1])
    window = _together(shape, window)
    lane_sizes = n // lanes + (np.arange(lanes) < n % lanes)
    lane_starts = np.cumsum(lane_sizes) - lane_sizes
    in_lane = np.arange(0, lane_sizes[0], window)
    window_starts = (lane_starts[:, None] + in_lane)[in_lane < lane_sizes[:, None]]
    edges = np.sort(np.concatenate([window_starts, ends]))
    edges = edges[np.diff(edges, prepend=-1) > 0]
    starts = edges[:-1]
    lane = lane_starts.searchsorted(starts, side="right") - 1
    number = (starts - lane_starts[lane]) // window
    size = np.minimum(window, lane_sizes[lane] - number * window)
    read = np.full(lanes, n) if count is None else -((np.arange(lanes) - count) // lanes)  # samples of each lane
    return Stretches(
        shards[ends.searchsorted(starts, side="right")],
        lane,
        number,
        np.diff(edges),
        number * window * lanes,
        np.minimum((number * window + size) * lanes, n),
        np.clip((read[lane] - number * window) / size, 0, 1),
    )


def _together(shape: Shape, window: int) -> int:
    """Windows far smaller than a shard are taken together: so many samples."""
    return max(window, int(shape.rows.sum()) // (_STRETCHES_A_SHARD * len(shape.rows)))


def fetches(order: Order, shape: Shape, chances: Chances) -> Fetches:
    """What the nodes fetch of a source, each shard if it is not on their disk.

    Of many epochs, 16 stand for all: they differ by the shuffle of shards alone.
    """
    nodes = chances.num_nodes
    windows, disk, never = np.zeros(nodes), np.zeros(nodes), np.zeros((nodes, len(shape.rows)))
    total, given = int(shape.rows.sum()), int(chances.counts[-1, order.names.index(shape.name)])
    for epoch, count, weight in _epochs(given, total):
        goes_on = (epoch + 1) * total < given
        for node, need in enumerate(_needs(order, shape, chances, epoch, count)):
            windows[node] += weight * need.bytes
            never[node, need.shards] += weight * need.missed
            disk[node] = max(disk[node], need.disk(goes_on))
    return Fetches(
        one_epoch(order, shape, chances).once,
        windows,
        -np.expm1(never) @ shape.bytes,
        np.minimum(disk, shape.bytes.sum()),
    )


def one_epoch(order: Order, shape: Shape, chances: Chances) -> Fetches:
    """What the nodes fetch of the first epoch of a source, all of it, if another one follows."""
    needs = list(_needs(order, shape, chances, 0, None))
    once = np.array([need.bytes for need in needs])
    return Fetches(once, once, once, np.minimum([need.disk(True) for need in needs], shape.bytes.sum()))


def without_lanes(shape: Shape, nodes: int) -> float:
    """Bytes that all nodes fetch of one epoch if each sample goes to any of them."""
    return float(-np.expm1(shape.rows * np.log1p(-1 / nodes)) @ shape.bytes * nodes) if nodes > 1 else shape.bytes.sum()


def _epochs(given: int, n: int) -> Iterator[tuple[int, int | None, float]]:
    """Epoch, samples of it that are read (None: all), and how many epochs it stands for."""
    whole, rest = divmod(given, n)
    looked_at = min(whole, _EPOCHS)
    for i in range(looked_at):
        yield i * whole // looked_at, None, whole / looked_at
    if rest:
        yield whole, rest, 1.0


@dataclass(frozen=True)
class _Need:
    """What one node needs in an epoch. `missed`: log of the chance that it gets no row of these `shards`, both [n];
    `bytes`: of all that it fetches; `held`: in as many windows as a batch spans (`span`), from each on, float64
    [windows]; `ahead`: in one window more.
    """

    shards: Ints
    missed: Floats
    bytes: float
    held: Floats
    ahead: Floats
    span: int

    def disk(self, goes_on: bool) -> float:
        """The most bytes at a time; `goes_on`: another epoch follows."""
        turn = float(self.held[-self.span :][0] + self.held[0]) if goes_on else 0.0
        return max(float(self.ahead.max()), turn)


def _needs(order: Order, shape: Shape, chances: Chances, epoch: int, count: int | None) -> Iterator[_Need]:
    """The need of each node."""
    parts = cut(shape, order.seed, epoch, order.lanes, order.window, count)
    source, before = order.names.index(shape.name), epoch * int(shape.rows.sum())
    span = max(1, -(-int(chances.most[source]) // (order.lanes * _together(shape, order.window))))
    for node in range(chances.num_nodes):
        met = np.sum(chances.p[:, :, node], axis=0)
        of = np.flatnonzero((met[parts.lane] > 0) & (parts.share > 0))
        begin, end = before + parts.begin[of], before + parts.end[of]
        p = np.minimum(chances.over(source, node, begin, end, parts.lane[of]), 1) * parts.share[of]
        yield _need(shape, parts, of[p > _NEVER], p[p > _NEVER], span)


def _need(shape: Shape, parts: Stretches, of: Ints, p: Floats, span: int) -> _Need:
    """The need of a node that gets samples of the stretches `of`, with chance p."""
    if not len(of):
        return _Need(of, p, 0.0, np.zeros(1), np.zeros(1), span)
    firsts = np.flatnonzero(np.diff(parts.shard[of], prepend=-1))  # a shard's stretches lie side by side
    shards, window = parts.shard[of][firsts], parts.window[of]
    with np.errstate(divide="ignore"):  # p = 1: it gets every row
        missed = np.add.reduceat(parts.rows[of] * np.log1p(-p), firsts)
    needed = -np.expm1(missed) * shape.bytes[shards]
    begin, end = np.minimum.reduceat(window, firsts), np.maximum.reduceat(window, firsts) + 1
    held, ahead = (_held(np.maximum(begin - early, 0), end, needed) for early in (span - 1, span))
    return _Need(shards, missed, float(needed.sum()), held, ahead, span)


def _held(begin: Ints, end: Ints, needed: Floats) -> Floats:
    """Bytes held in each window, if each shard is held in [begin, end)."""
    size = int(end.max()) + 1
    change = np.bincount(begin, needed, size) - np.bincount(end, needed, size)
    return np.cumsum(change, dtype=np.float64)[:-1]
