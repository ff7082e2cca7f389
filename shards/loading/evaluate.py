"""Batches for evaluation: exactly one pass, padded under `valid`, with equally many and equally large batches on every
rank.

Samples come in the order they are stored in: nothing about a score depends on a seed, and each shard is read front to
back.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from shards.config import DataConfig
from shards.loading.batch import Batch, Slot
from shards.loading.damage import EVALUATION, DamagedSample, DamageLog, budget
from shards.loading.dataset import BatchLoader, Samples
from shards.loading.frame import Resize
from shards.loading.reader import Reader
from shards.loading.request import Request
from shards.loading.subset import Subset
from shards.loading.transforms import Pixels, whole

MOST_PIXELS = 2**24  # of the images that are together on a rank: 334 of 224 x 224, 4 of 2048 x 2048


def at_once(wanted: int, image_size: int) -> int:
    """How many images of `image_size` pixels a side are seen together where `wanted` would be: one at least."""
    return max(1, min(wanted, MOST_PIXELS // image_size**2))


@dataclass(frozen=True)
class EvalStream:
    """One exact pass over the subsets each time it is iterated.

    Positions count the samples of all subsets one after the other; padding has position -1 and valid False. A damaged
    sample is never replaced: it keeps its position, valid is False, and `damaged` names it. Too many of them raise
    DamagedDataError: a score over what is left would not be the score of this data set.
    """

    subsets: tuple[Subset, ...]
    slot: Slot
    batch_size: int
    image_size: int
    damage: DamageLog
    workers: int = 0
    pin_memory: bool = False
    resize: Resize = "centre"
    originals: bool = False

    @property
    def num_samples(self) -> int:
        """Samples of the whole pass, over all ranks."""
        return sum(subset.num_samples for subset in self.subsets)

    @property
    def damaged(self) -> list[DamagedSample]:
        """Distinct samples that were left out so far; with a `damage_log`, those of all ranks and passes of the run."""
        return self.damage.all()

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The pass from a position on: of all ranks together, so another number of ranks may go on."""
        samples = samples_without_chance(self.subsets, self.image_size, self.resize, self.originals)
        requests = [self._request(start) for start in range(start, self.num_samples, self.batch_size)]
        workers, each = min(self.workers, len(requests)), -(-self.batch_size // self.slot.world_size)
        with closing(BatchLoader(samples, requests, workers, each, self.pin_memory)) as loader:
            for builder in loader:
                self.damage.add(builder.damaged)
                yield builder.batch()

    def _request(self, start: int) -> Request:
        rank, world = self.slot.rank, self.slot.world_size
        each = -(-self.batch_size // world)
        end = min(start + self.batch_size, self.num_samples)
        positions = np.arange(start + (end - start) * rank // world, start + (end - start) * (rank + 1) // world)
        firsts = np.cumsum([0] + [subset.num_samples for subset in self.subsets])
        source = np.searchsorted(firsts, positions, side="right") - 1
        shard, row = np.empty_like(positions), np.empty_like(positions)
        for index in np.unique(source):
            of = source == index
            kept, inside = self.subsets[index].kept_starts, positions[of] - firsts[index]
            shard[of] = np.searchsorted(kept, inside, side="right") - 1
            row[of] = inside - kept[shard[of]]
        return Request(source, shard, row, positions, fill=each - len(positions))


def eval_stream(
    subsets: Sequence[Subset],
    config: DataConfig,
    slot: Slot,
    pin_memory: bool = False,
    damage_log: Path | None = None,
    originals: bool = False,
) -> EvalStream:
    """The evaluation stream over subsets of a configuration. `damage_log`: a folder that all ranks of the run write to,
    so that what they leave out is counted together. `originals`: whether batches have them. A batch of large images has
    fewer than the configuration says (`at_once`).
    """
    allowed = {} if config.strict else budget(subsets, config.max_replaced)
    damage = DamageLog(subsets, allowed, damage_log, slot.rank, EVALUATION)
    size, world = config.image_size, slot.world_size
    batch_size = min(config.batch_size, world * at_once(config.batch_size, size))
    workers, resize = config.workers, config.resize
    return EvalStream(tuple(subsets), slot, batch_size, size, damage, workers, pin_memory, resize, originals)


def samples_without_chance(subsets: Sequence[Subset], size: int, resize: Resize, originals: bool = False) -> Samples:
    """Samples without chance: nothing is drawn, and nothing replaced."""
    transform = partial(_without_chance, size=size, resize=resize)
    return Samples(Reader(subsets), transform, size, seed=None, originals=originals)


def _without_chance(
    data: bytes,
    *,
    drawn: Sequence[float],
    boxes: np.ndarray | None,
    mask: np.ndarray | None,
    out: torch.Tensor,
    size: int,
    resize: Resize,
) -> Pixels:
    return whole(data, size, resize, boxes, mask, out)
