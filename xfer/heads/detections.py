"""What a detector finds, and how the many boxes that a head gives come to the few that are worth a look."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image


class Detections(NamedTuple):
    """What was found in an image, best first: boxes float32 [n, 4], x0, y0, x1, y1 in pixels; scores float32 [n], 0 to
    1; labels int64 [n], class index.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def best_of(
    boxes: Tensor,
    scores: Tensor,
    levels: Sequence[int],
    size: tuple[int, int],
    score: float,
    nms: float,
    candidates: int,
    most: int,
    annotated: Tensor | None,
) -> list[Detections]:
    """Of boxes [B, N, 4] in pixels of images of `size`, height and width, with scores [B, N, K]: the detections of each
    image. levels: how many of the N are of each level.

    Of each level the `candidates` best above `score`; of these, class by class, what does not overlap a better one by
    more than `nms`, intersection over union; of these the `most` best. What is not a number is no detection. annotated
    [B, K] bool: the classes that may be answers in each image, so that others do not take their places; None: all.
    """
    num_classes = scores.shape[-1]
    boxes = clip_boxes_to_image(boxes, size)
    scores = scores.masked_fill(boxes.isnan().any(-1, keepdim=True), 0)
    if annotated is not None:
        scores = scores.masked_fill(~annotated[:, None].to(scores.device), 0)
    found = []
    for own_boxes, own_scores in zip(boxes, scores, strict=True):
        parts = []
        for level_boxes, level_scores in zip(own_boxes.split(levels), own_scores.split(levels), strict=True):
            places = (level_scores.flatten() > score).nonzero()[:, 0]
            best, chosen = level_scores.flatten()[places].topk(min(candidates, len(places)))
            places = places[chosen]
            parts.append((level_boxes[places // num_classes], best, places % num_classes))
        every = Detections(*(torch.cat(part) for part in zip(*parts, strict=True)))
        keep = batched_nms(*every, nms)[:most]
        found.append(Detections(*(part[keep] for part in every)))
    return found
