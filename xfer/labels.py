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
    sets = sets_of(subsets)
    for row, subset in zip(masks, subsets, strict=True):
        numbers = torch.from_numpy(subset.renumber[subset.renumber >= 0])
        if sets is None:
            row[numbers] = True
        else:
            row |= sets[numbers].any(0)
    return masks


def sets_of(subsets: Sequence[Subset]) -> Tensor | None:
    """[K + W, K] bool: the classes that each target of the subsets stands for, W of them a class that is known by its
    parts only; None where each stands for itself. All subsets of a configuration have the same.
    """
    sets = subsets[0].sets if subsets else None
    return None if sets is None else torch.from_numpy(sets)


def as_sets(targets: Tensor, sets: Tensor | None) -> Tensor:
    """targets [n] int64, all of a class -> as they are, or bool [n, K] where some are sets."""
    return targets if sets is None else sets.to(targets.device)[targets]


def is_right(answers: Tensor, targets: Tensor) -> Tensor:
    """answers [n] int64; targets [n] int64 or [n, K] bool -> bool [n]. Of a set any of its classes is right."""
    return answers == targets if targets.ndim == 1 else targets.gather(1, answers[:, None]).squeeze(1)


def masked_cross_entropy(logits: Tensor, targets: Tensor, masks: Tensor, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of each sample inside the classes its source annotates.

    logits [B, K] float; targets [B] int64, unified, or [B, K] bool, sets of classes inside the mask; masks [B, K] bool.
    Returns [B] float. The probability of a set is the sum over its classes, so the loss of one class is the same either
    way. The gradient on classes outside the mask is exactly zero. `smoothing` spreads that much of the target evenly
    over the annotated classes.
    """
    log_p = logits.float().masked_fill(~masks, -torch.inf).log_softmax(1)
    if targets.ndim == 1:
        loss = -log_p.gather(1, targets[:, None]).squeeze(1)
    else:
        loss = -log_p.masked_fill(~targets, -torch.inf).logsumexp(1)
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

    def __init__(
        self,
        masks: Tensor,
        sources: Sequence[str],
        smoothing: float = 0.0,
        teacher: Teacher | None = None,
        sets: Tensor | None = None,
    ):
        """masks [S, K] bool: the classes that each of the `sources` annotates, on the device of the logits; sets: as by
        `sets_of`.
        """
        self.masks, self.sources, self.smoothing, self.teacher = masks, tuple(sources), smoothing, teacher
        self.sets = None if sets is None else sets.to(masks.device)

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
        masks, known = self.masks[sources], targets.clamp_min(0)
        if self.sets is not None:  # of a sample without a class any is right
            known = torch.where((targets >= 0)[:, None], self.sets[known], masks)
        return masked_cross_entropy(logits, known, masks, self.smoothing)
