"""What heads of detectors share: a pyramid under torchvision's head, a loss over sources that annotate different
classes, and how the many boxes that a head gives come to the few that are worth a look.

The loss is one of each image, so that it does not depend on how a batch is divided over ranks and steps. And, as in
`xfer.labels`, a source says nothing about classes that it does not annotate: on its images they are not background.

Legend: B images, N places (points or anchors) of all levels, finest first, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import batched_nms, clip_boxes_to_image, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from shards.loading.batch import Batch
from xfer.heads.pyramid import Pyramid

GROUPS = 32  # of channels, that the heads normalise
_EDGE = 0.1  # deviation of a drawn edge, in sides of the box


class BoxHead(nn.Module):
    """Levels P3 to P7 of the fused maps, and `head`, one of torchvision's, on all of them.

    `width`: channels of the maps. Raises ValueError if it is not a multiple of 32.
    """

    levels = ("C3", "C4", "C5")
    head: Any

    def __init__(self, width: int):
        super().__init__()
        if width % GROUPS:
            raise ValueError(
                f"width {width}: must be a multiple of {GROUPS}, as the head normalises channels in {GROUPS} groups"
            )
        self.pyramid = Pyramid(self.levels, width, LastLevelP6P7(width, width))

    def raw(self, maps: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[tuple[int, int]], torch.device]:
        """What `head` makes of maps by level [B, width, h, w]; heights and widths of the pyramid's levels, and where
        they are.
        """
        pyramid = list(self.pyramid(maps).values())
        num_images = pyramid[0].shape[0]  # not len: of a traced model that is one number for all batches
        single = pyramid[-1].shape[1:].numel() == GROUPS
        if single and (torch.compiler.is_exporting() or num_images == 1):  # torch refuses to normalise single numbers
            pyramid = [torch.cat([x, x[:1]]) for x in pyramid]  # a graph is for any number of images, one among them
        found = {name: value[:num_images] for name, value in self.head(pyramid).items()}
        return found, [(x.shape[-2], x.shape[-1]) for x in pyramid], pyramid[0].device


class BoxObjective(ABC):
    """The training loss of a detector: focal loss of the classes, and what its head adds for the boxes, each divided by
    the positive places of the image, added up over the samples of a batch.

    The classification loss runs over the classes that the source annotates; the gradient on others is exactly zero.
    Boxes that are flagged as ignored, such as crowds, are no object and no background.
    """

    places: ClassVar[str]
    """Under which name an output has the places."""

    def __init__(self, masks: Tensor, sources: Sequence[str]):
        """masks [S, K] bool: the classes that each of the `sources` annotates, on the device of the outputs."""
        self.masks, self.sources = masks, tuple(sources)

    @abstractmethod
    def targets(self, places: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each of places [N, ...] the box that it answers for [N, 5], whether there is one, and whether it is
        neither object nor background, bool [N]. boxes: of one image [n, 6].
        """

    @abstractmethod
    def of_boxes(self, output: Mapping[str, Tensor], image: Tensor, place: Tensor, boxes: Tensor) -> Tensor:
        """The loss of the boxes at p positive places, [p] float32; image, place [p]: where they are in the output,
        boxes [p, 4]: what is true there.
        """

    def __call__(self, output: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """output: of the head; boxes of the batch: float32 [n, 6], x0, y0, x1, y1, class index, 1 where ignored. Boxes
        of no class, -1, are background. Returns the sum over valid samples, float32.
        """
        assert batch.own_share is None, "boxes are not mixed"
        places, logits = output[self.places], output["classes"].float()
        given = [places.new_zeros(0, 6)] * len(logits) if batch.boxes is None else batch.boxes
        boxes, positive, left_out = map(torch.stack, zip(*(self.targets(places, one) for one in given), strict=True))
        positive = positive & batch.valid[:, None]
        image, place = positive.nonzero(as_tuple=True)

        counts = (self.masks[batch.sources] & batch.valid[:, None])[:, None] & ~left_out[..., None]
        truth = torch.zeros_like(logits)
        truth[image, place, boxes[image, place, 4].long()] = 1
        loss = (sigmoid_focal_loss(logits.masked_fill(~counts, 0), truth) * counts).sum((1, 2))
        loss = loss.index_add(0, image, self.of_boxes(output, image, place, boxes[image, place, :4]))
        return (loss / positive.sum(1).clamp_min(1)).sum()


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
    """Of boxes [B, N, 4], or one for each class [B, N, K, 4], in pixels of images of `size`, height and width, with
    scores [B, N, K]: the detections of each image. levels: how many of the N are of each level.

    Of each level the `candidates` best above `score`; of these, class by class, what does not overlap a better one by
    more than `nms`, intersection over union; of these the `most` best. What is not a number is no detection. annotated
    [B, K] bool: the classes that may be answers in each image, so that others do not take their places; None: all.
    """
    num_classes = scores.shape[-1]
    boxes = clip_boxes_to_image(boxes if boxes.dim() == 4 else boxes[:, :, None], size)
    scores = scores.masked_fill(boxes.isnan().any(-1), 0)
    boxes = boxes.expand(-1, -1, num_classes, -1)
    if annotated is not None:
        scores = scores.masked_fill(~annotated[:, None].to(scores.device), 0)
    found = []
    for own_boxes, own_scores in zip(boxes, scores, strict=True):
        parts = []
        for level_boxes, level_scores in zip(own_boxes.split(levels), own_scores.split(levels), strict=True):
            places = (level_scores.flatten() > score).nonzero()[:, 0]
            best, chosen = level_scores.flatten()[places].topk(min(candidates, len(places)))
            places = places[chosen]
            labels = places % num_classes
            parts.append((level_boxes[places // num_classes, labels], best, labels))
        every = Detections(*(torch.cat(part) for part in zip(*parts, strict=True)))
        keep = batched_nms(*every, nms)[:most]
        found.append(Detections(*(part[keep] for part in every)))
    return found


def drawn_places(logits: Tensor, boxes: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Drawn from logits [B, N, K] with boxes [B, N, 4]: whether there is an object at each place [B, N, 1], and the
    log-likelihood of that and, where there is one, of its box, [B, N, 1] with its graph.
    """
    there, log_p = bernoulli(logits, generator)
    there = there.amax(2, keepdim=True)
    return there, log_p.sum(2, keepdim=True) + there * drawn_edges(boxes, generator)


def drawn_edges(boxes: Tensor, generator: torch.Generator) -> Tensor:
    """The log-likelihood [..., 1] of edges drawn around those of boxes [..., 4], with a deviation of a tenth of the
    box's side.

    Such edges cost about a quarter of the overlap, half way between the mildest and the strictest that counts.
    """
    sides = (boxes[..., 2:] - boxes[..., :2]).detach().clamp_min(1).repeat(*[1] * (boxes.dim() - 1), 2)
    noise = torch.randn(boxes.shape, generator=generator).to(boxes.device)
    away = (boxes.detach() - boxes) / (_EDGE * sides) + noise
    return -away.square().sum(-1, keepdim=True) / 2


def bernoulli(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zeros and ones drawn from logits, and the log-likelihood of each, both of the shape of the logits."""
    logits = logits.float()
    drawn = torch.bernoulli(logits.detach().sigmoid().cpu(), generator=generator).to(logits.device)
    return drawn, -binary_cross_entropy_with_logits(logits, drawn, reduction="none")
