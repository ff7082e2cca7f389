"""Accuracy by source from running sums, and the intervals that say how much it and a difference can be trusted.

Each rank adds up its own batches; one all-reduce of [S, K, 3] numbers at the end gives every rank the exact totals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
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


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def paired_difference(correct_a: Sequence[bool] | np.ndarray, correct_b: Sequence[bool] | np.ndarray) -> Estimate:
    """How much more often b is right than a, from both on the same n images: bool [n] each, in the same order.

    Adjusted Wald interval for paired proportions (Bonett & Price, J. Educ. Behav. Stat. 2012): only images on which the
    two differ widen it, and one such image is added to either side, so where none differs it is still +- 2.8 / (n + 2),
    close to the rule of three, and never of width zero.
    """
    a, b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if a.shape != b.shape:
        raise ValueError(f"outcomes on {a.size} and {b.size} images are not paired")
    if not a.size:
        return Estimate(math.nan, -1.0, 1.0)
    gained, lost, n = int((b & ~a).sum()), int((a & ~b).sum()), a.size + 2
    up, down = (gained + 1) / n, (lost + 1) / n
    half = 1.96 * math.sqrt((up + down - (up - down) ** 2) / n)
    return Estimate((gained - lost) / a.size, max(-1.0, up - down - half), min(1.0, up - down + half))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The unweighted mean of independent estimates, their intervals joined by square and add (Zou & Donner, Statistics
    in Medicine 2008).
    """
    if not estimates:
        return Estimate(math.nan, -math.inf, math.inf)
    n = len(estimates)
    value = sum(one.value for one in estimates) / n
    low = math.sqrt(sum((one.value - one.low) ** 2 for one in estimates)) / n
    high = math.sqrt(sum((one.high - one.value) ** 2 for one in estimates)) / n
    return Estimate(value, value - low, value + high)


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
