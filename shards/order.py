"""The law of order: the sample at a global position is a pure function of that position.

Loaders that keep their place in workers cannot resume on another number of them. Here nothing has a place to keep:
one integer, the position, says which samples come next, on any number of ranks, workers and for any batch size.

    mix      block b = p // B; each source's quota in the block is a difference of closed-form integer quotas; the
             block's list of sources is shuffled by key(seed, 1, b)  ->  source s; q counts s's positions, gap-free
    source   epoch e, i = divmod(q, N);  lane l = i % L,  m = i // L
    window   j, r = divmod(m, w);  x = start(l) + j*w + permutation(window size; seed, s, e, l, j)[r]
    shard    x falls into one shard of the permuted shard list  ->  shard, row

A shuffle is a stable sort by keyed hash, so it is the same on every platform and NumPy version. `s` in a key is the
hash of the source's *name*: adding a source never reshuffles another one.

Blend: at every block boundary each of S sources is fewer than max(2, S) samples away from its exact share.
Cost: 1 to 2 us a sample; caches of two blocks and, for each source, 2L+2 windows and two shard lists.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

VERSION = 1
"""Part of every plan: raised when the same seed would give another order."""

Ints = NDArray[np.int64]
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix(x: int) -> int:
    """The splitmix64 finaliser: a bijection of 64-bit integers whose every output bit depends on every input bit."""
    x = ((x ^ (x >> 30)) * _MIX[0]) & _MASK
    x = ((x ^ (x >> 27)) * _MIX[1]) & _MASK
    return x ^ (x >> 31)


def mix_array(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix` of each element, uint64 [n]."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX[0])
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX[1])
    return x ^ (x >> np.uint64(31))


def key(*parts: int) -> int:
    """Folds integers into one 64-bit key."""
    folded = _GOLDEN
    for part in parts:
        folded = mix(((folded ^ (part & _MASK)) + _GOLDEN) & _MASK)
    return folded


def name_key(name: str) -> int:
    """The 64-bit key of a source's or a sample's name."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def permutation(n: int, *parts: int) -> Ints:
    """A shuffle of 0..n-1 that depends on `parts` alone, int64 [n]."""
    hashed = mix_array(np.arange(n, dtype=np.uint64) * np.uint64(_GOLDEN) + np.uint64(key(*parts)))
    return np.argsort(hashed, kind="stable").astype(np.int64, copy=False)


def uniforms(count: int, *parts: int) -> list[float]:
    """`count` numbers in [0, 1) that depend on `parts` alone: randomness without a generator to keep."""
    start = key(*parts)
    return [(mix((start + i * _GOLDEN) & _MASK) >> 11) * 2.0**-53 for i in range(count)]


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Integers in exactly the proportion of the decimals given: (0.1, 0.2) is (1, 2), no rounding to drift."""
    exact = [Fraction(repr(w)) if isinstance(w, float) else Fraction(w) for w in weights]
    scale = math.lcm(*(w.denominator for w in exact))
    whole = [int(w * scale) for w in exact]
    shared = math.gcd(*whole)
    return tuple(w // shared for w in whole)


def quotas(n: int, weights: Sequence[int]) -> list[int]:
    """How many of the first n samples go to each source. They sum to n, and none ever falls as n grows.

    Sources are split off one after the other: rounding cumulative shares would be closer, but may take one back.
    """
    rest, total, out = n, sum(weights), []
    for weight in weights:
        left = rest * (total - weight) // total if total else 0
        out.append(rest - left)
        rest, total = left, total - weight
    return out


def rank_share(lane: Ints, rank: int, world_size: int) -> Ints:
    """Which samples of a global batch a rank gets: stable-sorted by lane and cut evenly, int64 [about n / world_size].

    Neighbouring lanes stay on one rank, so a rank touches few shards; sizes differ by at most one.
    """
    by_lane = np.argsort(lane, kind="stable")
    n = len(by_lane)
    return by_lane[rank * n // world_size : (rank + 1) * n // world_size]


@dataclass(frozen=True)
class Located:
    """Where samples lie, int64 [n] each: source (index by sorted name), its epoch, lane, shard, row in the shard."""

    source: Ints
    epoch: Ints
    lane: Ints
    shard: Ints
    row: Ints

    def take(self, chosen: Ints) -> "Located":
        """The chosen samples only."""
        return Located(*(getattr(self, part)[chosen] for part in ("source", "epoch", "lane", "shard", "row")))


class Order:
    """The order of a blend. `shapes`: (name, samples in each shard, weight) of every source, in any order of names.

    A weight counts samples, not batches: weights 3 and 1 mean three samples of the first for each of the second.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[str, Sequence[int] | Ints, float]],
        seed: int,
        block: int,
        lanes: int = 16,
        window: int = 4096,
    ):
        shapes = sorted(shapes, key=lambda shape: shape[0])
        assert len({name for name, _, _ in shapes}) == len(shapes) > 0, "source names must be unique"
        self.names = tuple(name for name, _, _ in shapes)
        self.weights = integer_weights([weight for _, _, weight in shapes])
        self.seed, self.block = seed, block
        self._sources = [_Source(np.asarray(rows, np.int64), seed, name_key(n), lanes, window) for n, rows, _ in shapes]
        self._table = lru_cache(maxsize=2)(self._block_table)

    def locate(self, positions: Ints) -> Located:
        """Where the samples at these global positions lie; positions int64 [n], in any order."""
        positions = np.asarray(positions, np.int64)
        source, count = self._assign(positions)
        epoch, lane, shard, row = (np.empty_like(positions) for _ in range(4))
        for index, law in enumerate(self._sources):
            of = np.flatnonzero(source == index)
            if len(of):
                epoch[of], lane[of], shard[of], row[of] = law.locate(count[of])
        return Located(source, epoch, lane, shard, row)

    def batch(self, start: int, batch_size: int, rank: int = 0, world_size: int = 1) -> tuple[Ints, Located]:
        """This rank's share of the global batch [start, start + batch_size): positions and places."""
        positions = np.arange(start, start + batch_size, dtype=np.int64)
        located = self.locate(positions)
        mine = rank_share(located.lane, rank, world_size)
        return positions[mine], located.take(mine)

    def step(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> tuple[Ints, Located]:
        """This rank's share of global batch number `step` of a run that began at position 0."""
        return self.batch(step * batch_size, batch_size, rank, world_size)

    def _assign(self, positions: Ints) -> tuple[Ints, Ints]:
        """Source and the source's gap-free counter of each position, int64 [n] each."""
        blocks, inside = np.divmod(positions, self.block)
        source, count = np.empty_like(positions), np.empty_like(positions)
        for of in _groups(blocks):
            sources, counts = self._table(int(blocks[of[0]]))
            source[of], count[of] = sources[inside[of]], counts[inside[of]]
        return source, count

    def _block_table(self, block: int) -> tuple[Ints, Ints]:
        low, high = quotas(block * self.block, self.weights), quotas((block + 1) * self.block, self.weights)
        sources = np.repeat(np.arange(len(low)), [h - first for first, h in zip(low, high, strict=True)])
        counts = np.concatenate([np.arange(first, h, dtype=np.int64) for first, h in zip(low, high, strict=True)])
        sources = sources[permutation(self.block, self.seed, 1, block)]
        # Counters rise with the position: shuffled too, a source would begin its next epoch before this one is over.
        in_order = np.empty_like(counts)
        in_order[np.argsort(sources, kind="stable")] = counts
        return sources, in_order


class _Source:
    """The order inside one source; `rows` int64 [shards], samples in each (0 is allowed)."""

    def __init__(self, rows: Ints, seed: int, name: int, lanes: int, window: int):
        self.rows, self.seed, self.name, self.lanes, self.window = rows, seed, name, lanes, window
        self.n = int(rows.sum())
        assert self.n > 0, "a source without samples has no order"
        lane = np.arange(lanes + 1)
        # [lanes + 1]: lane l covers places starts[l] .. starts[l + 1] of the epoch's list of samples
        self.starts = lane * (self.n // lanes) + np.minimum(lane, self.n % lanes)
        self.windows = -(-int(np.diff(self.starts).max()) // window)
        self._shards = lru_cache(maxsize=2)(self._shard_list)
        self._places = lru_cache(maxsize=2 * lanes + 2)(self._window_places)

    def locate(self, count: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Epoch, lane, shard and row of the source's samples number `count`, int64 [n] each."""
        epoch, i = np.divmod(count, self.n)
        m, lane = np.divmod(i, self.lanes)
        j, r = np.divmod(m, self.window)
        place = np.empty_like(count)
        # Numbering the windows of all epochs stays below count * (lanes + 1): no overflow before 10^15 samples.
        for of in _groups((epoch * self.lanes + lane) * self.windows + j):
            first = of[0]
            place[of] = self._places(int(epoch[first]), int(lane[first]), int(j[first]))[r[of]]
        shard, row = np.empty_like(count), np.empty_like(count)
        for of in _groups(epoch):
            shards, starts = self._shards(int(epoch[of[0]]))
            at = np.searchsorted(starts, place[of], side="right") - 1
            shard[of], row[of] = shards[at], place[of] - starts[at]
        return epoch, lane, shard, row

    def _shard_list(self, epoch: int) -> tuple[Ints, Ints]:
        """The epoch's permuted shards and, for each, the place of its first sample; int64 [shards], [shards + 1]."""
        shards = permutation(len(self.rows), self.seed, self.name, epoch)
        return shards, np.concatenate([[0], np.cumsum(self.rows[shards])])

    def _window_places(self, epoch: int, lane: int, j: int) -> Ints:
        """The shuffled places of one window, int64 [window, or what is left of the lane]."""
        start = int(self.starts[lane]) + j * self.window
        size = min(self.window, int(self.starts[lane + 1]) - start)
        return start + permutation(size, self.seed, self.name, epoch, lane, j)


def _groups(ids: Ints) -> Iterator[Ints]:
    """Indices of equal ids, one array for each distinct id."""
    order = np.argsort(ids, kind="stable")
    edges = np.flatnonzero(np.diff(ids[order])) + 1
    bounds = [0, *edges.tolist(), len(order)]
    for first, end in pairwise(bounds):
        if end > first:
            yield order[first:end]
