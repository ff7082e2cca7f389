"""What a stream delivers: `Batch`, and to whom: `Slot`.

Legend: B samples of this rank's share, S pixels a side. Images stay uint8 until they are on the device: a quarter of
the bytes to copy. They lie in memory pixel by pixel (`torch.channels_last`), as decoders write and GPUs read them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from shards.transforms import Pixels


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

    images uint8 [B, 3, S, S]; targets int64 [B], class index within the source, -1 where samples have no class;
    sources int64 [B], index into the views; positions int64 [B];
    valid bool [B], False where a batch of an evaluation is only filled up;
    boxes: None, or for each sample float32 [n, 5]: x0, y0, x1, y1 in pixels of the batch's images, class index;
    masks: None, or uint8 [B, S, S], class index or 255; side: for each sample its texts and numbers by name.
    """

    images: torch.Tensor
    targets: torch.Tensor
    sources: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor
    boxes: tuple[torch.Tensor, ...] | None = None
    masks: torch.Tensor | None = None
    side: tuple[Mapping[str, Any], ...] | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        changed = {name: change(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        boxes = self.boxes and tuple(change(one) for one in self.boxes)
        return replace(self, **changed, boxes=boxes)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on a device; returns before the copy is done if the batch is pinned."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from which a GPU copies while it computes."""
        return self._each(lambda tensor: tensor.pin_memory())

    def split(self, parts: int) -> Iterator["Batch"]:
        """Micro-batches in order, their sizes differing by at most one; none is empty."""
        parts = min(parts, max(1, len(self)))
        each, longer = divmod(len(self), parts)
        start = 0
        for number in range(parts):
            end = start + each + (number < longer)
            yield replace(self, **{n: value[start:end] for n, value in vars(self).items() if value is not None})
            start = end


@dataclass
class Draft:
    """A batch that is filled sample by sample; what is never filled is zero and invalid.

    `images`: uint8 [B, 3, S, S] to fill, whatever is in them; None: new memory.
    """

    size: int
    image_size: int
    images: torch.Tensor | None = None
    boxes: dict[int, torch.Tensor] = field(default_factory=dict)
    masks: dict[int, torch.Tensor] = field(default_factory=dict)
    side: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.images is None:
            shape = (self.size, self.image_size, self.image_size, 3)
            self.images = torch.empty(shape, dtype=torch.uint8).permute(0, 3, 1, 2)
        self.targets, self.sources = torch.zeros(2, self.size, dtype=torch.int64)
        self.positions = torch.full((self.size,), -1)
        self.valid = torch.zeros(self.size, dtype=torch.bool)

    def fill(self, at: int, pixels: Pixels, target: int, side: Mapping[str, Any]) -> None:
        """Puts in sample number `at`."""
        assert self.images is not None
        self.images[at], self.targets[at], self.valid[at] = pixels.image, target, True
        if pixels.boxes is not None:
            self.boxes[at] = torch.as_tensor(pixels.boxes)
        if pixels.mask is not None:
            self.masks[at] = torch.as_tensor(pixels.mask)
        if side:
            self.side[at] = side

    def batch(self) -> Batch:
        """The batch; parts that no sample has are None."""
        assert self.images is not None
        if not self.valid.all():
            self.images[~self.valid] = 0
        every = range(self.size)
        none, void = torch.zeros(0, 5), torch.full((self.image_size, self.image_size), 255, dtype=torch.uint8)
        return Batch(
            self.images,
            self.targets,
            self.sources,
            self.positions,
            self.valid,
            tuple(self.boxes.get(at, none) for at in every) if self.boxes else None,
            torch.stack([self.masks.get(at, void) for at in every]) if self.masks else None,
            tuple(self.side.get(at, {}) for at in every) if self.side else None,
        )
