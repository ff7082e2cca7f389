"""Average precision of detections, as COCO defines it (Lin et al., Microsoft COCO, ECCV 2014; cocoapi, cocoeval.py).

Matching is done batch by batch, and only what it came to is kept: 48 bytes a detection, 10^6 of them are 48 MB. Each
rank keeps its own rows; one gather at the end gives every rank all of them. The interval draws images again and weighs
their rows: nothing is matched twice.

The libraries are not used for this: pycocotools and faster-coco-eval hold every box as a dict, and the second does not
show its matches. Tests hold this to both. Areas are those of the boxes; COCO's own files have those of the segments.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xfer.heads.detections import Detections
from xfer.tasks.task import Worst, worst_of

_OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # all, small, medium, large; pixels
_MOST = 100  # detections of a class in an image
_BITS = 1 << np.arange(_AREAS.shape[0] * len(_OVERLAPS), dtype=np.int64)
_RESAMPLES = 200
SURE = 0.5  # score of a detection that is shown to people
_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class BoxScore:
    """Average precision of one source, 0 to 1, NaN where there is nothing to count.

    ap: the mean over classes and over overlaps of .50 to .95; ap50, ap75: at one overlap; ap_small, ap_medium,
    ap_large: of boxes of less than 32 x 32, of up to 96 x 96 and of more pixels; ar: over the same classes and overlaps
    the share of true boxes that are found by at most 100 detections of a class in an image; per_class: ap by class that
    has truth; count: images, 0 if none has a box; boxes: true ones, without the ignored; interval: 95 % of the ap;
    curves: by class its precision at each recall of 0, .01, to 1, at an overlap of half; worst: images by their own F1;
    resampled: the ap of each of 200 resamples of the images, which depend on their number alone.
    """

    ap: float
    ap50: float = math.nan
    ap75: float = math.nan
    ap_small: float = math.nan
    ap_medium: float = math.nan
    ap_large: float = math.nan
    ar: float = math.nan
    per_class: Mapping[str, float] = field(default_factory=dict)
    count: int = 0
    boxes: int = 0
    interval: tuple[float, float] = (0.0, 1.0)
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)
    worst: Sequence[Worst] = ()
    resampled: np.ndarray = field(default_factory=lambda: np.full(_RESAMPLES, math.nan), compare=False, repr=False)

    @property
    def value(self) -> float:
        """By what detection is measured."""
        return self.ap

    @property
    def extras(self) -> dict[str, float]:
        """What else is shown of it."""
        extras = {"AP50": self.ap50, "AP75": self.ap75}
        extras |= {"AP small": self.ap_small, "AP medium": self.ap_medium, "AP large": self.ap_large, "AR": self.ar}
        return {name: value for name, value in extras.items() if not math.isnan(value)}

    def kept(self) -> dict[str, Any]:
        """As plain values."""
        parts = {"AP": self.ap, "AP50": self.ap50, "AP75": self.ap75}
        parts |= {"AP_small": self.ap_small, "AP_medium": self.ap_medium, "AP_large": self.ap_large, "AR": self.ar}
        plain = {name: None if math.isnan(value) else value for name, value in parts.items()}
        counts = {"count": self.count, "boxes": self.boxes}
        counts |= {"interval": self.interval, "per_class": dict(self.per_class)}
        return plain | counts | {"curves": dict(self.curves), "worst": [one._asdict() for one in self.worst]}


class BoxScores:
    """Rows of float64, on the CPU: for each detection source, position, class, score, and as bits where it matches and
    where it does not count (see `match`); for each true box source, position, class, and as bits the areas that it
    counts in; for each image source and position.
    """

    def __init__(self, sources: Sequence[str], classes: Sequence[str], masks: Tensor):
        """masks [S, K] bool: the classes that each of the `sources` annotates."""
        self.sources, self.classes, self._masks = tuple(sources), tuple(classes), masks.cpu().numpy()
        self._rows: dict[str, list[np.ndarray]] = {
            "detections": [np.zeros((0, 6))],
            "truths": [np.zeros((0, 4))],
            "images": [np.zeros((0, 2))],
        }

    def add(
        self,
        detections: Sequence[Detections],
        truths: Sequence[Tensor] | None,
        sources: Sequence[int],
        positions: Sequence[int],
        valid: Sequence[bool] | None = None,
    ) -> None:
        """Of a batch, in pixels of the original images, on any device: detections; truths float32 [n, 6], x0, y0, x1,
        y1, class index, 1 where ignored, None: there are none; valid: which images count, None: all.

        Left out is what is of no class, -1, or of a class that the image's source does not annotate.
        """
        images = [i for i in range(len(detections)) if valid is None or valid[i]]
        if not images:
            return
        where = np.array([(sources[i], positions[i]) for i in images], np.float64)
        found = [torch.cat([d.boxes, d.labels[:, None], d.scores[:, None]], 1) for d in (detections[i] for i in images)]
        true = [truths[i] for i in images] if truths is not None else [torch.zeros(0, 6)] * len(images)
        found_of, found_rows = self._known(found, where)
        true_of, true_rows = self._known(true, where)
        kept, hits, left_out, areas = match(found_of, found_rows, true_of, true_rows)
        found_of, found_rows = found_of[kept], found_rows[kept]
        self._append("detections", where[found_of], found_rows[:, 4:], _pack(hits), _pack(left_out))
        self._append("truths", where[true_of], true_rows[:, 4:5], _pack(areas))
        self._append("images", where)

    def _append(self, name: str, *columns: np.ndarray) -> None:
        self._rows[name].append(np.concatenate(columns, 1, dtype=np.float64))

    def _known(self, rows: Sequence[Tensor], where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows that have a class that their image's source annotates: the image of each [n], and they [n, 6]."""
        of = np.repeat(np.arange(len(rows)), [len(one) for one in rows])
        joined = torch.cat(list(rows)).double().cpu().numpy()
        classes = joined[:, 4].astype(np.int64)
        known = (classes >= 0) & self._masks[where[of, 0].astype(np.int64), classes]
        return of[known], joined[known]

    def result(self, gather: Callable[[Tensor], Tensor] = lambda rows: rows) -> dict[str, BoxScore]:
        """By source; `gather` joins rows [n, c] over ranks, a collective."""
        parts = {name: np.concatenate(rows) for name, rows in self._rows.items()}
        parts = {name: gather(torch.from_numpy(rows)).cpu().numpy() for name, rows in parts.items()}
        return {
            name: self._score(*(rows[rows[:, 0] == i, 1:] for rows in parts.values()))
            for i, name in enumerate(self.sources)
        }

    def _score(self, found: np.ndarray, true: np.ndarray, images: np.ndarray) -> BoxScore:
        """Of the rows of one source, without the source."""
        true = true[true[:, 2] > 0]
        if not len(true):
            return BoxScore(math.nan)
        positions = np.unique(images)
        found = found[np.lexsort((found[:, 0], -found[:, 2], found[:, 1]))]  # stable: an image's keep their order
        of, true_of = (np.searchsorted(positions, rows[:, 0]) for rows in (found, true))
        hits, left_out = (_unpack(found[:, i]).reshape(-1, len(_AREAS), len(_OVERLAPS)) for i in (3, 4))
        areas = _unpack(true[:, 2])[:, : len(_AREAS)]
        once, drawn = np.ones((1, len(positions)), np.uint8), _draw(len(positions))
        values, recalls, resampled, curves = {}, [], [], {}
        for number in np.unique(true[:, 1]):
            own, own_true = slice(*np.searchsorted(found[:, 1], (number, number + 1))), true[:, 1] == number
            parts = [(hits[own, a], left_out[own, a], of[own], true_of[own_true & areas[:, a]]) for a in range(4)]
            values[self.classes[int(number)]] = np.concatenate([average_precision(*part, once) for part in parts])
            resampled.append(average_precision(*parts[0], drawn).mean(1))
            if len(parts[0][3]):
                recalls.append((hits[own, 0] & ~left_out[own, 0]).sum(0) / len(parts[0][3]))
                curves[self.classes[int(number)]] = _curve(hits[own, 0, 0], left_out[own, 0, 0], len(parts[0][3]))
        table = np.stack(list(values.values()))  # [classes, areas, overlaps]
        ap, means = _mean(table[:, 0]), _means(np.stack(resampled))
        return BoxScore(
            ap,
            ap50=_mean(table[:, 0, 0]),
            ap75=_mean(table[:, 0, 5]),
            ap_small=_mean(table[:, 1]),
            ap_medium=_mean(table[:, 2]),
            ap_large=_mean(table[:, 3]),
            ar=_mean(np.stack(recalls)),
            per_class={name: float(value[0].mean()) for name, value in values.items()},
            count=len(positions),
            boxes=len(true),
            interval=_interval(ap, means) if len(positions) > 1 else (0.0, 1.0),
            curves=curves,
            worst=worst_of(positions, _each(found, hits, of, true_of[areas[:, 0]], len(positions))),
            resampled=means,
        )


def _pack(flags: np.ndarray) -> np.ndarray:
    """Flags of n rows, bool [n, ...], at most 53 each -> a whole number each, float64 [n, 1]: exact up to 2^53."""
    flags = flags.reshape(len(flags), math.prod(flags.shape[1:]))
    return (flags @ _BITS[: flags.shape[1]]).astype(np.float64)[:, None]


def _unpack(numbers: np.ndarray) -> np.ndarray:
    """bool [n, 40], what `_pack` was given first."""
    octets = numbers.astype("<i8")[:, None].view(np.uint8)
    return np.unpackbits(octets, axis=1, count=len(_BITS), bitorder="little").view(bool)


def _mean(values: np.ndarray) -> float:
    """Of those that are numbers; NaN if none is."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def match(
    found_of: np.ndarray, found: np.ndarray, true_of: np.ndarray, true: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """COCO's matching of detections to true boxes, for the A areas and T overlaps at once.

    found_of [D], true_of [n]: the image of each, int64, rising; found [D, 6] float64: x0, y0, x1, y1, class, score;
    true [n, 6]: x0, y0, x1, y1, class, 1 where ignored. Returns the detections that count, int64 [d], those of an image
    and class best first, at most 100; which of them match, and which are left out as the box that they match is ignored
    or they match none and are of another area, bool [d, A, T] both; and in which areas true boxes count, bool [n, A].

    The best detection of each image and class takes a box first, then all second ones, and so on: as many steps as one
    image has matching detections of one class, each for all images. A detection takes the box of the largest overlap
    that is not taken, an ignored one only if no other is left; a box that is ignored in the data can be taken by many,
    and overlaps by the share of the detection that is inside.
    """
    order = np.lexsort((-found[:, 5], found[:, 4], found_of))
    _, first, sizes = np.unique(
        np.stack([found_of[order], found[order, 4]], 1), axis=0, return_index=True, return_counts=True
    )
    rank = np.arange(len(order)) - np.repeat(first, sizes)
    kept, rank = order[rank < _MOST], rank[rank < _MOST]
    found, crowd = found[kept], true[:, 5] > 0
    areas = [np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1)[:, None] for boxes in (found, true)]
    outside, true_outside = ((area < _AREAS[:, 0]) | (area > _AREAS[:, 1]) for area in areas)
    ignored = true_outside | crowd[:, None]

    pairs, overlaps = _overlapping(found_of[kept], found, true_of, true)
    turn = np.lexsort((pairs[:, 1], overlaps, pairs[:, 0], rank[pairs[:, 0]]))  # the last of equals wins, as in COCO
    pairs, overlaps, turns = pairs[turn], overlaps[turn], rank[pairs[turn, 0]]
    hits, left_out = np.zeros((2, len(found), len(_AREAS), len(_OVERLAPS)), bool)
    taken = np.zeros((len(true), len(_AREAS), len(_OVERLAPS)), bool)
    for number in np.unique(turns):
        start, end = np.searchsorted(turns, (number, number + 1))
        those, boxes = pairs[start:end].T
        free = (overlaps[start:end, None, None] >= _OVERLAPS) & ~(taken[boxes] & ~crowd[boxes, None, None])
        place = np.arange(end - start)[:, None, None] + (end - start) * ~ignored[boxes][..., None]
        starts = np.flatnonzero(np.diff(those, prepend=-1))
        best = np.maximum.reduceat(np.where(free, place, -1), starts)
        which, area, overlap = np.nonzero(best >= 0)
        one, box = those[starts][which], boxes[best[which, area, overlap] % (end - start)]
        taken[box, area, overlap] = True
        hits[one, area, overlap] = True
        left_out[one, area, overlap] = ignored[box, area]
    return kept, hits, left_out | (~hits & outside[..., None]), ~ignored


def _overlapping(
    found_of: np.ndarray, found: np.ndarray, true_of: np.ndarray, true: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a detection and a true box of one image and class that overlap by .5 or more: their places, int64
    [p, 2], and by how much [p]: intersection over union, of ignored boxes over the detection. Arguments as in `match`.
    """
    width = 1 + max((int(rows[:, 4].max()) for rows in (found, true) if len(rows)), default=0)
    own = found_of * width + found[:, 4].astype(np.int64)
    others = true_of * width + true[:, 4].astype(np.int64)
    order = np.argsort(others, kind="stable")
    low, high = (np.searchsorted(others[order], own, side) for side in ("left", "right"))
    one = np.repeat(np.arange(len(found)), high - low)
    box = order[np.arange(len(one)) - np.repeat(np.cumsum(high - low) - high, high - low)]
    a, b = found[one], true[box]
    shared = np.minimum(a[:, 2:4], b[:, 2:4]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.clip(shared, 0, None).prod(1)
    alone, whole = ((boxes[:, 2:4] - boxes[:, :2]).prod(1) for boxes in (a, b))
    overlaps = shared / np.maximum(np.where(b[:, 5] > 0, alone, alone + whole - shared), np.finfo(float).tiny)
    near = overlaps >= _OVERLAPS[0]
    return np.stack([one[near], box[near]], 1), overlaps[near]


def average_precision(
    hits: np.ndarray, left_out: np.ndarray, of: np.ndarray, true_of: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Of one class, for each of R weightings of the images and each of T overlaps: the mean over 101 recalls of the
    highest precision at that recall or a higher one, [R, T] float64; NaN where no image with a true box counts.

    hits, left_out: of D detections, best first, bool [D, T]; of [D], true_of [n]: the image of each detection and of
    each true box; times [R, I]: how often each image counts. Of equal scores of images that count more than once, one
    is as good as all of them at once.
    """
    total = times[:, true_of].sum(1, dtype=np.float64)
    values = np.full((len(times), hits.shape[1]), np.nan)
    step = max(1, _AT_ONCE // max(1, len(of)))
    for start in range(0, len(times), step):
        part = slice(start, start + step)
        own = times[part][:, of].astype(np.float64)
        ranked = own.cumsum(1)
        for t in range(hits.shape[1]):
            right, out = np.flatnonzero(hits[:, t] & ~left_out[:, t]), np.flatnonzero(left_out[:, t])
            skipped = np.pad(own[:, out].cumsum(1), ((0, 0), (1, 0)))[:, np.searchsorted(out, right)]
            values[part, t] = _precisions(own[:, right].cumsum(1), ranked[:, right] - skipped, total[part]).mean(1)
    values[total == 0] = np.nan
    return values


def _curve(hits: np.ndarray, left_out: np.ndarray, total: int) -> list[float]:
    """The precision at each of 101 recalls, of detections of one class at one overlap, best first, bool [D]."""
    right, ranked = np.flatnonzero(hits & ~left_out), (~left_out).cumsum()
    at = _precisions(np.arange(1, len(right) + 1)[None], ranked[right][None], np.array([total]))[0]
    return [round(float(value), 4) for value in at]


def _precisions(right: np.ndarray, ranked: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Of the detections that are right, best first: how many are right so far, of how many [R, n], and of how many
    there are [R] -> the highest precision at each of 101 recalls or a higher one [R, 101].
    """
    precision = right / (ranked + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    recall = right / np.maximum(total, 1)[:, None]
    row = 2 * np.arange(len(total))[:, None]  # one search for all rows: they follow each other, rising
    first = np.searchsorted((recall + row).ravel(), _RECALLS + row) - row // 2 * recall.shape[1]
    return np.take_along_axis(np.pad(precision, ((0, 0), (0, 1))), first, 1)


def _draw(num_images: int, seed: int = 0) -> np.ndarray:
    """How often each image is drawn in each of 200 resamples, uint8 [200, I]."""
    drawn = np.random.default_rng(seed)
    counts = (np.bincount(drawn.integers(num_images, size=num_images), minlength=num_images) for _ in range(_RESAMPLES))
    return np.stack([one.astype(np.uint8) for one in counts])


def _each(found: np.ndarray, hits: np.ndarray, of: np.ndarray, true_of: np.ndarray, num_images: int) -> np.ndarray:
    """F1 of each image [I], of detections with a score of `SURE` that overlap a true box by half; NaN where there is
    neither.
    """
    sure = found[:, 2] >= SURE
    right, said, true = (
        np.bincount(places, minlength=num_images) for places in (of[sure & hits[:, 0, 0]], of[sure], true_of)
    )
    return np.where(said + true > 0, 2 * right / np.maximum(said + true, 1), np.nan)


def _means(resampled: np.ndarray) -> np.ndarray:
    """Of the average precision of each class in each resample [K, R], the mean over the classes that there are [R]."""
    there = ~np.isnan(resampled)
    sums = np.where(there, resampled, 0).sum(0)
    return np.where(there.any(0), sums / np.maximum(there.sum(0), 1), np.nan)


def _interval(ap: float, means: np.ndarray) -> tuple[float, float]:
    """95 % interval: percentiles of bootstrap resamples of images (Efron & Tibshirani, An Introduction to the
    Bootstrap, 1993, sec. 13.3).

    They lie a little high: precision is the highest from each recall on, and an image that is drawn twice makes it more
    uneven. Widened to hold the ap where they miss it. One image says nothing of others, so with one the interval is
    everything.
    """
    low, high = np.nanpercentile(means, (2.5, 97.5))
    return (min(float(low), ap), max(float(high), ap))
