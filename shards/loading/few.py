"""A few samples of some subsets, to calibrate, score or show: the same ones in whatever order a data set is stored.

Samples are ranked by the hash of their key, within a source by turns of its classes and over sources by turns of the
sources, so every beginning of the ranking is a fair mixture: no class or source gets more than one sample beyond its
share, as far as it has samples. Sound on a machine without a GPU: images are decoded here, whatever `data.decode` says,
and never augmented. Of a remote source every shard that holds a chosen sample is fetched: the price of a fair choice.
Cost: a sort of the index, some seconds for 10^7 samples.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from shards.config import DataConfig
from shards.format.hashing import Ints, mix_array
from shards.loading.batch import Batch
from shards.loading.damage import DamagedSample, DamageLog, budget
from shards.loading.dataset import BatchLoader, Samples
from shards.loading.evaluate import at_once, samples_without_chance
from shards.loading.reader import Reader
from shards.loading.request import Request
from shards.loading.state import shares
from shards.loading.subset import Subset
from shards.loading.transforms import Pixels

_SALT = np.uint64(0xD6E8FEB86659FD93)

Parts = Literal["equal", "proportional"]


def few(
    subsets: Sequence[Subset],
    config: DataConfig,
    count: int,
    sources: Parts = "equal",
    classes: Parts = "proportional",
    batch_size: int = 64,
    passed_over: Callable[[str], None] | None = None,
    skip: int = 0,
    originals: bool = False,
    decoded: bool = True,
) -> Iterator[Batch]:
    """`count` samples, or all if there are fewer, as batches of about equal size, all of them valid; of large images
    fewer than `batch_size` (`at_once`).

    `sources`: equal parts, or in proportion to their shares of the training blend; `classes`: the same within each
    source. Positions count the samples of all subsets one after the other. A damaged sample is passed over and named to
    `passed_over` (None: on stderr), and the next of its source taken. `skip`: how many are left out at the beginning of
    each source's ranking. `originals`: whether batches have them. `decoded`: whether images are; if not, they are one
    pixel each, which says nothing, and a sample costs its read alone. Raises DamagedDataError if more are damaged than
    `config` accepts.
    """
    subsets, report = tuple(subsets), passed_over or partial(print, file=sys.stderr)
    ranked = [ranking(subset, classes)[skip:] for subset in subsets]
    order = turns([len(one) for one in ranked], subsets, config, sources)[:count]
    taken = [0] * len(subsets)
    log = DamageLog(subsets, {} if config.strict else budget(subsets, config.max_replaced))
    if decoded:
        samples = samples_without_chance(subsets, config.image_size, config.resize, originals)
        batch_size = at_once(batch_size, config.image_size)
    else:
        samples = Samples(Reader(subsets), _unseen, 1, seed=None)
    while len(order):
        places = []
        for source in order.tolist():
            if taken[source] < len(ranked[source]):
                places.append((source, int(ranked[source][taken[source]])))
                taken[source] += 1
        lost: list[int] = []
        for batch, damaged in _read(samples, places, batch_size):
            sound = _select(batch, np.flatnonzero(batch.valid.numpy()).tolist())
            lost += batch.sources[~batch.valid].tolist()
            log.add(damaged)
            for one in damaged:
                report(f"{subsets[one.source].name}: {one.key} of {one.shard} passed over: {one.reason}")
            if len(sound):
                yield sound
        order = np.array(lost, np.int64)


def _unseen(
    data: bytes, *, drawn: Sequence[float], boxes: np.ndarray | None, mask: np.ndarray | None, out: torch.Tensor
) -> Pixels:
    return Pixels(out.zero_())


def ranking(subset: Subset, classes: Parts = "proportional") -> Ints:
    """All samples of a subset, its classes taking turns; int64 [num_samples]."""
    hashes, labels = mix_array(subset.key_hashes() ^ _SALT), subset.labels()
    by_class = np.lexsort((hashes, labels))
    _, firsts, sizes = np.unique(labels[by_class], return_index=True, return_counts=True)
    turn = np.arange(len(by_class)) - np.repeat(firsts, sizes) + 0.5
    if classes == "proportional":
        turn /= np.repeat(sizes, sizes)
    return by_class[np.lexsort((hashes[by_class], turn))]


def turns(sizes: Sequence[int], subsets: Sequence[Subset], config: DataConfig, sources: Parts = "equal") -> Ints:
    """Sources in the order in which they give their samples, each as often as it has any, `sizes`; int64 [their sum,
    less those of sources without a share].
    """
    weights = shares(subsets, config) if sources == "proportional" else [1.0] * len(subsets)
    times = [(np.arange(size) + 0.5) / weight for size, weight in zip(sizes, weights, strict=True) if weight > 0]
    given = [np.full(size, source) for source, (size, w) in enumerate(zip(sizes, weights, strict=True)) if w > 0]
    return np.concatenate(given)[np.argsort(np.concatenate(times), kind="stable")]


def _read(
    samples: Samples, places: Sequence[tuple[int, int]], batch_size: int
) -> Iterator[tuple[Batch, list[DamagedSample]]]:
    """Batches of about equal size, damaged samples invalid in them."""
    subsets = samples.reader.subsets
    firsts = np.cumsum([0] + [subset.num_samples for subset in subsets])
    requests = []
    for part in np.array_split(np.array(places, np.int64).reshape(-1, 2), max(1, -(-len(places) // batch_size))):
        at = np.array([subsets[source].locate(i) for source, i in part.tolist()], np.int64).reshape(-1, 2)
        requests.append(Request(part[:, 0], at[:, 0], at[:, 1], firsts[part[:, 0]] + part[:, 1]))
    with closing(BatchLoader(samples, [one for one in requests if len(one)], 0, batch_size)) as loader:
        for builder in loader:
            yield builder.batch(), builder.damaged


def _select(batch: Batch, rows: list[int]) -> Batch:
    if len(rows) == len(batch):
        return batch
    parts = {name: value for name, value in vars(batch).items() if value is not None}
    chosen = {n: tuple(v[row] for row in rows) if isinstance(v, tuple) else v[rows] for n, v in parts.items()}
    return replace(batch, **chosen)
