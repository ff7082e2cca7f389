"""MixUp and CutMix: an image and its neighbour in the global batch become one, and so do their losses.

The neighbour is the sample that comes next in the batch in the order of lanes (torchvision's transforms of these names
roll a batch by one, too), so a rank needs one sample more than its share. What chance decides depends on the seed and
the sample's position alone. Both together make a sample look the same on any number of ranks, and after a resume.

Loader processes mix what they have decoded, in place; what the GPU decodes is mixed there. Cost: one more sample to
decode a batch, and two passes over the pixels.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from shards.format.hashing import key
from shards.loading.batch import Batch

_SALT = 5


@dataclass(frozen=True)
class Mix:
    """mixup, cutmix: parameter a of the Beta(a, a) that an image's share is drawn from (Zhang et al., mixup: Beyond
    Empirical Risk Minimization, ICLR 2018; Yun et al., CutMix, ICCV 2019); None: not this way. With both, each is drawn
    for half of the samples.
    """

    seed: int
    mixup: float | None = None
    cutmix: float | None = None

    def __call__(self, images: torch.Tensor, targets: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Mixes each image but the last with the one after it, in place, unless one of the two has no class. Returns
        how much of each is its own, float32 [B - 1].

        images uint8 [B, 3, S, S]; targets, positions int64 [B], a target of -1 for no class.
        """
        size, shares = images.shape[-1], np.ones(len(positions) - 1, np.float32)
        for at in np.flatnonzero((targets[:-1] >= 0) & (targets[1:] >= 0)).tolist():
            chance = np.random.Generator(np.random.Philox(key(self.seed, _SALT, int(positions[at]))))
            by_mixup = self.cutmix is None or (self.mixup is not None and chance.random() < 0.5)
            alpha = self.mixup if by_mixup else self.cutmix
            assert alpha is not None
            share = chance.beta(alpha, alpha)
            image, other = images[at], images[at + 1]  # the other one has not been mixed yet
            if by_mixup:
                image.copy_(_blended(image, other, share))
            else:
                rows, columns = _box(size, 1 - share, *chance.random(2))
                image[:, rows, columns] = other[:, rows, columns]
                share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / size**2
            shares[at] = share
        return shares


def with_neighbours(batch: Batch, shares: np.ndarray) -> Batch:
    """All but the last of a batch that was mixed, with `own_share`, `other_targets` and `other_sources`."""
    own_share = torch.from_numpy(shares).to(batch.targets.device)
    mixed = own_share < 1
    kept = {name: value[:-1] for name, value in vars(batch).items() if value is not None}
    return replace(
        batch,
        **kept,
        own_share=own_share,
        other_targets=torch.where(mixed, batch.targets[1:], batch.targets[:-1]),
        other_sources=torch.where(mixed, batch.sources[1:], batch.sources[:-1]),
    )


def _blended(image: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    return torch.lerp(other.float(), image.float(), share).round_().to(torch.uint8)


def _box(size: int, area: float, x: float, y: float) -> tuple[slice, slice]:
    """Rows and columns of a square of this share of the area about a point, cut at the image's edge."""
    half = size * area**0.5 / 2
    rows, columns = (
        slice(round(max(0, centre * size - half)), round(min(size, centre * size + half))) for centre in (y, x)
    )
    return rows, columns
