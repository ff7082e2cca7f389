"""Finds all pairs among millions of 64-bit words that differ in few bits, without comparing each with each.

Pigeonholes: the 64 bits are dealt to `blocks` blocks. Words that differ in at most `most` bits are equal in at least
`blocks - most` of the blocks, so sorting the words by each choice of that many blocks brings every such pair into one
bucket (Manku, Jain, Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007). Nothing is missed by chance.

More blocks make more choices to sort for, and smaller buckets; how many are best depends on the number of words alone:
with 8 bits 45 sorts for 10^5 words, 165 for 10^6, 495 for 2 * 10^7. Memory: 50 bytes a word and 16 a pair found; time:
benchmarks/results/dups.md. Thousands of words that resemble each other would be millions of pairs: a word that has 64
partners gets no more from others that have 64. Such words are reported: the caller can take their group for what it is.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from shards.format.hashing import Ints

Words = NDArray[np.uint64]
Judge = Callable[[Ints, Ints], NDArray[np.bool_]]

ENOUGH = 64
"""Partners after which a word gets no more from others that have as many."""

_SORT, _COMPARE = 60, 5
"""Nanoseconds to sort a word and to compare two, about: what matters is how they stand to each other."""
_STEPS = 64
_CHUNK = 1 << 22
_PLACE = np.uint64(0xFFFF_FFFF)
_SPREAD = np.uint64(0x9E37_79B9_7F4A_7C15)


@dataclass
class Near:
    """Pairs, a < b, each once, and which words have so many partners that pairs of theirs may be left out."""

    a: Ints
    b: Ints
    crowded: NDArray[np.bool_]


def find_near(words: Words, most: int, judge: Judge, advance: Callable[[int], object] = int) -> Near:
    """All pairs of words that differ in at most `most` bits and that `judge(a, b)`, by their places, accepts.

    `advance(1)` is called after each of `num_sorts(len(words), most)` sorts.
    """
    assert len(words) < 1 << 32
    masks = _masks(_num_blocks(len(words), most))
    partners = np.zeros(len(words), np.uint16)
    found: list[tuple[Ints, Ints]] = []
    for chosen in combinations(range(len(masks)), len(masks) - most):
        for a, b in _close(words, _buckets(words, [masks[block] for block in chosen]), most, partners):
            new = _is_first(words[a] ^ words[b], masks, chosen) & ((partners[a] < ENOUGH) | (partners[b] < ENOUGH))
            a, b = a[new], b[new]
            accepted = judge(a, b)
            a, b = a[accepted], b[accepted]
            for side in (a, b):
                np.add.at(partners, side, 1)
            found.append((np.minimum(a, b), np.maximum(a, b)))
        advance(1)
    none = np.zeros(0, np.int64)
    first, second = (np.concatenate([pair[side] for pair in found] or [none]) for side in (0, 1))
    return Near(first, second, partners >= ENOUGH)


def num_sorts(num_words: int, most: int) -> int:
    """How often `find_near` sorts."""
    return comb(_num_blocks(num_words, most), most)


def _num_blocks(num_words: int, most: int) -> int:
    def cost(blocks: int) -> float:
        bucket = num_words / 2 ** (64 * (blocks - most) / blocks)
        return comb(blocks, most) * num_words * (_SORT + (1 + bucket / 2) * _COMPARE)

    return min(range(most + 1, most + 6), key=cost)


def _masks(blocks: int) -> list[int]:
    """The bits of each block: dealt out like cards, as neighbouring bits may be more alike than others."""
    return [sum(1 << bit for bit in range(block, 64, blocks)) for block in range(blocks)]


def _buckets(words: Words, masks: list[int]) -> Words:
    """Words sorted by their bits in `masks`: above a hash of these bits, below the place in `words`; uint64 [n]."""
    mixed = words & np.uint64(sum(masks))
    mixed *= _SPREAD
    mixed &= ~_PLACE
    mixed |= np.arange(len(words), dtype=np.uint64)
    mixed.sort()
    return mixed


def _close(words: Words, buckets: Words, most: int, partners: NDArray[np.uint16]) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of places in one bucket whose words differ in at most `most` bits, in chunks."""
    order = (buckets & _PLACE).astype(np.int64)
    bucket, ordered = buckets >> np.uint64(32), words[order]
    # While most words still have another one behind them, whole arrays are compared: that is ten times as fast.
    step, together = 1, bucket[1:] == bucket[:-1]
    while step < _STEPS and np.count_nonzero(together) > len(words) / 16:
        at = np.flatnonzero(together & (np.bitwise_count(ordered[step:] ^ ordered[:-step]) <= most))
        yield order[at], order[at + step]
        step += 1
        together = bucket[step:] == bucket[:-step]
    at = np.flatnonzero(together)
    ends = np.append(np.flatnonzero(bucket[1:] != bucket[:-1]), len(words) - 1)
    last = ends[np.searchsorted(ends, at)]
    while len(at):
        for start in range(0, len(at), _CHUNK):
            here = at[start : start + _CHUNK]
            near = here[np.bitwise_count(ordered[here] ^ ordered[here + step]) <= most]
            yield order[near], order[near + step]
        step += 1
        if step % _STEPS == 0:
            last = _last_needed(order, at, last, partners)
        left = at + step <= last
        at, last = at[left], last[left]


def _last_needed(order: Ints, at: Ints, last: Ints, partners: NDArray[np.uint16]) -> Ints:
    """The last place of its bucket that each must still meet; for one with partners enough, the last that has not."""
    wanting = partners[order] < ENOUGH
    latest = np.maximum.accumulate(np.where(wanting, np.arange(len(order)), -1))
    return np.where(wanting[at], last, latest[last])


def _is_first(differing: Words, masks: list[int], chosen: tuple[int, ...]) -> NDArray[np.bool_]:
    """Whether `chosen` are the first blocks in which pairs are equal, bool [n]: in other choices they come again."""
    equal = np.array([(differing & np.uint64(mask)) == 0 for mask in masks])
    first = equal & (np.cumsum(equal, axis=0) <= len(chosen))
    return np.all(first[list(chosen)], axis=0)
