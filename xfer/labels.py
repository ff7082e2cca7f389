"""A loss over sources that name different classes, which never teaches what a source does not know.

All targets are numbered alike, by `shards.loading.open.Splits.classes`. A source annotates its own classes C_s; a
sample of source s says nothing about the others, so they get no gradient from it (partial-label softmax: Cour et al.,
Learning from Partial Labels, JMLR 2011, sec. 3).
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from shards.loading.batch import Batch
from shards.loading.subset import Subset


def annotated(subsets: Sequence[Subset], num_classes: int) -> Tensor:
    """[S, K] bool: which of the K classes each subset annotates, by the numbering that its targets have."""
    masks = torch.zeros(len(subsets), num_classes, dtype=torch.bool)
    for row, subset in zip(masks, subsets, strict=True):
        row[torch.from_numpy(subset.renumber[subset.renumber >= 0])] = True
    return masks


def masked_cross_entropy(logits: Tensor, targets: Tensor, masks: Tensor, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of each sample inside the classes its source annotates.

    logits [B, K] float; targets [B] int64, unified; masks [B, K] bool. Returns [B] float. The gradient on classes
    outside the mask is exactly zero. `smoothing` spreads that much of the target evenly over the annotated classes.
    """
    log_p = logits.float().masked_fill(~masks, -torch.inf).log_softmax(1)
    loss = -log_p.gather(1, targets[:, None]).squeeze(1)
    if smoothing:
        uniform = -log_p.masked_fill(~masks, 0).sum(1) / masks.sum(1)
        loss = (1 - smoothing) * loss + smoothing * uniform
    return loss


class Teacher(Protocol):
    """What else the answers are compared with."""

    share: float
    """Of the loss."""

    def __call__(self, logits: Tensor, images: Tensor) -> Tensor:
        """logits [B, K], images uint8 [B, 3, S, S] -> loss [B]."""
        ...


class Objective:
    """The training loss: the masked cross-entropy of a batch, added up over its samples. Of a mixed sample both parts
    count by their shares, each inside the classes of its own source.
    """

    def __init__(self, masks: Tensor, sources: Sequence[str], smoothing: float = 0.0, teacher: Teacher | None = None):
        """masks [S, K] bool: the classes that each of the `sources` annotates, on the device of the logits."""
        self.masks, self.sources, self.smoothing, self.teacher = masks, tuple(sources), smoothing, teacher

    def __call__(self, logits: Tensor, batch: Batch) -> Tensor:
        """logits [B, K]. Returns the sum over valid samples that have a class."""
        loss = self._each(logits, batch.targets, batch.sources)
        if batch.own_share is not None:
            assert batch.other_targets is not None
            assert batch.other_sources is not None
            loss = torch.lerp(self._each(logits, batch.other_targets, batch.other_sources), loss, batch.own_share)
        if self.teacher:
            loss = torch.lerp(loss, self.teacher(logits, batch.images), self.teacher.share)
        return torch.where(batch.valid & (batch.targets >= 0), loss, 0).sum()

    def _each(self, logits: Tensor, targets: Tensor, sources: Tensor) -> Tensor:
        return masked_cross_entropy(logits, targets.clamp_min(0), self.masks[sources], self.smoothing)
