"""What changed from one split to another, or from one version of a split to the next.

Samples are matched by the hashes of their keys, classes by their names. The index says which samples are in both, and
which of these have other bytes; those alone are read, on both sides, to say what of them is another: the image, the
label, or what else the sample says. A class index that changed with the list of classes is no change, and neither is
another tar header or another place.

Hashes are compared in slices, so memory is 2 bytes a sample and some 100 for each that differs. 10^7 rows take seconds,
samples that differ the time of reading them.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shards.format.hashing import Ints
from shards.inspect.glance import Damaged, read
from shards.loading.reader import Sample
from shards.loading.subset import Subset
from shards.progress import progress

PARTS = ("image", "boxes", "mask", "side", "other")
"""What a sample holds besides its label: `side` inputs, and `other` members that have no role."""

_SLICE = 1 << 22
_QUIET = 2000


@dataclass(frozen=True)
class Changes:
    """Samples of two splits by their index rows. `a` and `b` pair the rows of changed samples; `label`: whether the
    class has another name; `parts`, bool [n, PARTS]: what else is another; `unread`: whether one of the two cannot be
    read, so that this is not known.
    """

    removed: Ints
    added: Ints
    a: Ints
    b: Ints
    label: NDArray[np.bool_]
    parts: NDArray[np.bool_]
    unread: NDArray[np.bool_]
    num_same: int
    in_order: bool

    @cached_property
    def nothing(self) -> bool:
        """Whether both splits hold the same samples."""
        return not (len(self.removed) or len(self.added) or len(self.a))


def compare(a: Subset, b: Subset) -> Changes:
    """What changed from the samples of `a` to those of `b`. Both must be whole splits."""
    matched = _match(a, b)
    rows_a, rows_b = matched.suspect_a, matched.suspect_b
    label = _other_class(a, b, a.index()[rows_a], b.index()[rows_b])
    ours, theirs = _contents(a, rows_a), _contents(b, rows_b)
    unread = (ours[:, 0] == 0) | (theirs[:, 0] == 0)
    parts = (ours != theirs) & ~unread[:, None]
    changed = label | unread | parts.any(axis=1)
    return Changes(
        np.flatnonzero(~matched.shared_a),
        np.flatnonzero(~matched.shared_b),
        rows_a[changed],
        rows_b[changed],
        label[changed],
        parts[changed],
        unread[changed],
        int(matched.shared_a.sum() - changed.sum()),
        _in_order(a, b, matched),
    )


@dataclass(frozen=True)
class _Matched:
    """Which rows are on both sides, bool [n] each; and rows of one key whose samples differ in bytes or class."""

    shared_a: NDArray[np.bool_]
    shared_b: NDArray[np.bool_]
    suspect_a: Ints
    suspect_b: Ints


def _match(a: Subset, b: Subset) -> _Matched:
    indexes = a.index(), b.index()
    shared = np.zeros(len(indexes[0]), bool), np.zeros(len(indexes[1]), bool)
    suspects: list[tuple[Ints, Ints]] = []
    slices = max(1, -(-max(map(len, indexes)) // _SLICE))
    for number in range(slices):
        rows = [_slice(index, number, slices) for index in indexes]
        keys = [index["key"][chosen] for index, chosen in zip(indexes, rows, strict=True)]
        _, *places = np.intersect1d(keys[0], keys[1], return_indices=True)
        here = [chosen[place] for chosen, place in zip(rows, places, strict=True)]
        for side, chosen in zip(shared, here, strict=True):
            side[chosen] = True
        ours, theirs = (index[chosen] for index, chosen in zip(indexes, here, strict=True))
        other = (ours["crc32"] != theirs["crc32"]) | (ours["length"] != theirs["length"])
        other |= _other_class(a, b, ours, theirs)
        suspects.append((here[0][other], here[1][other]))
    suspect_a, suspect_b = (np.concatenate([pair[side] for pair in suspects]) for side in (0, 1))
    order = np.argsort(suspect_a)
    return _Matched(*shared, suspect_a[order], suspect_b[order])


def _slice(index: np.ndarray, number: int, slices: int) -> Ints:
    """The rows whose key hashes fall into one of `slices` equal ranges."""
    low, high = (((number + n) << 64) // slices for n in (0, 1))
    found = []
    for start in range(0, len(index), _SLICE):
        keys = index["key"][start : start + _SLICE]
        found.append(start + np.flatnonzero((keys >= np.uint64(low)) & (keys <= np.uint64(high - 1))))
    return np.concatenate(found)


def _other_class(a: Subset, b: Subset, rows_a: np.ndarray, rows_b: np.ndarray) -> NDArray[np.bool_]:
    """Whether the names of classes differ, INDEX [n] each; bool [n]."""
    numbers = {name: n for n, name in enumerate(dict.fromkeys([*a.manifest.classes, *b.manifest.classes]))}
    named = []
    for subset, rows in ((a, rows_a), (b, rows_b)):
        of_class = np.array([*(numbers[name] for name in subset.manifest.classes), -1])  # the last: no class
        labels = rows["label"]
        named.append(of_class[np.where((labels >= 0) & (labels < len(of_class)), labels, -1)])
    return named[0] != named[1]


def _in_order(a: Subset, b: Subset, matched: _Matched) -> bool:
    """Whether the samples that are in both come in the same order."""
    rows_a, rows_b = np.flatnonzero(matched.shared_a), np.flatnonzero(matched.shared_b)
    keys_a, keys_b = a.index()["key"], b.index()["key"]
    chunks = (slice(start, start + _SLICE) for start in range(0, len(rows_a), _SLICE))
    return all(np.array_equal(keys_a[rows_a[chunk]], keys_b[rows_b[chunk]]) for chunk in chunks)


def _contents(subset: Subset, rows: Ints) -> NDArray[np.uint64]:
    """A digest of each part of the samples, uint64 [n, PARTS]; all 0 for one that cannot be read."""
    found = np.zeros((len(rows), len(PARTS)), np.uint64)
    order = np.argsort(rows)
    for place, (_, sample) in zip(order.tolist(), reading(subset, rows[order]), strict=True):
        if not isinstance(sample, Damaged):
            found[place] = _digests(subset, sample)
    return found


def reading(subset: Subset, rows: Ints) -> Iterator[tuple[int, Sample | Damaged]]:
    """The samples of ascending rows, with progress if they are many."""
    if len(rows) <= _QUIET:
        yield from read(subset, rows.tolist())
        return
    with progress(f"read {subset.name}/{subset.manifest.split}", len(rows), "samples") as advance:
        for found in read(subset, rows.tolist()):
            yield found
            advance(1)


def _digests(subset: Subset, sample: Sample) -> list[int]:
    roles = subset.manifest.fields
    members = dict(sample.fields)
    members.pop(roles.get("label", ""), None)
    parts = [_digest(sample.image)]
    for role in ("boxes", "mask", "side"):
        extension = roles.get(role, "")
        parts.append(_digest(members.pop(extension)) if extension in members else 0)
    rest = b"".join(name.encode() + _digest(data).to_bytes(8, "little") for name, data in sorted(members.items()))
    return [*parts, _digest(rest)]


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") | 1
