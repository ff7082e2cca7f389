"""Boxes that a head answers from: anchors on a grid, and which true box each of such places answers for."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import box_iou


def anchors_of(
    generator: AnchorGenerator, grids: Sequence[tuple[int, int]], size: tuple[int, int], device: torch.device
) -> list[Tensor]:
    """torchvision's anchors by level, float32 [n, 4], x0, y0, x1, y1 in pixels. grids: heights and widths of the
    levels; size: of the images.
    """
    strides = [[torch.tensor(whole // part, device=device) for whole, part in zip(size, g, strict=True)] for g in grids]
    generator.set_cell_anchors(torch.float32, device)
    return generator.grid_anchors([list(grid) for grid in grids], strides)


def match(places: Tensor, boxes: Tensor, high: float, low: float, every: bool) -> tuple[Tensor, Tensor, Tensor]:
    """For each of places [N, 4] the box that it answers for [N, 5], whether there is one, and whether it is neither
    object nor background, bool [N]. boxes: of one image [n, 6], as in `BoxObjective`.

    A place that overlaps an object by `high` or more (intersection over union) answers for it, by less than `low` for
    none. `every`: the places that overlap an object most do so in any case. Neither are places between the two, and
    those that lie for the most part in an ignored box and answer for no other.
    """
    ignored = boxes[:, 5] > 0
    objects, crowds = boxes[~ignored & (boxes[:, 4] >= 0)], boxes[ignored]
    matched = torch.full((len(places),), Matcher.BELOW_LOW_THRESHOLD, device=places.device)
    if len(objects) and len(places):
        matched = Matcher(high, low, allow_low_quality_matches=every)(box_iou(objects[:, :4], places))
    left_out = matched == Matcher.BETWEEN_THRESHOLDS
    if len(crowds):
        left_out |= (matched < 0) & (_inside(places, crowds[:, :4]) > 0.5).any(1)
    own = objects[matched.clamp_min(0), :5] if len(objects) else boxes.new_zeros(len(places), 5)
    return own, matched >= 0, left_out


def _inside(places: Tensor, boxes: Tensor) -> Tensor:
    """Which share of each place lies in each box, [N, n]."""
    low = torch.maximum(places[:, None, :2], boxes[:, :2])
    high = torch.minimum(places[:, None, 2:], boxes[:, 2:])
    return (high - low).clamp_min(0).prod(2) / (places[:, 2:] - places[:, :2]).prod(1)[:, None]
