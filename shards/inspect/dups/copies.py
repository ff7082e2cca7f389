"""What is there more than once: samples of several splits, counted through, and which of them are the same.

A pair is two samples that are the same, a group is all that pairs connect. `compare.py` finds them, `leaks.py` says
what they mean.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from shards.format.hashing import Ints
from shards.format.manifest import splits_in
from shards.inspect.dups.scan import Hashes, hashes_of
from shards.loading.open import open_subset
from shards.loading.subset import Subset
from shards.settings import ConfigError, is_url

KINDS = ("exact", "pixels", "near", "mirrored")
"""How two samples can be the same, the surest first."""

_TRAIN = "train"


@dataclass(frozen=True)
class Split:
    """One split of a folder: how it is called here, its samples and their hashes, whether it is trained on, and the
    number of its first sample when those of all splits are counted through.
    """

    name: str
    split: str
    subset: Subset
    hashes: Hashes
    trains: bool
    first: int


class Pair(NamedTuple):
    """Two samples that are the same, by number: how, and how far apart their hashes are."""

    a: int
    b: int
    kind: str
    distance: float


class Link(NamedTuple):
    """A pair as one of the two sees it."""

    other: int
    kind: str
    distance: float


@dataclass(frozen=True)
class Found:
    """What is the same. Samples with the same bytes go by the first of them: `members` has each that has a copy or a
    link, with its copies and itself; `links` those that look the same.
    """

    splits: tuple[Split, ...]
    members: Mapping[int, Sequence[int]]
    links: Mapping[int, Sequence[Link]]

    def place(self, sample: int) -> int:
        """Which of `splits` a sample is in."""
        return int(np.searchsorted(self._firsts, sample, side="right")) - 1

    def row(self, sample: int) -> np.void:
        """A sample's row in the index."""
        place = self.place(sample)
        return self._indexes[place][sample - self.splits[place].first]

    def class_name(self, sample: int) -> str:
        """The name of a sample's class; empty if it has none of its own."""
        label, classes = int(self.row(sample)["label"]), self.splits[self.place(sample)].subset.manifest.classes
        return classes[label] if 0 <= label < len(classes) else ""

    @cached_property
    def groups(self) -> list[list[int]]:
        """What pairs connect, as entries of `members`, ascending."""
        alone = ((one, one) for one in self.members)
        linked = ((one, link.other) for one, links in self.links.items() for link in links)
        return connected([*alone, *linked])

    @cached_property
    def _firsts(self) -> Ints:
        return np.array([split.first for split in self.splits])

    @cached_property
    def _indexes(self) -> list[np.ndarray]:
        return [split.subset.index() for split in self.splits]


def open_splits(
    folders: Sequence[str], test: Sequence[str], names: Sequence[str], processes: int | None = None
) -> list[Split]:
    """The splits called `names`, or all current ones, of folders of shards, with their hashes.

    Trained on are those whose name begins with `train`, but for those of the folders `test`. Raises ConfigError with
    all faults before any sample is looked at.
    """
    held_out = {os.path.abspath(folder) for folder in test}
    once = {os.path.abspath(folder): folder for folder in (*folders, *test)}
    subsets, faults = [], []
    for path, folder in once.items():
        try:
            subsets += [(split, open_subset(folder, split), path not in held_out) for split in _chosen(folder, names)]
        except ConfigError as error:
            faults += error.faults
    faults += [
        f"{subset.folder}: split {split!r} has no samples" for split, subset, _ in subsets if not subset.num_samples
    ]
    if faults or not subsets:
        raise ConfigError(faults or "expected one folder of shards, or several")
    reported = [f"{subset.name}/{split}" for split, subset, _ in subsets]
    splits, first = [], 0
    for name, (split, subset, may_train) in zip(reported, subsets, strict=True):
        name = name if reported.count(name) == 1 else f"{subset.folder}/{split}"
        trains = may_train and split.startswith(_TRAIN)
        splits.append(Split(name, split, subset, hashes_of(subset, processes), trains, first))
        first += subset.num_samples
    return splits


def _chosen(folder: str, names: Sequence[str]) -> list[str]:
    """Which splits of a folder are looked at."""
    if is_url(folder):
        raise ConfigError(f"{folder}: every sample is read; copy or mount it, and give the local folder")
    chosen = [split for split in splits_in(folder) if split in names or (not names and "@" not in split)]
    if not chosen:
        open_subset(folder, names[0] if names else "train")  # raises with what is there instead
    return sorted(chosen, key=lambda split: (not split.startswith(_TRAIN), split))


def connected(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The samples that pairs connect, each group ascending, by their first."""
    leader: dict[int, int] = {}

    def find(one: int) -> int:
        while leader.setdefault(one, one) != one:
            leader[one] = one = leader[leader[one]]
        return one

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        leader[high] = low
    groups: dict[int, list[int]] = {}
    for one in sorted(leader):
        groups.setdefault(find(one), []).append(one)
    return list(groups.values())
