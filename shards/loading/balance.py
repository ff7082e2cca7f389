"""Rare classes more often: the classes of a source as a blend of their own, by where its index says they lie.

A class of n samples gets the share n^(1 - balance) of its source. What the sources themselves give, their shares,
budgets, counts and the numbers of classes, stays as it is. Cost: one pass over the index and 4 bytes a sample, and a
number for each class of each shard; classes go through the shards at paces of their own, so a remote source is fetched
once only if the disk keeps all of it.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from shards.format.hashing import Ints
from shards.loading.subset import Subset
from shards.order.blend import tempered
from shards.order.order import Classes
from shards.settings import ConfigError

_SHARDS = 256  # whose rows are kept sorted


def balanced(subsets: Sequence[Subset], balance: float) -> dict[str, Classes]:
    """The classes of each subset with their weights; none for `balance` 0. Raises ConfigError for samples without."""
    if not balance:
        return {}
    labels = [subset.index()["label"][subset.rows] for subset in subsets]
    faults = [
        f"data.balance: must be 0 with {subset.name}, of whose {len(one):,} samples {(one < 0).sum():,} have no class, "
        f"got {balance:g}"
        for subset, one in zip(subsets, labels, strict=True)
        if (one < 0).any()
    ]
    if faults:
        raise ConfigError(faults)
    return {subset.name: _classes(subset, one, balance) for subset, one in zip(subsets, labels, strict=True)}


def _classes(subset: Subset, labels: np.ndarray, balance: float) -> Classes:
    """labels: the manifest's class of each sample, int32 [num_samples]."""
    found, starts = np.unique(labels), subset.kept_starts
    names = sorted(subset.manifest.classes[label] for label in found)  # in the order of names, whatever the numbering
    numbers = {name: number for number, name in enumerate(names)}
    places = np.zeros(found[-1] + 1, np.int32)
    places[found] = [numbers[subset.manifest.classes[label]] for label in found]
    labels, shards = places[labels], len(starts) - 1
    cells = labels.astype(np.int64) * shards + np.repeat(np.arange(shards), np.diff(starts))
    shapes = np.bincount(cells, minlength=len(names) * shards).reshape(len(names), shards)
    sizes = shapes.sum(1).tolist()
    temperature = 1 / (1 - balance) if balance < 1 else math.inf
    weights = tempered(sizes, temperature, 0.0, [0.0] * len(names))

    @lru_cache(maxsize=_SHARDS)
    def by_class(shard: int) -> Ints:
        return np.argsort(labels[starts[shard] : starts[shard + 1]], kind="stable")

    return Classes(dict(zip(names, weights, strict=True)), shapes, by_class)
