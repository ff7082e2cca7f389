"""RetinaNet on fused maps (Lin et al., Focal Loss for Dense Object Detection, ICCV 2017): the head, its loss over
sources that annotate different classes, and the detections that its numbers mean.

Anchors, head and matching are torchvision's, of its second version: groups of channels normalised, GIoU loss. As in
`fcos.py` the loss is one of each image, and a source says nothing about classes that it does not annotate.

Legend: B images, N anchors of all levels, finest first, nine at each place, K classes.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from shards.loading.batch import Batch
from xfer.heads.detections import Detections, best_of
from xfer.heads.pyramid import Pyramid

_GROUPS = 32  # of channels, that the head normalises
_SIZES = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in (32, 64, 128, 256, 512))
_RATIOS = (0.5, 1.0, 2.0)  # height over width
_HIGH, _LOW = 0.5, 0.4  # an anchor that overlaps an object by so much answers for it, by less than so much for none
_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))


class RetinaNet(nn.Module):
    """Fused maps -> at each anchor logits of classes, and how a box differs from it.

    `width`: channels of the maps. Raises ValueError if it is not a multiple of 32.
    """

    levels = ("C3", "C4", "C5")

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        if width % _GROUPS:
            raise ValueError(
                f"width {width}: must be a multiple of {_GROUPS}, as the head normalises channels in {_GROUPS} groups"
            )
        self.pyramid = Pyramid(self.levels, width, extra=True)
        self.anchors = AnchorGenerator(_SIZES, (_RATIOS,) * len(_SIZES))
        num_anchors = self.anchors.num_anchors_per_location()[0]
        self.head = RetinaNetHead(width, num_anchors, num_classes, partial(nn.GroupNorm, _GROUPS))

    def forward(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """maps: by level [B, width, h, w]; size: height and width of the images in pixels. Returns

        classes [B, N, K]: logits; boxes [B, N, 4]: differences from the anchors (R-CNN, sec. C: of the centre in sizes
        of the anchor, of the sizes in logarithms); anchors [N, 4] float32: x0, y0, x1, y1 in pixels; level [N].
        """
        pyramid = list(self.pyramid(maps).values())
        num_images = len(pyramid[0])
        if pyramid[-1].numel() == _GROUPS:  # torch refuses to normalise single numbers, unless there are two images
            pyramid = [x.expand(2, -1, -1, -1) for x in pyramid]
        head = self.head(pyramid)
        anchors = self._anchors([(x.shape[-2], x.shape[-1]) for x in pyramid], size, pyramid[0].device)
        level = torch.cat([torch.full((len(one),), float(i), device=one.device) for i, one in enumerate(anchors)])
        return {
            "classes": head["cls_logits"][:num_images],
            "boxes": head["bbox_regression"][:num_images],
            "anchors": torch.cat(anchors),
            "level": level,
        }

    def _anchors(self, grids: list[tuple[int, int]], size: tuple[int, int], device: torch.device) -> list[Tensor]:
        """By level."""
        strides = [
            [torch.tensor(whole // part, device=device) for whole, part in zip(size, g, strict=True)] for g in grids
        ]
        self.anchors.set_cell_anchors(torch.float32, device)
        return self.anchors.grid_anchors([list(grid) for grid in grids], strides)


class RetinaNetObjective:
    """The training loss of a detector: focal loss of the classes and GIoU loss of the boxes, each divided by the
    positive anchors of the image, added up over the samples of a batch.

    The classification loss runs over the classes that the source annotates; the gradient on others is exactly zero.
    Anchors between the two overlaps are left out of it, and so are those that lie for the most part in a box that is
    flagged as ignored, such as a crowd, and answer for no other.
    """

    def __init__(self, masks: Tensor, sources: Sequence[str]):
        """masks [S, K] bool: the classes that each of the `sources` annotates, on the device of the outputs."""
        self.masks, self.sources = masks, tuple(sources)

    def __call__(self, output: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """output: of `RetinaNet`; boxes of the batch: float32 [n, 6], x0, y0, x1, y1, class index, 1 where ignored.
        Boxes of no class, -1, are background. Returns the sum over valid samples, float32.
        """
        assert batch.own_share is None, "boxes are not mixed"
        anchors, logits = output["anchors"], output["classes"].float()
        given = [anchors.new_zeros(0, 6)] * len(logits) if batch.boxes is None else batch.boxes
        boxes, positive, left_out = map(torch.stack, zip(*(_targets(anchors, one) for one in given), strict=True))
        positive = positive & batch.valid[:, None]
        image, anchor = positive.nonzero(as_tuple=True)

        counts = (self.masks[batch.sources] & batch.valid[:, None])[:, None] & ~left_out[..., None]
        truth = torch.zeros_like(logits)
        truth[image, anchor, boxes[image, anchor, 4].long()] = 1
        loss = (sigmoid_focal_loss(logits.masked_fill(~counts, 0), truth) * counts).sum((1, 2))

        found = _CODER.decode_single(output["boxes"][image, anchor].float(), anchors[anchor])
        loss = loss.index_add(0, image, generalized_box_iou_loss(found, boxes[image, anchor, :4]))
        return (loss / positive.sum(1).clamp_min(1)).sum()


def _targets(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each anchor the box that it answers for [N, 5], whether there is one, and whether it is neither object nor
    background, bool [N]. boxes: of one image [n, 6]. The best anchor of each object answers for it at any overlap.
    """
    ignored = boxes[:, 5] > 0
    objects, crowds = boxes[~ignored & (boxes[:, 4] >= 0)], boxes[ignored]
    matched = torch.full((len(anchors),), Matcher.BELOW_LOW_THRESHOLD, device=anchors.device)
    if len(objects):
        matched = Matcher(_HIGH, _LOW, allow_low_quality_matches=True)(box_iou(objects[:, :4], anchors))
    left_out = matched == Matcher.BETWEEN_THRESHOLDS
    if len(crowds):
        left_out |= (matched < 0) & (_inside(anchors, crowds[:, :4]) > 0.5).any(1)
    own = objects[matched.clamp_min(0), :5] if len(objects) else boxes.new_zeros(len(anchors), 5)
    return own, matched >= 0, left_out


def _inside(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Which share of each anchor lies in each box, [N, n]."""
    low = torch.maximum(anchors[:, None, :2], boxes[:, :2])
    high = torch.minimum(anchors[:, None, 2:], boxes[:, 2:])
    return (high - low).clamp_min(0).prod(2) / (anchors[:, 2:] - anchors[:, :2]).prod(1)[:, None]


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
    anchors, differences = output["anchors"], output["boxes"].float()
    flat = _CODER.decode_single(differences.flatten(0, 1), anchors.repeat(len(differences), 1))
    levels = torch.unique_consecutive(output["level"], return_counts=True)[1].tolist()
    scores = output["classes"].float().sigmoid()
    return best_of(flat.view_as(differences), scores, levels, size, score, nms, candidates, most, annotated)
