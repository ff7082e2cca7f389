"""One label space over sources that name different classes, and a loss that never teaches what a source does not know.

Classes are joined by exact name only. A source annotates its own classes C_s; a sample of source s says nothing about
the others, so they get no gradient from it (partial-label softmax: Cour et al., Learning from Partial Labels, JMLR
2011, sec. 3).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelSpace:
    """`classes`: the K unified names, sorted. `sources`: the class names of each source, in that source's own order."""

    classes: tuple[str, ...]
    sources: Mapping[str, tuple[str, ...]]

    @classmethod
    def union(cls, sources: Mapping[str, Sequence[str]], trained: Sequence[str] = ()) -> "LabelSpace":
        """The space of all class names of `sources`; of a model that is `trained`, its own names in its own order."""
        names = trained or sorted({name for classes in sources.values() for name in classes})
        return cls(tuple(names), {source: tuple(classes) for source, classes in sources.items()})

    def table(self, sources: Sequence[str], extra: Mapping[str, Sequence[str]] | None = None) -> Tensor:
        """[S, C] int64: source index and its own class index -> unified class; -1 where the space lacks the class.

        `extra` adds the classes of sources the space was not made from (a test source).
        """
        known = {**self.sources, **(extra or {})}
        index = {name: k for k, name in enumerate(self.classes)}
        table = torch.full((len(sources), max(len(known[s]) for s in sources)), -1)
        for row, source in enumerate(sources):
            for column, name in enumerate(known[source]):
                table[row, column] = index.get(name, -1)
        return table

    def masks(self, sources: Sequence[str]) -> Tensor:
        """[S, K] bool: which unified classes each source annotates."""
        table = self.table(sources)
        masks = torch.zeros(len(sources), len(self.classes), dtype=torch.bool)
        for row, mapped in enumerate(table):
            masks[row, mapped[mapped >= 0]] = True
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


def unify(table: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """Unified targets, int64 [B], of source-local ones: -1 where a sample has no class, or one the space lacks.

    table [S, C] int64 as `LabelSpace.table` makes it; sources, targets [B] int64, a target of -1 for no class.
    """
    return torch.where(targets >= 0, table[sources, targets.clamp_min(0)], -1)


class Objective:
    """The training loss: maps source-local targets to the unified space and adds up the masked cross-entropy of a
    batch.
    """

    def __init__(self, labels: LabelSpace, sources: Sequence[str], device: torch.device, smoothing: float = 0.0):
        self.table, self.masks = labels.table(sources).to(device), labels.masks(sources).to(device)
        self.sources, self.smoothing = tuple(sources), smoothing

    def __call__(self, logits: Tensor, targets: Tensor, sources: Tensor, valid: Tensor) -> Tensor:
        """logits [B, K]; targets, sources [B] int64, source-local; valid [B] bool. Returns the sum over valid
        samples.
        """
        unified = unify(self.table, sources, targets)
        valid = valid & (unified >= 0)
        loss = masked_cross_entropy(logits, unified.clamp_min(0), self.masks[sources], self.smoothing)
        return torch.where(valid, loss, 0).sum()
