"""What a stream delivers: `Batch`, and to whom: `Slot`.

Legend: B samples of this rank's share, S pixels a side. Images stay uint8 until they are on the device: a quarter of
the bytes to copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True)
class Slot:
    """Which of `world_size` equal ranks this process is."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} of {self.world_size}: expected 0 <= rank < world_size")


@dataclass(frozen=True)
class Batch:
    """A rank's share of one global batch, or of one step of an evaluation.

    images uint8 [B, 3, S, S]; targets int64 [B], class index within the source;
    sources int64 [B], index into the views; positions int64 [B];
    valid bool [B], False where a batch of an evaluation is only filled up.
    """

    images: torch.Tensor
    targets: torch.Tensor
    sources: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def _tensors(self) -> list[torch.Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; returns before the copy is done if the batch is pinned."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self._tensors()))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies while it computes."""
        return Batch(*(tensor.pin_memory() for tensor in self._tensors()))

    def split(self, parts: int) -> Iterator["Batch"]:
        """Micro-batches in order, their sizes differing by at most one; none is empty."""
        parts = min(parts, max(1, len(self)))
        for group in zip(*(tensor.tensor_split(parts) for tensor in self._tensors()), strict=True):
            yield Batch(*group)
