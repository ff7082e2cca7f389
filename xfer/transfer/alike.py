"""Which classes of two sources are the same, or one a part of the other, by what the images say: cross-prediction.

A linear head is fitted on the features of source A and asked of the images of source B, and the reverse. Two classes
are the same where each head calls the other source's images by its own class; a is a part of b where B's head calls
images of a b, and A's head divides those of b among a and others. Names have no part in it.

What makes shares comparable between sources: features are standardised within each source, and each logit is taken less
its mean over the classes that it is asked of, so that a class which a head calls everything has no advantage. A share
counts only where it is above, by its 95 % interval, how often images of the other classes are called so (chance), and,
for parts, how often the head confuses the two on images of its own source that it was not fitted on.

A class without a partner is called something too, and may look like one: a person decides. Cost: six fits of a linear
head for each source (xfer/transfer/linear.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xfer.metrics import wilson
from xfer.transfer.linear import Linear, fifths, fit_linear
from xfer.transfer.pairs import Sample

PENALTY = 0.1  # strong: a head has to hold in another source
LEAST = 0.1  # a share below it is no agreement, however sure it is
NEARLY_ALWAYS = 2 / 3  # of what a head gets right of its own class, for a part
Relation = Literal["same", "part_of", "has_part", ""]
_TURNED: dict[Relation, Relation] = {"part_of": "has_part", "has_part": "part_of"}


@dataclass(frozen=True)
class Known:
    """The features of one source and what a head makes of them. x [n, d] float, standardised; labels [n] int64, places
    among `classes`; head; own [K, K] float64: of each class the shares of what images that a head was not fitted on are
    called.
    """

    classes: Sequence[str]
    x: Tensor
    labels: Tensor
    head: Linear
    own: Tensor


@dataclass(frozen=True)
class Agreement:
    """Of a class a of one source and b of another. there: the share of a's images that are called b; back: of b's that
    are called a; runner_up: the largest share of another answer, of each; images: how many of each. says: what a is of
    b.
    """

    a: str
    b: str
    there: float
    back: float
    runner_up: tuple[float, float]
    images: tuple[int, int]
    says: Relation = ""

    def turned(self) -> "Agreement":
        """Of b and a."""
        (a, b), (one, other) = self.runner_up, self.images
        says = _TURNED.get(self.says, self.says)
        return Agreement(self.b, self.a, self.back, self.there, (b, a), (other, one), says)


def known(classes: Sequence[str], features: Tensor, labels: Tensor) -> Known:
    """features [n, d] float; labels [n] int64, places among `classes`."""
    x = (features - features.mean(0)) / features.std(0, correction=0).clamp_min(1e-6)
    masks, folds = torch.ones(len(labels), len(classes), dtype=torch.bool), fifths(len(labels))
    answers = torch.zeros_like(labels)
    for fold in folds.unique():
        out = folds == fold
        head = fit_linear(x[~out], labels[~out], masks[~out], PENALTY)
        answers[out] = torch.nn.functional.linear(x[out], *head).argmax(1)
    own = _shares(answers, labels, len(classes), len(classes))
    return Known(classes, x, labels, fit_linear(x, labels, masks, PENALTY), own)


def _shares(answers: Tensor, labels: Tensor, asked: int, told: int) -> Tensor:
    """[asked, told] float64: of the images of each class, the share of each answer; 0 for a class without images."""
    counts = torch.bincount(labels * told + answers, minlength=asked * told).view(asked, told).double()
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


class _Asked:
    """What the head of one source calls the images of another: shares [classes of `of`, classes of `by`] float64."""

    def __init__(self, by: Known, of: Known):
        logits = torch.nn.functional.linear(of.x, *by.head)
        means = torch.stack([logits[of.labels == one].mean(0) for one in of.labels.unique()])
        answers = (logits - means.mean(0)).argmax(1)
        self.shares, self._own = _shares(answers, of.labels, len(of.classes), len(by.classes)), by.own
        self.images = torch.bincount(of.labels, minlength=len(of.classes)).tolist()
        self._chance = (self.shares.sum(0) - self.shares) / max(1, len(self.shares) - 1)

    def lead(self, x: int) -> int:
        """What images of x are called most often."""
        return int(self.shares[x].argmax())

    def runner_up(self, x: int, y: int) -> float:
        """The largest share of another answer than y."""
        return max([share for place, share in enumerate(self.shares[x].tolist()) if place != y], default=0.0)

    def _above(self, x: int, y: int, *others: float) -> bool:
        low, _ = wilson(round(float(self.shares[x, y]) * self.images[x]), self.images[x])
        return low > max(LEAST, float(self._chance[x, y]), *others)

    def clear(self, x: int, y: int) -> bool:
        """Whether images of x are called y, more often than anything else and than those of other classes."""
        return self.lead(x) == y and self._above(x, y)

    def nearly_always(self, x: int, y: int) -> bool:
        """Whether it is so of about as many of them as of images of y itself."""
        return self.clear(x, y) and float(self.shares[x, y]) >= NEARLY_ALWAYS * float(self._own[y, y])

    def divided(self, x: int, y: int) -> bool:
        """Whether images of x are called y among other things, more often than the head takes what leads for y."""
        lead = self.lead(x)
        return self._above(x, y, *([] if lead == y else [float(self._own[lead, y])]))


def agreement(a: Known, b: Known) -> list[Agreement]:
    """All pairs of a class of one source and a class of another."""
    there, back = _Asked(b, a), _Asked(a, b)
    says: dict[tuple[int, int], Relation] = {}
    for x in range(len(a.classes)):
        y = there.lead(x)
        if there.clear(x, y) and back.clear(y, x):
            says[x, y] = "same"
    for y, parts in _parts(there, back).items():
        says |= {(x, y): "part_of" for x in parts}
    for x, parts in _parts(back, there).items():
        says |= {(x, y): "has_part" for y in parts}
    return [
        Agreement(
            name,
            other,
            float(there.shares[x, y]),
            float(back.shares[y, x]),
            (there.runner_up(x, y), back.runner_up(y, x)),
            (there.images[x], back.images[y]),
            says.get((x, y), ""),
        )
        for x, name in enumerate(a.classes)
        for y, other in enumerate(b.classes)
    ]


def _parts(there: _Asked, back: _Asked) -> dict[int, list[int]]:
    """Of each class that has two parts or more in the other source, these."""
    found = {
        whole: [x for x in range(len(there.shares)) if there.nearly_always(x, whole) and back.divided(whole, x)]
        for whole in range(len(back.shares))
    }
    return {whole: parts for whole, parts in found.items() if len(parts) > 1}


def known_of(sample: Sample, names: Sequence[str]) -> Known:
    """Of a source whose labels are places in `names`, by the source's own classes."""
    own = sample.subset.classes
    place = torch.tensor([own.index(name) if name in own else -1 for name in names])
    return known(own, sample.features, place[sample.labels])
