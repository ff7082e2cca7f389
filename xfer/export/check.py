"""How far what a runtime gives is from what the model gives, in numbers and in answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from shards.loading.frame import frame_of
from shards.progress import progress
from xfer.bundle import Trained
from xfer.heads.detections import Detections
from xfer.tasks.average_precision import SURE
from xfer.tasks.known import task_of

_AT_ONCE = 16
_SAME_BOX = 0.5  # intersection over union


@dataclass(frozen=True)
class Difference:
    """largest: of the numbers, of all outputs; relative: the same as part of the largest number of its output;
    agreement: 0 to 1, the share of answers that are the same; images: on how many.
    """

    largest: float
    relative: float
    agreement: float
    images: int


def difference(trained: Trained, model: nn.Module, other: nn.Module, images: Tensor) -> Difference:
    """Of two models of the task of `trained` on images uint8 [B, 3, S, S]. What is not a number is infinitely far.
    Shows progress.
    """
    task, size = task_of(trained.model.task), trained.image_size
    frames, largest, relative, agreed = [frame_of(size, size, size, trained.resize)], 0.0, 0.0, 0.0
    with progress("compare", len(images), "images") as advance:
        for part in images.split(_AT_ONCE):
            with torch.inference_mode():
                ours, theirs = model(part), other(part)
            for one, another in zip(_tensors(ours), _tensors(theirs), strict=True):
                gap = float(torch.nan_to_num((one - another).abs(), nan=torch.inf).max()) if one.numel() else 0.0
                largest = max(largest, gap)
                relative = max(relative, gap / max(float(one.abs().max()), 1e-12) if one.numel() else 0.0)
            answers = zip(*(task.answers(each, frames * len(part)) for each in (ours, theirs)), strict=True)
            agreed += sum(AGREEMENTS[task.name](one, another) for one, another in answers)
            advance(len(part))
    return Difference(largest, relative, agreed / len(images), len(images))


def _tensors(output: Any) -> Sequence[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def _same_class(one: Tensor, other: Tensor) -> float:
    return float(one.argmax() == other.argmax())


def _same_pixels(one: Tensor, other: Tensor) -> float:
    return float((one == other).float().mean())


def _same_boxes(one: Detections, other: Detections) -> float:
    """Of the detections that are sure in either, the share that is in both: of the same class at the same place."""
    (boxes, labels), (theirs, their_labels) = (
        (d.boxes[d.scores >= SURE], d.labels[d.scores >= SURE]) for d in (one, other)
    )
    if not len(boxes) + len(theirs):
        return 1.0
    same = (box_iou(boxes, theirs) >= _SAME_BOX) & (labels[:, None] == their_labels)
    return float(same.any(1).sum() + same.any(0).sum()) / (len(boxes) + len(theirs))


AGREEMENTS: dict[str, Callable[[Any, Any], float]] = {
    "classification": _same_class,
    "detection": _same_boxes,
    "segmentation": _same_pixels,
}
"""By task: how much two answers to one image agree, 0 to 1."""
