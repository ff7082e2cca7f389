"""Accuracy by source from running sums, and the interval that says how much it can be trusted.

Each rank adds up its own batches; one all-reduce of [S, K, 3] numbers at the end gives every rank the exact totals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """Accuracy of one source: `correct` of `count`; `per_class` is accuracy by class name, for classes that occur."""

    correct: int
    count: int
    loss: float
    per_class: Mapping[str, float] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        return self.correct / self.count if self.count else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the accuracy (Wilson, JASA 1927)."""
        return wilson(self.correct, self.count)


def wilson(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a proportion; sound near 0 and 1 and for small counts."""
    if not count:
        return (0.0, 1.0)
    p, n = correct / count, count
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def mean_accuracy(scores: Mapping[str, Score]) -> float:
    """Unweighted mean over sources: a big source does not hide a small one."""
    values = [score.accuracy for score in scores.values() if score.count]
    return sum(values) / len(values) if values else math.nan


class Accuracy:
    """Running sums by source and class: correct, count [S, K] and loss [S], float64, on the device of the logits."""

    def __init__(self, sources: Sequence[str], classes: Sequence[str], device: torch.device):
        self.sources, self.classes = tuple(sources), tuple(classes)
        self.sums = torch.zeros(len(sources), len(classes), 3, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, targets: Tensor, sources: Tensor, valid: Tensor) -> None:
        """logits [B, K]; targets [B] unified class, -1 where there is none; sources [B]; valid [B] bool."""
        valid = valid & (targets >= 0)
        logits, targets, sources = logits[valid].float(), targets[valid], sources[valid]
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        rows = torch.stack([(logits.argmax(1) == targets).double(), torch.ones_like(loss).double(), loss.double()], 1)
        self.sums.index_put_((sources, targets), rows, accumulate=True)

    def scores(self, total: Tensor) -> dict[str, Score]:
        """Scores from the sums of all ranks [S, K, 3]."""
        result = {}
        for name, rows in zip(self.sources, total.cpu(), strict=True):
            correct, count, loss = rows.sum(0).tolist()
            per_class = {c: (r[0] / r[1]).item() for c, r in zip(self.classes, rows, strict=True) if r[1] > 0}
            result[name] = Score(int(correct), int(count), loss / count if count else math.nan, per_class)
        return result
