"""Which range of an activation 256 levels are spent on, from what it is on calibration images.

Two passes over the images: the smallest and the largest value, then a histogram between them; so memory does not grow
with the images. Ranges hold zero, which padding and ReLU need exactly.

    minmax      all that was seen
    percentile  without the outermost 0.01 %, half of it at each end
    mse         the range, shrunk evenly, whose squared error of clipping and rounding is least (as for weights:
                Banner et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment", 2019)
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx
import torch

from shards.progress import progress
from xfer.export.session import open_session, run

LEVELS = 255  # steps of uint8
Observer = Literal["minmax", "percentile", "mse"]
_BINS, _OUTSIDE = 2048, 1e-4
_SHRINKS = np.linspace(1, 0.2, 81)
_AT_ONCE = 4  # images: all activations of a detector are 100 MB each


class Range(NamedTuple):
    """Of an activation, low <= 0 <= high."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """Of its uint8 codes, value = scale * (code - zero); that of a tensor of zeros is 1."""
        return float(np.float32((self.high - self.low) / LEVELS)) or 1.0

    @property
    def zero(self) -> int:
        """The code of 0."""
        return int(np.clip(round(-self.low / self.scale), 0, LEVELS))


def _minmax(counts: np.ndarray, edges: np.ndarray) -> Range:
    return Range(float(edges[0]), float(edges[-1]))


def _percentile(counts: np.ndarray, edges: np.ndarray) -> Range:
    share = np.cumsum(counts) / max(1, counts.sum())
    low = np.searchsorted(share, _OUTSIDE / 2, side="right")
    high = np.searchsorted(share, 1 - _OUTSIDE / 2)
    return Range(float(edges[min(low, _BINS - 1)]), float(edges[min(high, _BINS - 1) + 1]))


def _mse(counts: np.ndarray, edges: np.ndarray) -> Range:
    values = (edges[:-1] + edges[1:]) / 2
    tried = [_held(Range(float(edges[0] * by), float(edges[-1] * by))) for by in _SHRINKS]

    def error(one: Range) -> float:
        codes = np.clip(np.round(values / one.scale) + one.zero, 0, LEVELS)
        return float((counts * ((codes - one.zero) * one.scale - values) ** 2).sum())

    return min(tried, key=error)


OBSERVERS: dict[Observer, Callable[[np.ndarray, np.ndarray], Range]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
}
"""Each from counts [n] of a histogram and its edges [n + 1]."""


def ranges(
    proto: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[torch.Tensor], observer: Observer
) -> dict[str, Range]:
    """Of each of `tensors` of a graph in float, on images uint8 [B, 3, S, S]. Shows progress."""
    images = [part.numpy() for batch in batches for part in batch.split(_AT_ONCE)]
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    del watched.graph.output[:]
    for name in tensors:
        watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_session(watched.SerializeToString())
    found = dict.fromkeys(tensors, (0.0, 0.0))
    counts = {name: np.zeros(_BINS) for name in tensors}
    with progress("calibrate", 2 * sum(map(len, images)), "images") as advance:
        for part in images:
            for name, value in run(session, part).items():
                found[name] = (min(found[name][0], float(value.min())), max(found[name][1], float(value.max())))
            advance(len(part))
        for part in images:
            for name, value in run(session, part).items():
                low, high = found[name]
                if low < high:
                    counts[name] += torch.histc(torch.from_numpy(value).flatten(), _BINS, low, high).numpy()
            advance(len(part))
    return {
        name: _held(OBSERVERS[observer](counts[name], np.linspace(low, high, _BINS + 1)))
        for name, (low, high) in found.items()
    }


def _held(one: Range) -> Range:
    """With zero in it."""
    return Range(min(one.low, 0.0), max(one.high, 0.0))
