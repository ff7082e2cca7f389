"""Outlines as COCO writes them, polygons and run lengths, as pixels; and the mask of classes that they make together.

Run lengths count pixels column by column, outside and inside in turn, the first outside: a list of numbers, or the text
that pycocotools packs them into. A polygon's pixels are to the bit those of pycocotools (cocoapi, maskApi.c,
`rleFrPoly`): its border is followed in fifths of a pixel, and where that passes the middle of a column, the pixels
below change sides. In NumPy it is short, and building a data set needs no compiled library; tests hold it to theirs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from shards.format.annotations import VOID
from shards.sources.source import Refused

_FINE = 5  # steps along a border for one pixel
_MIDDLE = _FINE // 2


class Drawn(NamedTuple):
    """An object: class index; what it is drawn as, polygons [[x, y, x, y, ...], ...], run lengths {"size": [H, W],
    "counts": ...} or none; x0, y0, x1, y1 around it, if that is known; whether it is a crowd.
    """

    label: int
    outline: Any
    box: Sequence[float] | None
    crowd: bool


@contextmanager
def sound(number: int) -> Iterator[None]:
    """Raises Refused in place of ValueError: the outline of this number is no outline."""
    try:
        yield
    except ValueError as error:
        raise Refused(f"outline {number}: {error}") from None


def pixels(outline: Any, height: int, width: int) -> np.ndarray:
    """Which pixels of an image of this size an outline covers, bool [height, width]. Raises ValueError."""
    if isinstance(outline, dict):
        return _from_runs(outline, height, width)
    covered = np.zeros((height, width), bool)
    for polygon in outline:
        covered |= _from_polygon(polygon, height, width)
    return covered


def runs(covered: np.ndarray) -> list[int]:
    """The run lengths of pixels bool [H, W], uncompressed."""
    flat = covered.T.ravel()
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff(changes, prepend=0, append=flat.size).tolist()


def box_of(outline: Any, height: int, width: int) -> list[float]:
    """x0, y0, x1, y1 around an outline; all 0 around nothing. Raises ValueError."""
    if isinstance(outline, dict):
        covered = pixels(outline, height, width)
        columns, rows = (np.flatnonzero(covered.any(axis)) for axis in (0, 1))
        return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1] if len(rows) else [0, 0, 0, 0]
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in outline])
    return [*points.min(0).tolist(), *points.max(0).tolist()]


def painted(objects: Sequence[Drawn], height: int, width: int, rest: int) -> np.ndarray:
    """The class of each pixel of an image, uint8 [height, width]: `rest` where nothing is; of several objects the
    smallest, as what is worn or held lies on who wears or holds it. Crowds, and the boxes of objects without an
    outline, are void where no object with an outline is. Raises Refused.
    """
    mask = np.full((height, width), rest, np.uint8)
    whole = []
    for number, one in enumerate(objects):
        with sound(number):
            covered = pixels(one.outline, height, width) if one.outline else _box_pixels(one.box, height, width)
        if one.crowd or not one.outline:
            mask[covered] = VOID
        else:
            whole.append((-int(covered.sum()), number, one.label, covered))
    for *_, label, covered in sorted(whole, key=lambda one: one[:2]):
        mask[covered] = label
    return mask


def _box_pixels(box: Sequence[float] | None, height: int, width: int) -> np.ndarray:
    covered = np.zeros((height, width), bool)
    if box is not None:
        x0, y0, x1, y1 = np.clip(np.nan_to_num(box), 0, (width, height) * 2)
        covered[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return covered


def _from_runs(outline: dict[str, Any], height: int, width: int) -> np.ndarray:
    size, counts = outline.get("size"), outline.get("counts")
    if size != [height, width]:
        raise ValueError(f"its run lengths are of a `size` {str(size)[:40]}, expected [{height}, {width}]")
    lengths = list(_unpacked(counts)) if isinstance(counts, str) else counts
    if (
        not isinstance(lengths, list)
        or not all(type(one) is int and one >= 0 for one in lengths)
        or sum(lengths) != height * width
    ):
        raise ValueError(f"its run lengths {str(counts)[:40]} do not add up to {height} x {width} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _unpacked(text: str) -> Iterator[int]:
    """Numbers of five bits a character, the lowest first, the sixth says that more follow; from the fourth number on
    each is the difference from the one two before. Raises ValueError.
    """
    known = [0, 0]
    value = shift = count = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("its run lengths are no text that COCO's tools write")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if count > 2:
            value += known[0]
        known = [known[1], value]
        yield value
        value, shift, count = 0, 0, count + 1
    if shift:
        raise ValueError("its run lengths end in the middle of a number")


def _from_polygon(polygon: Sequence[float], height: int, width: int) -> np.ndarray:
    points = np.array(polygon, np.float64).reshape(-1, 2)
    far = 2 * max(height, width)
    if not (np.abs(points) <= far).all():
        raise ValueError(f"a polygon has a point far outside of its image of {width} x {height} pixels")
    corners = (_FINE * points + 0.5).astype(np.int64)
    border = np.concatenate([_line(one, two) for one, two in pairwise([*corners.tolist(), corners[0].tolist()])])
    crossing = np.flatnonzero(np.diff(border[:, 0]))
    x, y = np.minimum(border[crossing], border[crossing + 1]).T
    x, y = x[x % _FINE == _MIDDLE] // _FINE, y[x % _FINE == _MIDDLE]
    y = np.clip(-((_MIDDLE - y) // _FINE), 0, height)
    seen = (x >= 0) & (x < width)
    changes = np.bincount(x[seen] * height + y[seen], minlength=height * width)[: height * width]
    return (np.cumsum(changes) % 2 == 1).reshape(width, height).T


def _line(start: Sequence[int], end: Sequence[int]) -> np.ndarray:
    """The whole points from one to another, int64 [n, 2]; the same on the way back."""
    long = 0 if abs(end[0] - start[0]) >= abs(end[1] - start[1]) else 1
    low, high = sorted((start, end), key=lambda point: point[long])
    steps = np.arange(high[long] - low[long] + 1)
    slope = (high[1 - long] - low[1 - long]) / max(1, high[long] - low[long])
    points = np.empty((len(steps), 2), np.int64)
    points[:, long], points[:, 1 - long] = low[long] + steps, (low[1 - long] + slope * steps + 0.5).astype(np.int64)
    return points if low is start else points[::-1]
