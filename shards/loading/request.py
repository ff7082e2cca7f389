"""What loader processes are asked for and what they answer."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from shards.format.hashing import Ints
from shards.loading.batch import Batch, BatchBuilder
from shards.loading.transforms import Later


@dataclass(frozen=True)
class Request:
    """Samples by source, shard and row of the subset, with their positions; int64 [n] each. `fill`: rows to pad with.

    `damaged`: found before loaders see the request. `buffer`: where the images go; -1: into memory of their own.
    """

    source: Ints
    shard: Ints
    row: Ints
    positions: Ints
    fill: int = 0
    damaged: tuple["DamagedSample", ...] = ()
    buffer: int = -1

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class DamagedSample:
    """A damaged sample that was asked for: source (index into the subsets), shard's file, key and reason."""

    source: int
    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Delivery:
    """A batch and what was lost on the way; `valid` is False where nothing sound was found."""

    batch: Batch
    damaged: tuple[DamagedSample, ...]
    later: Mapping[int, Later]
    """Images that are to be decoded, by their places in the batch."""


@dataclass(frozen=True)
class Answer:
    """What a loader process sends: a delivery in the making. `buffer`: where its images are; -1: in the builder."""

    builder: BatchBuilder
    damaged: tuple[DamagedSample, ...]
    buffer: int = -1

    def __len__(self) -> int:
        return len(self.builder.valid)

    def delivery(self, images: torch.Tensor | None = None) -> Delivery:
        """`images`: what is in the buffer."""
        return Delivery(self.builder.batch(images), self.damaged, self.builder.later)

    def pin_memory(self) -> Delivery:
        """Called by the DataLoader."""
        return Delivery(self.builder.batch().pin_memory(), self.damaged, self.builder.later)
