"""Which source comes at which position: an exact blend, in stages.

    stage    positions from `start` on, with weights of their own; counters go on from `base`
    block    b = (p - start) // B; each source's quota in the block is a difference of closed-form integer quotas; the
             list of sources is shuffled by key(seed, 1, first position of the block)
    unit     U positions in a row go to one source (U = 1: samples are mixed; U = the batch: batches of one source)

A quota is found by halving the list of sources again and again and splitting the count in proportion, rounded down on
the left: both sides never fall as the count grows, and a source's error stays below one sample for each halving, so
below max(1, log2 of the sources, rounded up). Rounding cumulative shares would be closer, but may take a sample back.
Cost: for a block, one split for each source that occurs in it, so a thousand sources cost hardly more than ten.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate, pairwise

import numpy as np

from shards.format.hashing import Ints, permutation


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Integers in exactly the proportion of the decimals given: (0.1, 0.2) is (1, 2), no rounding to drift."""
    exact = [Fraction(repr(w)) if isinstance(w, float) else Fraction(w) for w in weights]
    scale = math.lcm(*(w.denominator for w in exact))
    whole = [int(w * scale) for w in exact]
    shared = math.gcd(*whole)
    return tuple(w // shared for w in whole)


def tempered(sizes: Sequence[int], temperature: float, tilt: float, scores: Sequence[float]) -> list[float]:
    """Weights ~ n^(1/T) * exp(tilt * score), the largest 1, to 6 digits: equal on every platform's pow and exp.

    T = 1 takes sources as large as they are, T -> infinity all alike (Arivazhagan et al. 2019, section 3.2).
    """
    logs = [math.log(n) / temperature + tilt * score for n, score in zip(sizes, scores, strict=True)]
    return [max(1e-6, round(math.exp(value - max(logs)), 6)) for value in logs]


@dataclass(frozen=True)
class Stage:
    """Weights from a position on. `base`: samples each source had given before; not given: counted from the stages
    before.
    """

    start: int
    weights: Mapping[str, float]
    base: Mapping[str, int] | None = field(default=None)


class Blend:
    """Position -> (source, the source's gap-free counter). `names` sorted; stages in rising order of start.

    Every stage's weights name sources of `names`; one not named gets no samples in that stage.
    """

    def __init__(self, names: Sequence[str], stages: Sequence[Stage], seed: int, block: int, unit: int = 1):
        if block % unit:
            raise ValueError(f"block {block}: expected a multiple of the unit, {unit}")
        self.names, self.seed, self.block, self.unit = tuple(names), seed, block, unit
        self.starts = np.array([stage.start for stage in stages], np.int64)
        assert (np.diff(self.starts) > 0).all(), "stages must begin one after the other"
        self.weights = [integer_weights([stage.weights.get(name, 0) for name in names]) for stage in stages]
        self._ends = [list(accumulate(weights, initial=0)) for weights in self.weights]
        self._base: list[Ints] = []
        self._table = lru_cache(maxsize=2)(self._block_table)
        for stage in stages:
            if stage.base is None:
                base = self.counts(stage.start) if self._base else np.zeros(len(names), np.int64)
            else:
                base = np.array([stage.base.get(name, 0) for name in names], np.int64)
            self._base.append(base)

    def locate(self, positions: Ints) -> tuple[Ints, Ints]:
        """Source (index by name) and its counter at each position, int64 [n] each, in any order."""
        stages = np.searchsorted(self.starts, positions, side="right") - 1
        source, count = np.empty_like(positions), np.empty_like(positions)
        for of in groups(stages):
            stage = int(stages[of[0]])
            blocks, inside = np.divmod(positions[of] - self.starts[stage], self.block)
            for part in groups(blocks):
                sources, counts = self._table(stage, int(blocks[part[0]]))
                units, rest = np.divmod(inside[part], self.unit)
                source[of[part]], count[of[part]] = sources[units], counts[units] + rest
        return source, count

    def counts(self, position: int) -> Ints:
        """How many samples each source has given before `position`, int64 [sources]."""
        stage = max(0, int(np.searchsorted(self.starts[: len(self._base)], position, side="right")) - 1)
        block, inside = divmod(position - int(self.starts[stage]), self.block)
        units, rest = divmod(inside, self.unit)
        counts = self._base[stage].copy()
        for source, _, high in self._split(stage, 0, block * self.block // self.unit):
            counts[source] += high * self.unit
        sources, _ = self._table(stage, block)
        counts += np.bincount(sources[:units], minlength=len(counts)) * self.unit
        counts[sources[units]] += rest
        return counts

    def _block_table(self, stage: int, block: int) -> tuple[Ints, Ints]:
        """Source and counter of the first sample of each unit of a block, int64 [block / unit] each."""
        size = self.block // self.unit
        shares = list(self._split(stage, block * size, (block + 1) * size))
        sources = np.repeat(np.array([s for s, _, _ in shares]), [high - low for _, low, high in shares])
        base = self._base[stage]
        counts = np.concatenate([base[s] + np.arange(low, high, dtype=np.int64) * self.unit for s, low, high in shares])
        sources = sources[permutation(size, self.seed, 1, int(self.starts[stage]) + block * self.block)]
        # Counters rise with the position: shuffled too, a source would begin its next epoch before this one is over.
        in_order = np.empty_like(counts)
        in_order[np.argsort(sources, kind="stable")] = counts
        return sources, in_order

    def _split(self, stage: int, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """(source, quota of the first `low` units, quota of the first `high`) where the two differ."""
        ends = self._ends[stage]
        rest = [(0, len(self.names), low, high)]
        while rest:
            first, last, low, high = rest.pop()
            if low == high:
                continue
            if last - first == 1:
                yield first, low, high
                continue
            middle, total = (first + last) // 2, ends[last] - ends[first]
            left = ends[middle] - ends[first]
            left_low, left_high = low * left // total, high * left // total
            rest.append((middle, last, low - left_low, high - left_high))
            rest.append((first, middle, left_low, left_high))


def groups(ids: Ints) -> Iterator[Ints]:
    """Indices of equal ids, one array for each distinct id."""
    if len(ids) and (ids == ids[0]).all():
        yield np.arange(len(ids))
        return
    order = np.argsort(ids, kind="stable")
    edges = np.flatnonzero(np.diff(ids[order])) + 1
    for first, end in pairwise([0, *edges.tolist(), len(order)]):
        if end > first:
            yield order[first:end]
