"""FCOS on fused maps (Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019): the head, its loss
over sources that annotate different classes, and the detections that its numbers mean.

What torchvision's FCOS computes is computed here from plain tensors, with torchvision's parts; in what the loss differs
says `detections.py`.

Legend: B images, N points of all levels, finest first, K classes.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import generalized_box_iou_loss

from xfer.heads.detections import BoxHead, BoxObjective, Detections, bernoulli, best_of, drawn_places

_RADIUS = 1.5  # strides around the centre of a box within which its points are positive


class Fcos(BoxHead):
    """Fused maps -> at each point logits of classes, distances to the sides of a box, and how central the point is."""

    head: FCOSHead

    def __init__(self, width: int, num_classes: int):
        super().__init__(width)
        self.head = FCOSHead(width, num_anchors=1, num_classes=num_classes, num_convs=4)

    def forward(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """maps: by level [B, width, h, w]; size: height and width of the images in pixels. Returns

        classes [B, N, K]: logits; boxes [B, N, 4]: distances left, up, right and down from the point, in strides, not
        negative; centerness [B, N, 1]: logits; points [N, 3] float32: x, y and stride, in pixels (see `points`).
        """
        found, shapes, device = self.raw(maps)
        return {
            "classes": found["cls_logits"],
            "boxes": found["bbox_regression"],
            "centerness": found["bbox_ctrness"],
            "points": points(shapes, size, device),
        }


def points(shapes: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """The points of levels of these heights and widths, finest first, row by row: x, y and stride in pixels, float32
    [N, 3].

    They lie as torchvision's AnchorGenerator has them: 0, s, 2 s and so on, s being pixels of the image // points of
    the level. Their stride is by how much the level is smaller by its convolutions, a power of two that doubles from
    level to level: s is less where a map was rounded up, and ranges of sizes that follow from s have holes.
    """
    height, width = size
    finest = 2.0 ** round(math.log2(height / shapes[0][0]))
    rows = []
    for level, (h, w) in enumerate(shapes):
        y = torch.arange(h, device=device, dtype=torch.float32) * (height // h)
        x = torch.arange(w, device=device, dtype=torch.float32) * (width // w)
        y, x = torch.meshgrid(y, x, indexing="ij")
        rows.append(torch.stack([x, y, torch.full_like(x, finest * 2**level)], -1).view(-1, 3))
    return torch.cat(rows)


def _levels(points: Tensor) -> list[int]:
    """How many points each level has."""
    return torch.unique_consecutive(points[:, 2], return_counts=True)[1].tolist()


def _decode(boxes: Tensor, points: Tensor) -> Tensor:
    """Distances in strides [..., 4] of points [..., 3] -> x0, y0, x1, y1 in pixels, float32."""
    left, up, right, down = (boxes.float() * points[..., 2:]).unbind(-1)
    x, y, _ = points.unbind(-1)
    return torch.stack([x - left, y - up, x + right, y + down], -1)


def _distances(points: Tensor, boxes: Tensor) -> Tensor:
    """From points [..., 3] to the sides of boxes [..., 4] in pixels: left, up, right, down [..., 4]."""
    return torch.cat([points[..., :2] - boxes[..., :2], boxes[..., 2:4] - points[..., :2]], -1)


def match(points: Tensor, boxes: Tensor, objects: Tensor) -> Tensor:
    """The box that each point answers for, int64 [N], or -1. points [N, 3]; boxes [n, 4] in pixels; objects bool [n]:
    which of them can be answered for.

    It is the smallest of those that have the point inside and near their centre, and whose farthest side is at a
    distance that is the level's: 4 to 8 strides, less on the finest, more on the coarsest (sec. 3.2, and center
    sampling of the paper's later version, arXiv 1904.01355).
    """
    if not len(boxes):
        return torch.full((len(points),), -1, device=points.device)
    stride = points[:, 2:]
    distances = _distances(points[:, None], boxes)
    farthest = distances.amax(2)
    from_centre = (points[:, None, :2] - (boxes[:, :2] + boxes[:, 2:]) / 2).abs().amax(2)
    lowest = torch.where(stride == stride[0], 0, 4 * stride)
    highest = torch.where(stride == stride[-1], torch.inf, 8 * stride)
    fits = objects & (from_centre < _RADIUS * stride) & (distances.amin(2) > 0)
    fits &= (farthest > lowest) & (farthest < highest)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    area, smallest = torch.where(fits, areas, torch.inf).min(1)
    return torch.where(area < torch.inf, smallest, -1)


class FcosObjective(BoxObjective):
    """The loss of the boxes is GIoU and cross-entropy of the centerness (sec. 3; GIoU for IoU is torchvision's). Points
    inside an ignored box that are not positive by another box are left out of the classes' loss.
    """

    places = "points"

    def targets(self, places: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ignored = boxes[:, 5] > 0
        matched = match(places, boxes[:, :4], ~ignored & (boxes[:, 4] >= 0))
        inside = (_distances(places[:, None], boxes).amin(2) > 0) & ignored
        own = boxes[matched.clamp_min(0), :5] if len(boxes) else boxes.new_zeros(len(places), 5)
        return own, matched >= 0, (matched < 0) & inside.any(1)

    def of_boxes(self, output: Mapping[str, Tensor], image: Tensor, place: Tensor, boxes: Tensor) -> Tensor:
        points = output["points"][place]
        overlap = generalized_box_iou_loss(_decode(output["boxes"][image, place], points), boxes)
        logits, central = output["centerness"][image, place, 0].float(), _centerness(points, boxes)
        return overlap + F.binary_cross_entropy_with_logits(logits, central, reduction="none")


def _centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """Of points [P, 3] each inside its box [P, 4]: 1 in the middle, 0 on the edge, float32 [P] (sec. 3.3)."""
    distances = _distances(points, boxes)
    one, other = distances[:, :2], distances[:, 2:]
    return (torch.minimum(one, other) / torch.maximum(one, other)).prod(1).sqrt()


def located(output: Mapping[str, Tensor]) -> Tensor:
    """The box of each place of an output of `Fcos`: x0, y0, x1, y1 in pixels, [B, N, 4], with its graph."""
    return _decode(output["boxes"], output["points"])


@torch.no_grad()
def decode(
    output: Mapping[str, Tensor],
    size: tuple[int, int],
    score: float = 0.05,
    nms: float = 0.6,
    candidates: int = 1000,
    most: int = 100,
    annotated: Tensor | None = None,
) -> list[Detections]:
    """What an output of `Fcos` on images of `size`, height and width, means: detections of each image, in its pixels,
    by their scores, sqrt(p(class) x centerness). The rest as in `best_of`.
    """
    scores = (output["classes"].float().sigmoid() * output["centerness"].float().sigmoid()).sqrt()
    return best_of(located(output), scores, _levels(output["points"]), size, score, nms, candidates, most, annotated)


def drawn(output: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """See `Task.drawn`: at each point whether each class is there; where one is, its box too, and how central the point
    is.
    """
    there, total = drawn_places(output["classes"], located(output), generator)
    return (total + there * bernoulli(output["centerness"], generator)[1]).flatten(1).sum(1)
