"""Finds what is there more than once, within splits and across them.

Two samples are the same `exact`ly if the bytes of their images are, under whatever key; by `pixels` if these decode to
the same; `near` if at most 8 of the 64 lowest signs of their perceptual hashes differ and at most a fifth of all;
`mirrored` if so much holds of one and the mirror image of the other. What is near to one picture need not be near to
another that is: two samples are a pair, or they are not, and a group is all that pairs connect.

Costs, besides the hashes (`scan.py`), the search of `near.py` and a decode of each picture whose hash is like
another's. Memory: about 200 bytes a sample, besides the hashes, which are mapped, and some 500 for one that has a copy.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from shards import pool
from shards.decode import DecodeError
from shards.format.hashing import Ints
from shards.inspect.dups.copies import Found, Link, Pair, Split, connected
from shards.inspect.dups.near import find_near, num_sorts
from shards.inspect.dups.perceptual_hash import HASH, comparable, digest_pixels, distances, mirrored
from shards.loading.reader import DamagedSampleError, Reader
from shards.loading.subset import Subset
from shards.progress import progress

NEAR = 0.2
"""The share of all signs that may differ. Why this one, and why 8: benchmarks/results/dups.md."""

_LOWEST = 8
_SURELY = 0.05  # encodings of the same pixels never differ by more
_CHUNK = 1 << 16
_QUICK_SORT, _QUICK_READ = 200_000, 500
_TASKS_A_PROCESS = 8


def compare(splits: Sequence[Split], near: float = NEAR, mirror: bool = True, processes: int | None = None) -> Found:
    """All that is the same; hashes may differ in a share of `near`; `mirror`: mirrored copies are the same too."""
    index = _Index.of(splits)
    copies = _equal(index.file)
    is_first = _there(index.file)
    for copy in copies:
        is_first[copy[1:]] = False
    links = _flat_pairs(index, is_first) + _near_pairs(splits, index, np.flatnonzero(is_first), near, mirror)
    links = _distinguished(splits, links, processes)
    members = {int(copy[0]): copy.tolist() for copy in copies}
    links_of: dict[int, list[Link]] = {}
    for a, b, kind, distance in links:
        for one, other in ((a, b), (b, a)):
            members.setdefault(one, [one])
            links_of.setdefault(one, []).append(Link(other, kind, distance))
    return Found(tuple(splits), dict(sorted(members.items())), links_of)


@dataclass(frozen=True)
class _Index:
    """Of each sample of all splits, [n]: digests of file and pixels, whether its hash can be compared, the 64 lowest
    signs of the hash and of its mirror image's.
    """

    file: NDArray[np.uint64]
    pixels: NDArray[np.uint64]
    comparable: NDArray[np.bool_]
    word: NDArray[np.uint64]
    turned: NDArray[np.uint64]

    @classmethod
    def of(cls, splits: Sequence[Split]) -> "_Index":
        """Reads all hashes once."""
        parts = []
        for split in splits:
            for start in range(0, len(split.hashes.rows), _CHUNK):
                rows = np.array(split.hashes.rows[start : start + _CHUNK])
                words = rows["signs"][:, 0].copy(), mirrored(rows)["signs"][:, 0].copy()
                parts.append((rows["file"].copy(), rows["pixels"].copy(), comparable(rows), *words))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _there(digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return digests[:, 0] != 0


def _equal(digests: NDArray[np.uint64]) -> list[Ints]:
    """The places of each digest that occurs more than once, ascending; digests uint64 [n, 2], 0 is none."""
    there = np.flatnonzero(_there(digests))
    order = there[np.lexsort((digests[there, 0], digests[there, 1]))]
    changes = np.flatnonzero((digests[order[1:]] != digests[order[:-1]]).any(axis=1)) + 1
    bounds = np.concatenate([[0], changes, [len(order)]])
    several = np.flatnonzero(np.diff(bounds) > 1)
    return [order[bounds[n] : bounds[n + 1]] for n in several]


def _flat_pairs(index: _Index, is_first: NDArray[np.bool_]) -> list[Pair]:
    """Pictures too flat or too small for a hash to tell anything, if their pixels are the same."""
    equal = _equal(index.pixels * is_first[:, None])
    return [Pair(int(group[0]), int(other), "pixels", 0.0) for group in equal for other in group[1:]]


def _near_pairs(splits: Sequence[Split], index: _Index, firsts: Ints, near: float, mirror: bool) -> list[Pair]:
    ids = firsts[index.comparable[firsts]]
    words = np.concatenate([index.word[ids], index.turned[ids]]) if mirror else index.word[ids]

    def sorted_out(a: Ints, b: Ints) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Samples of places in `words`, and whether one of them is mirrored."""
        return ids[a % len(ids)], ids[b % len(ids)], (a >= len(ids)) | (b >= len(ids))

    def judge(a: Ints, b: Ints) -> NDArray[np.bool_]:
        low, high = np.minimum(a, b), np.maximum(a, b)  # each mirrored pair comes twice, the other way round too
        fine = (low < len(ids)) & (low < high % len(ids)) if mirror else np.ones(len(a), bool)
        fine[fine] = _distances(splits, *sorted_out(low[fine], high[fine])) <= near
        return fine

    sorts = num_sorts(len(words), _LOWEST)
    slow = len(words) > _QUICK_SORT
    with progress("compare", sorts, "sorts") if slow else nullcontext(lambda _: None) as advance:
        found = find_near(words, _LOWEST, judge, advance)
    a, b, turned = sorted_out(found.a, found.b)
    pairs = _as_pairs(a, b, turned, _distances(splits, a, b, turned))
    crowded = set(ids[np.flatnonzero(found.crowded) % len(ids)].tolist())
    return pairs + _crowded_pairs(splits, pairs, crowded)


def _as_pairs(a: Ints, b: Ints, turned: NDArray[np.bool_], distance: NDArray[np.float32]) -> list[Pair]:
    """One pair of each two samples: the upright one, if they are near both ways."""
    best: dict[tuple[int, int], Pair] = {}
    for one, other, is_turned, far in zip(a.tolist(), b.tolist(), turned.tolist(), distance.tolist(), strict=True):
        if (one, other) not in best or not is_turned:
            best[one, other] = Pair(one, other, "mirrored" if is_turned else "near", far)
    return list(best.values())


def _crowded_pairs(splits: Sequence[Split], pairs: Sequence[Pair], crowded: set[int]) -> list[Pair]:
    """Where not all pairs are known: each of the group with the first of it in each split."""
    if not crowded:
        return []
    known = {(pair.a, pair.b) for pair in pairs}
    starts, new = [split.first for split in splits], []
    for group in connected([pair[:2] for pair in pairs]):
        if crowded.isdisjoint(group):
            continue
        places = np.searchsorted(starts, group, side="right")
        leaders = [group[i] for i in np.unique(places, return_index=True)[1].tolist()]
        new += [(min(one, leader), max(one, leader)) for one in group for leader in leaders if one != leader]
    new = sorted(set(new) - known)
    a, b = (np.array([pair[side] for pair in new], np.int64) for side in (0, 1))
    upright = np.zeros(len(new), bool)
    straight, turned = _distances(splits, a, b, upright), _distances(splits, a, b, ~upright)
    return _as_pairs(a, b, turned < straight, np.minimum(straight, turned))


def _distances(splits: Sequence[Split], a: Ints, b: Ints, turned: NDArray[np.bool_]) -> NDArray[np.float32]:
    """How far apart the hashes of samples are, b's mirrored where `turned`; float32 [n]."""
    found = [np.zeros(0, np.float32)]
    for start in range(0, len(a), _CHUNK):
        part = slice(start, start + _CHUNK)
        ours, theirs = _rows(splits, a[part]), _rows(splits, b[part])
        theirs[turned[part]] = mirrored(theirs[turned[part]])
        found.append(distances(ours, theirs))
    return np.concatenate(found)


def _rows(splits: Sequence[Split], samples: Ints) -> np.ndarray:
    """The hashes of samples, HASH [n]."""
    rows = np.empty(len(samples), HASH)
    places = np.searchsorted([split.first for split in splits], samples, side="right") - 1
    for place in np.unique(places):
        here = places == place
        rows[here] = splits[place].hashes.rows[samples[here] - splits[place].first]
    return rows


def _distinguished(splits: Sequence[Split], pairs: list[Pair], processes: int | None) -> list[Pair]:
    """The pairs, with those of equal pixels called so."""
    close = [pair for pair in pairs if pair.kind == "near" and pair.distance <= _SURELY]
    samples = sorted({side for pair in close for side in pair[:2]})
    processes = processes or pool.worthwhile(len(samples))
    count = max(1, min(len(samples), processes * _TASKS_A_PROCESS))
    tasks = [samples[n * len(samples) // count : (n + 1) * len(samples) // count] for n in range(count)]
    work = partial(_pixel_digests, [split.subset for split in splits], [split.first for split in splits])
    digests: dict[int, bytes] = {}
    slow = len(samples) > _QUICK_READ
    with progress("compare pixels", len(samples), "samples") if slow else nullcontext(lambda _: None) as advance:
        for part in pool.run(work, tasks, processes, advance):
            digests |= part
    equal = {pair for pair in close if digests.get(pair.a, b"a") == digests.get(pair.b, b"b")}
    return [pair._replace(kind="pixels") if pair in equal else pair for pair in pairs]


def _pixel_digests(
    subsets: Sequence[Subset], firsts: Sequence[int], samples: Sequence[int], advance: Callable[[int], None]
) -> dict[int, bytes]:
    """The digest of what each sample shows; those that cannot be read any more have none."""
    reader, found = Reader(subsets), {}
    for sample in samples:
        place = int(np.searchsorted(firsts, sample, side="right")) - 1
        try:
            image = reader.read(place, *reader.locate(place, sample - firsts[place])).image
            found[sample] = digest_pixels(image).tobytes()
        except (DamagedSampleError, DecodeError):
            pass
        advance(1)
    return found
