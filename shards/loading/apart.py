"""Batches of samples that are set apart: by number, so that any number of ranks goes on at any of them.

Batch k is of source k mod S, the S sources taking turns, so each counts alike whatever its size. Within a source the
samples come in the ranking of few.py, round and round: every beginning of it is a fair mixture of the classes. Nothing
is drawn: images look as in an evaluation. A damaged sample is named on stderr once a process, and not valid.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count

import numpy as np

from shards.config import DataConfig
from shards.loading.batch import Batch, Slot
from shards.loading.dataset import BatchLoader
from shards.loading.evaluate import samples_without_chance
from shards.loading.few import ranking
from shards.loading.request import Request
from shards.loading.subset import Subset


def apart_batches(
    subsets: Sequence[Subset], config: DataConfig, slot: Slot, start: int = 0, end: int | None = None
) -> Iterator[Batch]:
    """This rank's shares of the batches `start` to `end` (None: without end), `config.batch_size` samples each over all
    ranks. A share has a sample at least if the batch has as many as there are ranks.
    """
    samples = samples_without_chance(subsets, config.image_size, config.resize)
    requests = _requests(subsets, config.batch_size, slot, start, end)
    known: set[str] = set()
    with closing(
        BatchLoader(samples, requests, min(1, config.workers), -(-config.batch_size // slot.world_size))
    ) as made:
        for builder in made:
            for one in builder.damaged:
                if one.key not in known:
                    where = f"{subsets[one.source].name}: {one.key} of {one.shard}"
                    print(f"{where} passed over: {one.reason}", file=sys.stderr)
                known.add(one.key)
            yield builder.batch()


def num_batches(subsets: Sequence[Subset], batch_size: int) -> int:
    """So many that each sample comes once or more."""
    return len(subsets) * max(-(-subset.num_samples // batch_size) for subset in subsets)


def _requests(subsets: Sequence[Subset], batch_size: int, slot: Slot, start: int, end: int | None) -> Iterator[Request]:
    ranked = [ranking(subset) for subset in subsets]
    firsts, world = np.cumsum([0, *(len(one) for one in ranked)]), slot.world_size
    places = np.arange(batch_size * slot.rank // world, batch_size * (slot.rank + 1) // world)
    for number in count(start) if end is None else range(start, end):
        turn, source = divmod(number, len(subsets))
        chosen = ranked[source][(turn * batch_size + places) % len(ranked[source])]
        at = np.array([subsets[source].locate(i) for i in chosen.tolist()], np.int64).reshape(-1, 2)
        yield Request(np.full(len(chosen), source), at[:, 0], at[:, 1], firsts[source] + chosen)
