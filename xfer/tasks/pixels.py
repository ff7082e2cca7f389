"""Classes of pixels: the loss over sources that annotate different classes, masks as answers, and their scores.

What a source does not annotate gets no gradient from it, as in `xfer.labels`. A pixel that is void, or of a class that
its source does not annotate, counts nowhere: not in the loss, and not in the scores.

Scores keep one row of counts an image, from which the interval is drawn: images vary, and pixels of one image are not
independent. Each rank keeps its own rows; one gather at the end gives every rank all of them.
"""

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shards.format.annotations import VOID
from shards.loading.batch import Batch
from xfer.metrics import MOST_CONFUSED
from xfer.tasks.task import Worst, worst_of

_OUTSIDE = -1e30  # exp of it is exactly 0, and unlike -inf it can be interpolated: -inf times 0 is not a number
_STRIP = 2**22
_RESAMPLES = 500
_AT_ONCE = 50


def masked_pixel_loss(logits: Tensor, targets: Tensor, masks: Tensor, smoothing: float = 0.0) -> Tensor:
    """Softmax cross-entropy of each pixel inside the classes that its source annotates, the mean over each sample's
    pixels that have one of these; 0 where none has.

    logits [B, K, h, w] float, resized to the targets; targets [B, S, S] uint8 or int64, class index or 255 (void);
    masks [B, K] bool. Returns [B] float32. The gradient on classes outside the mask is exactly zero. `smoothing`
    spreads that much of the target evenly over the annotated classes.
    """
    known, outside = _known(targets, masks), ~masks[:, :, None, None]
    logits = logits.float().masked_fill(outside, _OUTSIDE)  # before it is resized, when it is small
    log_p = F.interpolate(logits, targets.shape[-2:], mode="bilinear").log_softmax(1)
    loss = F.nll_loss(log_p, torch.where(known, targets, VOID).long(), ignore_index=VOID, reduction="none")
    if smoothing:
        uniform = -log_p.masked_fill(outside, 0).sum(1) / masks.sum(1).clamp_min(1)[:, None, None]
        loss = (1 - smoothing) * loss + smoothing * torch.where(known, uniform, 0)
    return loss.sum((1, 2)) / known.sum((1, 2)).clamp_min(1)


def _known(targets: Tensor, masks: Tensor) -> Tensor:
    """Which pixels have a class that their source annotates: of [B, H, W] and [B, K], bool [B, H, W]."""
    table = F.pad(masks, (0, VOID + 1 - masks.shape[1]))
    return table.gather(1, targets.flatten(1).long()).view_as(targets)


class PixelObjective:
    """The training loss of a segmenter: the masked loss of pixels of a batch, added up over its samples."""

    def __init__(self, masks: Tensor, sources: Sequence[str], smoothing: float = 0.0):
        """masks [S, K] bool: the classes that each of the `sources` annotates, on the device of the logits."""
        self.masks, self.sources, self.smoothing = masks, tuple(sources), smoothing

    def __call__(self, output: Tensor, batch: Batch) -> Tensor:
        """output: logits [B, K, h, w]. Returns the sum over valid samples."""
        assert batch.own_share is None, "masks are not mixed"
        if batch.masks is None:
            return 0 * output.float().sum()  # all void; ranks still meet in the backward pass
        loss = masked_pixel_loss(output, batch.masks, self.masks[batch.sources], self.smoothing)
        return torch.where(batch.valid, loss, 0).sum()


def label_map(
    logits: Tensor, size: int, content: tuple[int, int], original: tuple[int, int], annotated: Tensor | None = None
) -> Tensor:
    """The class of each pixel of an image as it was before it was fitted into a square: uint8 [H, W].

    logits [K, h, w] of the square, `size` pixels a side; content: rows and columns of it that the image takes, from the
    top left, the rest being padding; original: H, W; annotated [K] bool: classes that may be answers, None: all.
    Both resizes are bilinear. The second goes strip by strip: K numbers for each pixel of a large photo are gigabytes.
    """
    (rows, columns), (height, width) = content, original
    assert 0 < rows <= size
    assert 0 < columns <= size
    classes = torch.arange(len(logits)) if annotated is None else annotated.nonzero()[:, 0]
    classes = classes.to(logits.device)
    assert len(classes), "there has to be an answer"
    square = F.interpolate(logits[classes].float()[None], (size, size), mode="bilinear")[0]
    square = square[:, :rows, :columns]
    places = ((torch.arange(height, dtype=torch.float64) + 0.5) * rows / height - 0.5).clamp_min(0)
    above = places.long().clamp_max(rows - 1)
    share = (places - above).float().to(logits.device)[:, None]
    above = above.to(logits.device)
    below = (above + 1).clamp_max(rows - 1)
    labels = torch.empty(height, width, dtype=torch.uint8, device=logits.device)
    step = max(1, _STRIP // (len(classes) * max(width, columns)))
    for start in range(0, height, step):
        part = slice(start, start + step)
        strip = torch.lerp(square[:, above[part]], square[:, below[part]], share[part])
        strip = F.interpolate(strip[None], (strip.shape[1], width), mode="bilinear")[0]
        labels[part] = classes[strip.max(0).indices].to(torch.uint8)  # a third of the time of argmax
    return labels


@dataclass(frozen=True)
class MaskScore:
    """Scores of one source: the mean `miou` over classes that occur in its truth of intersection over union, and the
    share of pixels that are right (Long et al., Fully Convolutional Networks for Semantic Segmentation, CVPR 2015,
    sec. 5), all its images taken together.

    per_class: intersection over union by class that occurs in truth; count: images with any pixel that counts, pixels:
    how many these are; interval: 95 % of the miou; resampled: the miou of each of 500 resamples of the images;
    confusion: by class and what it was taken for, how many pixels; worst: images by their own miou.
    """

    miou: float
    pixel_accuracy: float
    per_class: Mapping[str, float] = field(default_factory=dict)
    count: int = 0
    pixels: int = 0
    interval: tuple[float, float] = (0.0, 1.0)
    confusion: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    worst: Sequence[Worst] = ()
    resampled: np.ndarray = field(default_factory=lambda: np.full(_RESAMPLES, math.nan), compare=False, repr=False)

    @property
    def value(self) -> float:
        """By what segmentation is measured."""
        return self.miou

    @property
    def extras(self) -> dict[str, float]:
        """What else is shown of it."""
        return {"pixel accuracy": self.pixel_accuracy} if self.count else {}

    def kept(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "mIoU": self.miou,
            "count": self.count,
            "interval": self.interval,
            "per_class": dict(self.per_class),
            "pixel_accuracy": self.pixel_accuracy,
            "pixels": self.pixels,
            "confusion": self.confusion,
            "worst": [one._asdict() for one in self.worst],
        }


class MaskScores:
    """Counts of pixels, int64: a row for each image: source, position, and for each class how many pixels are rightly
    it, are answered with it, and truly are it [n, 2 + 3 K]; by source, class and answer [S, K, K], unless that would be
    more than `MOST_CONFUSED` numbers.
    """

    def __init__(self, sources: Sequence[str], classes: Sequence[str], masks: Tensor):
        """masks [S, K] bool: the classes that each of the `sources` annotates."""
        self.sources, self.classes, self._masks = tuple(sources), tuple(classes), masks.cpu()
        s, k = len(self.sources), len(self.classes)
        self._rows = array("q")  # in one piece: thousands of small tensors keep the memory around them from being freed
        self._confusion = torch.zeros(s, k, k, dtype=torch.int64) if s * k * k <= MOST_CONFUSED else None

    def add(
        self, answers: Sequence[Tensor], truths: Sequence[Tensor], sources: Sequence[int], positions: Sequence[int]
    ) -> None:
        """answers, truths: for each image uint8 [H, W], class index, truths also 255 (void); on any device. Answers are
        classes that the image's source annotates.
        """
        k = len(self.classes)
        for answer, truth, source, position in zip(answers, truths, sources, positions, strict=True):
            assert answer.shape == truth.shape, f"{tuple(answer.shape)} answers on {tuple(truth.shape)} pixels"
            assert (answer < k).all(), "an answer is no class"
            pairs = truth.flatten().int() * k + answer.to(truth.device).flatten()
            counts = torch.bincount(pairs, minlength=(VOID + 1) * k).view(VOID + 1, k)[:k].cpu()
            counts *= self._masks[source, :, None]
            each = torch.stack([counts.diagonal(), counts.sum(0), counts.sum(1)])
            self._rows.extend([source, position, *each.flatten().tolist()])
            if self._confusion is not None:
                self._confusion[source] += counts

    def result(
        self,
        gather: Callable[[Tensor], Tensor] = lambda rows: rows,
        total: Callable[[Tensor], Tensor] = lambda sums: sums,
    ) -> dict[str, MaskScore]:
        """By source; over ranks `gather` joins rows and `total` adds up, both collectives."""
        own = torch.tensor(self._rows, dtype=torch.int64).view(-1, 2 + 3 * len(self.classes))
        rows = gather(own).cpu().numpy()
        confusion = None if self._confusion is None else total(self._confusion.clone()).cpu()
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]  # the interval must not depend on which rank had which image
        return {
            name: self._score(rows[rows[:, 0] == i, 1:], None if confusion is None else confusion[i])
            for i, name in enumerate(self.sources)
        }

    def _score(self, rows: np.ndarray, confusion: Tensor | None) -> MaskScore:
        counts = rows[:, 1:].reshape(len(rows), 3, len(self.classes))
        counted = counts[:, 2].any(1)
        places, counts = rows[counted, 0], counts[counted]
        if not len(counts):
            return MaskScore(math.nan, math.nan)
        sums = counts.sum(0)
        iou, pixels, resampled = _iou(sums), int(sums[2].sum()), resampled_miou(counts)
        answers: dict[str, dict[str, int]] = {}
        if confusion is not None:
            for truth, said in confusion.nonzero().tolist():
                answers.setdefault(self.classes[truth], {})[self.classes[said]] = int(confusion[truth, said])
        return MaskScore(
            float(np.nanmean(iou)),
            float(sums[0].sum() / pixels),
            {name: float(value) for name, value in zip(self.classes, iou, strict=True) if not math.isnan(value)},
            len(counts),
            pixels,
            interval_of(resampled, float(np.nanmean(iou))) if len(counts) > 1 else (0.0, 1.0),
            answers,
            worst_of(places, np.nanmean(_iou(counts), 1)),
            resampled,
        )


def _iou(sums: np.ndarray) -> np.ndarray:
    """Of pixels rightly, answered and truly of each class [..., 3, K] the intersection over union [..., K], NaN for
    classes that do not occur in truth.
    """
    right, answered, true = np.moveaxis(sums, -2, 0)
    return np.where(true > 0, right / np.maximum(answered + true - right, 1), np.nan)


def resampled_miou(counts: np.ndarray, seed: int = 0) -> np.ndarray:
    """The miou of each of 500 bootstrap resamples of n images (Efron & Tibshirani, An Introduction to the Bootstrap,
    1993, sec. 13.3), float64 [500]; counts int64 [n, 3, K] as rows of `MaskScores` have them, each with a pixel that
    counts. The resamples depend on n alone, so those of two models on the same images are paired.
    """
    n = len(counts)
    drawn, flat = np.random.default_rng(seed), counts.reshape(n, -1).astype(np.float64)
    values = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        places = drawn.integers(n, size=(_AT_ONCE, n)) + n * np.arange(_AT_ONCE)[:, None]
        times = np.bincount(places.ravel(), minlength=_AT_ONCE * n).reshape(_AT_ONCE, n)
        values.append(np.nanmean(_iou((times @ flat).reshape(_AT_ONCE, *counts.shape[1:])), -1))
    return np.concatenate(values)


def miou_interval(counts: np.ndarray) -> tuple[float, float]:
    """95 % interval of the miou of n images, from `resampled_miou`. One image says nothing of others, so its interval
    is everything; of several that are all alike it has no width.
    """
    if len(counts) < 2:
        return (0.0, 1.0)
    return interval_of(resampled_miou(counts), float(np.nanmean(_iou(counts.sum(0)))))


def interval_of(resampled: np.ndarray, value: float) -> tuple[float, float]:
    """95 % interval of a score: percentiles of its resamples, widened to hold the score where they miss it, as they may
    where classes are in few images each: these are absent from many resamples.
    """
    low, high = np.nanpercentile(resampled, (2.5, 97.5)) if np.isfinite(resampled).any() else (value, value)
    return (min(float(low), value), max(float(high), value))
