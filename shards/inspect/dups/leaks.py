"""What it means that samples are the same: leaks from training into tests, labels that contradict, copies by split.

Counts are of samples and not of pairs: "3 of 372 are also trained on" holds whatever the number of copies. Costs a few
microseconds for each sample that has a copy; nothing for the others.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np

from shards.format.hashing import in_share
from shards.inspect.dups.copies import KINDS, Found, Link, Pair

_MANY = 32
"""Of more samples alike than this not all pairs are reported, only those with the first of them."""

Which = Callable[[int], bool]


def leaks(found: Found) -> list[Pair]:
    """For each sample of a split that is not trained on: the most similar one that is, if there is any; surest first.

    In each pair `a` is not trained on, and `b` is.
    """
    return closest(found, lambda sample: not _trains(found, sample), lambda sample: _trains(found, sample))


def cut_leaks(found: Found, validation: float) -> list[Pair]:
    """As `leaks`, for the samples that a recipe's `validation` would cut from the splits that are trained on."""

    def is_cut(sample: int) -> bool:
        return bool(in_share(found.row(sample)["key"][None], 0, validation)[0])

    return closest(
        found,
        lambda sample: _trains(found, sample) and is_cut(sample),
        lambda sample: _trains(found, sample) and not is_cut(sample),
    )


def closest(found: Found, of: Which, among: Which) -> list[Pair]:
    """For each sample that is one `of` those wanted: the one `among` others that it resembles most; surest first."""
    chosen = {one: next((s for s in members if among(s)), None) for one, members in found.members.items()}
    pairs = []
    for one, members in found.members.items():
        best: Pair | None = None
        for link in (Link(one, "exact", 0.0), *found.links.get(one, ())):
            other = chosen[link.other]
            if other is not None and (best is None or _surer(link) < _surer(best)):
                best = Pair(one, other, link.kind, link.distance)
        if best:
            pairs += [best._replace(a=sample) for sample in members if of(sample)]
    return sorted(pairs, key=lambda pair: (*_surer(pair), pair))


def contradictions(found: Found) -> list[Pair]:
    """Pairs whose classes have different names, one for each two samples and names; surest first."""
    firsts = {one: _first_of_each_class(found, members) for one, members in found.members.items()}
    pairs = []
    for one, classes in firsts.items():
        for a, b in combinations(classes.values(), 2):
            pairs.append(Pair(a, b, "exact", 0.0))
        for link in found.links.get(one, ()):
            if one < link.other:
                others = firsts[link.other]
                for (name, a), (other_name, b) in product(classes.items(), others.items()):
                    if name != other_name:
                        pairs.append(Pair(a, b, link.kind, link.distance))
    return sorted(pairs, key=lambda pair: (*_surer(pair), pair))


def counts(found: Found) -> np.ndarray:
    """How many samples of each split (rows) have a copy in each split (columns), int64 [splits, splits].

    On the diagonal: in their own, other than themselves.
    """
    sums = {one: _by_split(found, members) for one, members in found.members.items()}
    total = np.zeros((len(found.splits), len(found.splits)), np.int64)
    for one, own in sums.items():
        has = np.zeros(len(own), bool)
        for link in found.links.get(one, ()):
            has |= sums[link.other] > 0
        total += own[:, None] * (has | (own - np.eye(len(own), dtype=np.int64) > 0))
    return total


def all_pairs(found: Found) -> Iterator[tuple[int, Pair]]:
    """Every pair with the number of its group, a < b; of many alike, those with the first of them."""
    for number, group in enumerate(found.groups, 1):
        for one in group:
            members = found.members[one]
            firsts = members if len(members) <= _MANY else members[:1]
            exact = ((a, b) for n, a in enumerate(firsts) for b in members[n + 1 :])
            yield from ((number, Pair(a, b, "exact", 0.0)) for a, b in exact)
            for link in found.links.get(one, ()):
                others = found.members[link.other]
                if one < link.other:
                    few = len(members) * len(others) <= _MANY**2
                    for a, b in product(members, others) if few else [(one, link.other)]:
                        yield number, Pair(min(a, b), max(a, b), link.kind, link.distance)


def _trains(found: Found, sample: int) -> bool:
    return found.splits[found.place(sample)].trains


def _surer(pair: Pair | Link) -> tuple[int, float]:
    return KINDS.index(pair.kind), pair.distance


def _first_of_each_class(found: Found, members: Sequence[int]) -> dict[str, int]:
    firsts: dict[str, int] = {}
    for sample in members:
        if name := found.class_name(sample):
            firsts.setdefault(name, sample)
    return firsts


def _by_split(found: Found, members: Sequence[int]) -> np.ndarray:
    places = [found.place(sample) for sample in members]
    return np.bincount(places, minlength=len(found.splits))
