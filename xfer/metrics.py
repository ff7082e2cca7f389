"""Scores by source from running sums, and the intervals that say how much one and a difference can be trusted.

Each rank adds up its own batches; a few all-reduces at the end give every rank the exact totals.
"""

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from shards.loading.batch import Batch
from xfer.mistakes import Mistake

BINS = 15
MOST_CONFUSED = 4_000_000


@dataclass(frozen=True)
class Score:
    """Scores of one source: `correct` of `count`, `top5` with the class among the five likeliest.

    loss: mean cross-entropy; per_class: accuracy by class name, for classes that occur; calibration: expected
    calibration error, by how much confidence and accuracy differ, 0 to 1 (Guo et al., On Calibration of Modern Neural
    Networks, ICML 2017, sec. 2; 15 bins); confusion: by class and what it was taken for, how often; mistakes: the
    surest, where they were asked for; right: which images are right, in their order, as `as_text` writes it;
    with_side: what the same model came to that saw side inputs too, of one that takes them.
    """

    correct: int
    count: int
    loss: float
    per_class: Mapping[str, float] = field(default_factory=dict)
    top5: int = 0
    calibration: float = math.nan
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    mistakes: Sequence[Mistake] = ()
    right: str = ""
    with_side: "Score | None" = None

    @property
    def accuracy(self) -> float:
        return self.correct / self.count if self.count else math.nan

    @property
    def value(self) -> float:
        """By what classification is measured."""
        return self.accuracy

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval of the accuracy (Wilson, JASA 1927)."""
        return wilson(self.correct, self.count)

    @property
    def extras(self) -> dict[str, float]:
        """What else is shown of it."""
        if not self.count:
            return {}
        side = {"with side inputs": self.with_side.accuracy} if self.with_side else {}
        return {**side, "top 5": self.top5 / self.count, "calibration error": self.calibration}

    def kept(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "correct": self.correct,
            "count": self.count,
            "accuracy": self.accuracy,
            "interval": self.interval,
            "per_class": dict(self.per_class),
            "top5": self.top5 / self.count if self.count else None,
            "calibration": self.calibration if self.count else None,
            "confusion": self.confusion,
            "mistakes": [asdict(one) for one in self.mistakes],
            **({"with_side": _counted(self.with_side)} if self.with_side else {}),
        }


def _counted(score: Score) -> dict[str, Any]:
    return {key: getattr(score, key) for key in ("correct", "count", "accuracy", "interval", "per_class")}


def wilson(correct: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a proportion; sound near 0 and 1 and for small counts."""
    if not count:
        return (0.0, 1.0)
    p, n = correct / count, count
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (max(0.0, centre - half), min(1.0, centre + half))


def as_text(right: np.ndarray) -> str:
    """bool [n] as `n:` and its bits in base64, a line of JSON for thousands of images."""
    return f"{right.size}:{base64.b64encode(np.packbits(right).tobytes()).decode()}"


def from_text(text: str) -> np.ndarray:
    """The bool [n] of `as_text`."""
    count, bits = text.split(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=int(count)).astype(bool)


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


class Scores:
    """Running sums, float64, on the device of the logits: by source and class correct, count, loss and top 5 [S, T, 4];
    by source and bin of confidence count, confidence and correct [S, 15, 3]; by source, class and answer a count
    [S, T, K], unless that would be more than `MOST_CONFUSED` numbers. T is K and the targets that are sets of classes.
    Beside these source, position and whether it is right of each image [n, 3], int64.
    """

    def __init__(
        self,
        sources: Sequence[str],
        classes: Sequence[str],
        device: torch.device,
        truths: Sequence[str] = (),
        sets: Tensor | None = None,
    ):
        """truths: names of the targets, where some are sets of classes: these come behind the classes; sets [T, K]
        bool: of each target the classes that are right.
        """
        self.sources, self.classes, self.truths = tuple(sources), tuple(classes), tuple(truths or classes)
        self.sets = None if sets is None else sets.to(device)
        s, t, k = len(sources), len(self.truths), len(classes)
        shapes = [(s, t, 4), (s, BINS, 3), (s, t, k)]
        shapes = shapes if s * t * k <= MOST_CONFUSED else shapes[:2]
        self.sums = [torch.zeros(shape, dtype=torch.float64, device=device) for shape in shapes]
        self.images = [torch.zeros(0, 3, dtype=torch.int64, device=device)]

    def add(self, output: Tensor, batch: Batch) -> None:
        """output: logits [B, K]; samples without a class are left out."""
        valid = batch.valid & (batch.targets >= 0)
        logits, targets, sources = output[valid].float(), batch.targets[valid], batch.sources[valid]
        best = logits.topk(min(5, logits.shape[1])).indices
        confidence, answers = logits.softmax(1).max(1)
        if self.sets is None:
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()
            same, hits = answers == targets, best == targets[:, None]
        else:  # the probability of a set is the sum over its classes
            sets = self.sets[targets]
            loss = -logits.log_softmax(1).masked_fill(~sets, -torch.inf).logsumexp(1).double()
            same, hits = sets.gather(1, answers[:, None]).squeeze(1), sets.gather(1, best)
        one, right, top5 = torch.ones_like(loss), same.double(), hits.any(1).double()
        bins = (
            (confidence.nan_to_num(0) * BINS).long().clamp_max(BINS - 1)
        )  # a model that diverged has a loss to say so
        rows = torch.stack([right, one, loss, top5], 1)
        self.sums[0].index_put_((sources, targets), rows, accumulate=True)
        self.sums[1].index_put_((sources, bins), torch.stack([one, confidence.double(), right], 1), accumulate=True)
        self.images.append(torch.stack([sources, batch.positions[valid], same.long()], 1))
        if len(self.sums) == 3:
            self.sums[2].index_put_((sources, targets, answers), one, accumulate=True)

    def result(
        self, total: Callable[[Tensor], Tensor] = lambda sums: sums, gather: Callable[[Tensor], Tensor] = lambda r: r
    ) -> dict[str, Score]:
        """By source; `total` adds up over ranks, `gather` puts their rows together: collectives."""
        by_class, bins, *confusion = (total(sums).cpu() for sums in self.sums)
        images = gather(torch.cat(self.images)).cpu()
        images = images[images[:, 1].argsort()]
        return {
            name: self._score(
                by_class[i], bins[i], confusion[0][i] if confusion else None, images[images[:, 0] == i, 2]
            )
            for i, name in enumerate(self.sources)
        }

    def _score(self, by_class: Tensor, bins: Tensor, confusion: Tensor | None, right: Tensor) -> Score:
        correct, count, loss, top5 = by_class.sum(0).tolist()
        per_class = {c: (r[0] / r[1]).item() for c, r in zip(self.truths, by_class, strict=True) if r[1] > 0}
        gap = (bins[:, 1] - bins[:, 2]).abs().sum().item()
        answers: dict[str, dict[str, int]] = {}
        if confusion is not None:
            for truth, said in confusion.nonzero().tolist():
                answers.setdefault(self.truths[truth], {})[self.classes[said]] = int(confusion[truth, said])
        if not count:
            return Score(0, 0, math.nan)
        shown = as_text(right.bool().numpy())
        return Score(int(correct), int(count), loss / count, per_class, int(top5), gap / count, answers, right=shown)
