"""What a stream delivers: `Batch`, and to whom: `Slot`.

Legend: B samples of this rank's share, S pixels a side. Images stay uint8 until they are on the device: a quarter of
the bytes to copy. They lie in memory pixel by pixel (`torch.channels_last`), as decoders write and GPUs read them.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from shards.format.annotations import Annotations
from shards.format.hashing import fold
from shards.loading.damage import DamagedSample
from shards.loading.transforms import Later, Pixels


@dataclass(frozen=True)
class Slot:
    """Which of `world_size` equal ranks this process is."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank {self.rank} of {self.world_size}: expected 0 <= rank < world_size")


@dataclass(frozen=True)
class Original:
    """An upright image's size, and what is said of it in its own pixels; 0 x 0 and None where a sample is not valid.

    boxes: None, or float32 [n, 6] as in a batch, none of them moved or dropped; mask: None, or uint8 [height, width].
    """

    height: int = 0
    width: int = 0
    boxes: torch.Tensor | None = None
    mask: torch.Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """A rank's share of one global batch, or of one step of an evaluation.

    images uint8 [B, 3, S, S]; targets int64 [B], class number by the numbering of the subsets (`Subset.numbering`), -1
    where samples have no class;
    sources int64 [B], index into the subsets; positions int64 [B];
    valid bool [B], False where a batch of an evaluation is only filled up;
    boxes: None, or for each sample float32 [n, 6]: x0, y0, x1, y1 in pixels of the batch's images, class index, and 1
    for an object to be ignored (a crowd, a difficult one), else 0;
    masks: None, or uint8 [B, S, S], class index or 255; side: for each sample its texts and numbers by name.
    originals: None, or of each sample what an evaluation at the image's own pixels needs; they stay on the CPU.
    own_share: None, or float32 [B], how much of an image is its own where others were mixed in (`shards.loading.mix`);
    other_targets, other_sources: None, or int64 [B], of what was mixed in.
    fingerprints: None, or int64 [B], 64 bits that stand for the source, key and stored bytes of the sample that was
    read, and for its position; 0 where none was. They add up, modulo 2^64, to what stands for a global batch.
    """

    images: torch.Tensor
    targets: torch.Tensor
    sources: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor
    boxes: tuple[torch.Tensor, ...] | None = None
    masks: torch.Tensor | None = None
    side: tuple[Mapping[str, Any], ...] | None = None
    own_share: torch.Tensor | None = None
    other_targets: torch.Tensor | None = None
    other_sources: torch.Tensor | None = None
    originals: tuple[Original, ...] | None = None
    fingerprints: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """images, targets: `for images, targets in loader`."""
        return iter((self.images, self.targets))

    def __getitem__(self, name: str) -> Any:
        """A part by its name. Raises KeyError."""
        if name not in vars(self):
            raise KeyError(f"{name!r}: a batch has {', '.join(vars(self))}")
        return vars(self)[name]

    def __repr__(self) -> str:
        size = self.images.shape[-1]
        extra = "".join(f", {name}" for name in ("boxes", "masks", "side", "originals") if self[name] is not None)
        return (
            f"Batch({int(self.valid.sum())} of {len(self)} valid, images {size} x {size}{extra}, {self.images.device})"
        )

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
        """Exactly `parts` micro-batches in order, their sizes differing by at most one. The last are empty if there are
        more parts than samples: ranks whose shares differ still make the same number of steps.
        """
        each, longer = divmod(len(self), parts)
        start = 0
        for number in range(parts):
            end = start + each + (number < longer)
            yield replace(self, **{n: value[start:end] for n, value in vars(self).items() if value is not None})
            start = end


class BatchBuilder:
    """A batch that is filled sample by sample; what is never filled is zero and invalid.

    A loader process fills it and sends it to the process that trains, with what was lost on the way (`damaged`) and the
    images that are to be decoded there, by their places in the batch (`later`). What is small is NumPy's and goes
    through a pipe in one piece, where each tensor would be a file of its own in shared memory.
    """

    def __init__(
        self,
        size: int,
        image_size: int,
        images: torch.Tensor | None = None,
        buffer: int = -1,
        originals: bool = False,
    ):
        """`images`: uint8 [B, 3, S, S] to fill, whatever is in them; None: new memory. `buffer`: the part of the shared
        memory that they are; -1: they are in no such part. `originals`: whether the batch has them.
        """
        if images is None:
            images = torch.empty((size, image_size, image_size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        self.images: torch.Tensor | None = images
        self.buffer = buffer
        self.damaged: list[DamagedSample] = []
        self.reading_s = self.decoding_s = 0.0  # what it took to make
        self.later: dict[int, Later] = {}
        self.shares: np.ndarray | None = None  # of the images that were mixed here (mix.py)
        self._image_size = image_size
        self.targets, self.sources = np.zeros((2, size), np.int64)
        self.positions = np.full(size, -1, np.int64)
        self.fingerprints = np.zeros(size, np.uint64)
        self.valid = np.zeros(size, np.bool_)
        self.boxes: dict[int, np.ndarray] = {}
        self.masks: dict[int, np.ndarray] = {}
        self.side: dict[int, Mapping[str, Any]] = {}
        self.originals: dict[int, tuple[tuple[int, int], Annotations]] | None = {} if originals else None
        self._pinned: Batch | None = None

    def __len__(self) -> int:
        return len(self.valid)

    def image(self, at: int) -> torch.Tensor:
        """Where the image of sample number `at` belongs, uint8 [3, S, S]."""
        assert self.images is not None
        return self.images[at]

    def fill(self, at: int, pixels: Pixels, target: int, said: Annotations, fingerprint: int) -> None:
        """Puts in what belongs to sample number `at`, whose image is in its place or made later. `said`: of the image
        before it became the square.
        """
        self.targets[at], self.valid[at], self.fingerprints[at] = target, True, fingerprint
        if pixels.later is not None:
            self.later[at] = pixels.later
        if pixels.boxes is not None:
            self.boxes[at] = pixels.boxes
        if pixels.mask is not None:
            self.masks[at] = pixels.mask
        if said.side:
            self.side[at] = said.side
        if self.originals is not None:
            self.originals[at] = pixels.original, replace(said, side={})

    def sign(self, names: np.ndarray) -> None:
        """Puts source and position into the fingerprints of what was filled. names: uint64 [sources]."""
        whole = fold(names[self.sources], self.positions, self.fingerprints)
        self.fingerprints = np.where(self.valid, whole, np.uint64(0))

    def finish(self) -> "BatchBuilder":
        """Nothing more is filled. Images in a buffer are not sent: whoever gets the builder has their memory."""
        assert self.images is not None
        if not self.valid.all():
            self.images[torch.from_numpy(~self.valid)] = 0
        if self.buffer >= 0:
            self.images = None
        return self

    def pin_memory(self) -> "BatchBuilder":
        """Called by the DataLoader: the batch will be in page-locked memory."""
        self._pinned = self.batch().pin_memory()
        return self

    def batch(self) -> Batch:
        """The batch; parts that no sample has are None."""
        if self._pinned is not None:
            return self._pinned
        assert self.images is not None
        every = range(len(self))
        none, void = np.zeros((0, 6), np.float32), np.full((self._image_size, self._image_size), 255, np.uint8)
        return Batch(
            self.images,
            torch.from_numpy(self.targets),
            torch.from_numpy(self.sources),
            torch.from_numpy(self.positions),
            torch.from_numpy(self.valid),
            tuple(torch.from_numpy(self.boxes.get(at, none)) for at in every) if self.boxes else None,
            torch.from_numpy(np.stack([self.masks.get(at, void) for at in every])) if self.masks else None,
            tuple(self.side.get(at, {}) for at in every) if self.side else None,
            originals=None if self.originals is None else tuple(map(self._original, every)),
            fingerprints=torch.from_numpy(self.fingerprints.view(np.int64)),
        )

    def _original(self, at: int) -> Original:
        assert self.originals is not None
        if at not in self.originals:
            return Original()
        (width, height), said = self.originals[at]
        boxes, mask = (None if one is None else torch.from_numpy(one) for one in (said.boxes, said.mask))
        return Original(height, width, boxes, mask)
