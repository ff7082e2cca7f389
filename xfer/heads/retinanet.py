"""RetinaNet on fused maps (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017): the head, its loss over
sources that annotate different classes, and the detections that its numbers mean.

Anchors, head and matching are torchvision's, of its second version: groups of channels normalised, GIoU loss. In what
the loss differs says `detections.py`.

Legend: B images, N anchors of all levels, finest first, nine at each place, K classes.
"""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import generalized_box_iou_loss

from xfer.heads.anchors import anchors_of, match
from xfer.heads.detections import GROUPS, BoxHead, BoxObjective, Detections, best_of, drawn_places

_SIZES = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512))
_RATIOS = (0.5, 1.0, 2.0)  # height over width
_HIGH, _LOW = 0.5, 0.4  # an anchor that overlaps an object by so much answers for it, by less than so much for none
_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))


class RetinaNet(BoxHead):
    """Fused maps -> at each anchor logits of classes, and how a box differs from it."""

    head: RetinaNetHead

    def __init__(self, width: int, num_classes: int):
        super().__init__(width)
        self.anchors = AnchorGenerator(_SIZES, (_RATIOS,) * len(_SIZES))
        num_anchors = self.anchors.num_anchors_per_location()[0]
        self.head = RetinaNetHead(width, num_anchors, num_classes, partial(nn.GroupNorm, GROUPS))

    def forward(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """maps: by level [B, width, h, w]; size: height and width of the images in pixels. Returns

        classes [B, N, K]: logits; boxes [B, N, 4]: differences from the anchors (R-CNN, sec. C: of the centre in sizes
        of the anchor, of the sizes in logarithms); anchors [N, 4] float32: x0, y0, x1, y1 in pixels; level [N].
        """
        found, shapes, device = self.raw(maps)
        anchors = anchors_of(self.anchors, shapes, size, device)
        level = torch.cat([torch.full((len(one),), float(i), device=device) for i, one in enumerate(anchors)])
        return {
            "classes": found["cls_logits"],
            "boxes": found["bbox_regression"],
            "anchors": torch.cat(anchors),
            "level": level,
        }


class RetinaNetObjective(BoxObjective):
    """The loss of the boxes is GIoU. Which anchors answer for which object, and which are left out: see `match`."""

    places = "anchors"

    def targets(self, places: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return match(places, boxes, _HIGH, _LOW, every=True)

    def of_boxes(self, output: Mapping[str, Tensor], image: Tensor, place: Tensor, boxes: Tensor) -> Tensor:
        found = _CODER.decode_single(output["boxes"][image, place].float(), output["anchors"][place])
        return generalized_box_iou_loss(found, boxes)


def located(output: Mapping[str, Tensor]) -> Tensor:
    """The box of each place of an output of `RetinaNet`: x0, y0, x1, y1 in pixels, [B, N, 4], with its graph."""
    anchors, differences = output["anchors"], output["boxes"].float()
    flat = _CODER.decode_single(differences.flatten(0, 1), anchors.repeat(len(differences), 1))
    return flat.view_as(differences)


@torch.no_grad()
def decode(
    output: Mapping[str, Tensor],
    size: tuple[int, int],
    score: float = 0.05,
    nms: float = 0.5,
    candidates: int = 1000,
    most: int = 100,
    annotated: Tensor | None = None,
) -> list[Detections]:
    """What an output of `RetinaNet` on images of `size`, height and width, means: detections of each image, in its
    pixels, by their probability. The rest as in `best_of`.
    """
    levels = torch.unique_consecutive(output["level"], return_counts=True)[1].tolist()
    scores = output["classes"].float().sigmoid()
    return best_of(located(output), scores, levels, size, score, nms, candidates, most, annotated)


def drawn(output: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """See `Task.drawn`: at each anchor whether each class is there; where one is, its box too."""
    return drawn_places(output["classes"], located(output), generator)[1].flatten(1).sum(1)
