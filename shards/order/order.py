"""The order: the sample at a global position is a pure function of that position.

Loaders that keep their place in workers cannot resume on another number of them. Here nothing has a place to keep:
one integer, the position, says which samples come next, on any number of ranks, workers and for any batch size.

    mix      position -> source s and q, the source's gap-free counter (blend.py)
    source   epoch e, i = divmod(q, N);  lane l = i % L,  m = i // L
    window   j, r = divmod(m, w);  x = start(l) + j*w + shuffle of the window, keyed by (seed, s, e, l, j), at r
    shard    x falls into one shard of the permuted shard list  ->  shard, row

Where the classes of a source have weights of their own, q goes through one more blend, of the classes: q -> class and
its gap-free counter, and the rest is as above with the class in place of the source, epochs too. So the sources' shares
and counters know nothing of it, a class's samples come once before any comes twice, and nothing is added to a state.

`s` in a key is the hash of the source's *name*: adding a source never reshuffles another one, and one data set under
two names is read in two orders. Cost: 1 to 2 us a sample; caches of two blocks and, for each source, 2L+2 windows and
two shard lists, the latter 24 bytes a shard (with classes, of each class).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from shards.format.hashing import Ints, fold, key, name_key, permutation, shuffled
from shards.order.blend import Blend, Stage, groups

VERSION = 2
"""Part of every plan: raised when the same seed would give another order."""


def shuffled_shards(count: int, seed: int, source: str, epoch: int) -> Ints:
    """A source's shards in the order of an epoch, int64 [count]."""
    return permutation(count, seed, name_key(source), epoch)


def rank_share(lane: Ints, rank: int, world_size: int, ahead: int = 0) -> Ints:
    """Which samples of a global batch a rank gets: stable-sorted by lane and cut evenly, int64 [about n / world_size];
    and the `ahead` that come after them, after the last the first.

    Neighbouring lanes stay on one rank, so a rank touches few shards; sizes differ by at most one.
    """
    by_lane = np.argsort(lane, kind="stable")
    n = len(by_lane)
    return by_lane[np.arange(rank * n // world_size, (rank + 1) * n // world_size + ahead) % n]


@dataclass(frozen=True)
class Located:
    """Where samples lie, int64 [n] each: source (index by sorted name), epoch, lane, shard, row in the shard."""

    source: Ints
    epoch: Ints
    lane: Ints
    shard: Ints
    row: Ints

    def take(self, chosen: Ints) -> "Located":
        """The chosen samples only."""
        return Located(*(getattr(self, part)[chosen] for part in ("source", "epoch", "lane", "shard", "row")))


@dataclass(frozen=True)
class Classes:
    """The classes of a source that come by weights of their own. weights: by name, which are sorted; shapes: samples of
    each in each shard, int64 [classes, shards], none without any; by_class: the rows of a shard, class after class,
    int64 [rows].
    """

    weights: Mapping[str, float]
    shapes: Ints
    by_class: Callable[[int], Ints]


@dataclass(frozen=True)
class _Within:
    """The classes of a source in an order. first: the place of the first of them among all lists of samples; before:
    how many samples the classes before each have in each shard, int64 [classes, shards].
    """

    blend: Blend
    first: int
    before: Ints
    by_class: Callable[[int], Ints]


class Order:
    """The order of a blend of sources.

    shapes: name -> samples in each shard, int64 [shards] (0 is allowed). stages: the weights, from which position on.
    A weight counts samples: weights 3 and 1 mean three samples of the first for each of the second. classes: of the
    sources whose classes have weights too.
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int] | Ints],
        stages: Sequence[Stage],
        seed: int,
        block: int,
        lanes: int = 16,
        window: int = 4096,
        unit: int = 1,
        classes: Mapping[str, Classes] | None = None,
    ):
        assert shapes, "an order needs a source"
        self.names = tuple(sorted(shapes))
        self.blend = Blend(self.names, stages, seed, block, unit)
        self.seed, self.lanes, self.window = seed, lanes, window
        self._rows = [np.asarray(shapes[name], np.int64) for name in self.names]
        keys = [key(seed, name_key(name)) for name in self.names]
        self._origin = list(range(len(self.names)))  # the source that each list of samples, `_rows`, is of
        self._within: dict[int, _Within] = {}  # by source
        for name, one in sorted((classes or {}).items()):
            source = self.names.index(name)
            blend = Blend(tuple(one.weights), [Stage(0, one.weights)], keys[source], block)
            before = np.cumsum(one.shapes, 0) - one.shapes
            self._within[source] = _Within(blend, len(self._rows), before, one.by_class)
            keys += [key(seed, name_key(name), name_key(each)) for each in one.weights]
            self._rows += list(one.shapes)
            self._origin += [source] * len(one.weights)
        self._samples = np.array([rows.sum() for rows in self._rows], np.int64)
        assert self._samples.all(), "a source or class without samples has no order"
        self._keys = np.array(keys, np.uint64)
        self._shards = lru_cache(maxsize=2 * len(self._rows))(self._shard_list)

    def locate(self, positions: Ints) -> Located:
        """Where the samples at these global positions lie; positions int64 [n], in any order."""
        positions = np.asarray(positions, np.int64)
        source, count = self.blend.locate(positions)
        part, count = self._parts(source, count)
        epoch, lane, place = self._places(part, count)
        shard, row = np.empty_like(place), np.empty_like(place)
        for of in groups(epoch * len(self._rows) + part):
            shards, starts = self._shards(int(part[of[0]]), int(epoch[of[0]]))
            inside = place[of]
            at = starts.searchsorted(inside, side="right") - 1
            shard[of], row[of] = shards[at], inside - starts[at]
        return Located(source, epoch, lane, shard, self._rows_of_source(part, shard, row))

    def batch(self, start: int, batch_size: int, rank: int = 0, world_size: int = 1) -> tuple[Ints, Located]:
        """This rank's share of the global batch [start, start + batch_size): positions and places."""
        return next(self.batches(start, batch_size, 1, rank, world_size))

    def batches(
        self, start: int, batch_size: int, count: int, rank: int = 0, world_size: int = 1, ahead: int = 0
    ) -> Iterator[tuple[Ints, Located]]:
        """This rank's shares of `count` batches in a row, each with `ahead` samples of the next rank's. They are
        located together: a call has a price of its own, so batches of 64 cost a third of what they do one by one.
        """
        positions = np.arange(start, start + count * batch_size, dtype=np.int64)
        located = self.locate(positions)
        for first in range(0, len(positions), batch_size):
            mine = first + rank_share(located.lane[first : first + batch_size], rank, world_size, ahead)
            yield positions[mine], located.take(mine)

    def _parts(self, source: Ints, count: Ints) -> tuple[Ints, Ints]:
        """The list in `_rows` that each source's sample number `count` is of, and its number there; int64 [n]."""
        if not self._within:
            return source, count
        part, number = source.copy(), count.copy()
        for one, within in self._within.items():
            of = np.flatnonzero(source == one)
            chosen, number[of] = within.blend.locate(count[of])
            part[of] = within.first + chosen
        return part, number

    def _rows_of_source(self, part: Ints, shard: Ints, row: Ints) -> Ints:
        """`row` counts what a shard has of a list in `_rows`: the same counted in what it has of the source."""
        rows = row.copy()
        for within in self._within.values():
            of = np.flatnonzero((part >= within.first) & (part < within.first + len(within.before)))
            inside = within.before[part[of] - within.first, shard[of]] + row[of]
            for same in groups(shard[of]):
                rows[of[same]] = within.by_class(int(shard[of[same[0]]]))[inside[same]]
        return rows

    def _places(self, source: Ints, count: Ints) -> tuple[Ints, Ints, Ints]:
        """Epoch, lane and place in the epoch's list of samples of each list's sample number `count`; int64 [n]."""
        n = self._samples[source]
        epoch, i = np.divmod(count, n)
        m, lane = np.divmod(i, self.lanes)
        j, r = np.divmod(m, self.window)
        each, longer = np.divmod(n, self.lanes)  # the first lanes are one sample longer where it does not divide evenly
        start = lane * each + np.minimum(lane, longer) + j * self.window
        size = np.minimum(self.window, each + (lane < longer) - j * self.window)
        return epoch, lane, start + shuffled(r, size, fold(self._keys[source], epoch, lane, j))

    def _shard_list(self, source: int, epoch: int) -> tuple[Ints, Ints]:
        """The epoch's permuted shards and, for each, the place of its first sample; int64 [shards], [shards + 1]. The
        classes of a source go through its shards in the same order.
        """
        rows = self._rows[source]
        shards = shuffled_shards(len(rows), self.seed, self.names[self._origin[source]], epoch)
        return shards, np.concatenate([[0], np.cumsum(rows[shards])])
