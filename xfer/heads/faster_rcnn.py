"""Faster R-CNN on fused maps (Ren et al., Faster R-CNN, NeurIPS 2015; on a pyramid: Lin et al., Feature Pyramid
Networks for Object Detection, CVPR 2017, sec. 4): the head, its loss, and the detections that its numbers mean.

Anchors, both stages and the choice of proposals are torchvision's. A head sees images alone, which shapes the rest:

- **All that the loss needs is in the output.** The second stage answers on the proposals of the first, at most `MOST`
  of an image, in training too; a true box that is near none of them teaches the first stage alone. torchvision has the
  true boxes join the proposals.
- **Nothing is drawn.** torchvision draws 256 anchors and 512 proposals of an image, and its loss is their mean. Here
  each has for its weight how often it would be drawn: the loss is theirs on average, and equal to it where the draw
  leaves nothing out. It is one of each image, so it depends on neither ranks nor steps nor a seed.
- **One list of classes.** The second stage is a softmax over the classes and background: what a source does not
  annotate would be background on its images. `prepare` refuses sources of different classes.

Proposals have no gradient and no fixed places: the last digit of a score can change their order.

Legend: B images, N anchors of all levels, finest first, three at each place, P proposals, K classes.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from shards.loading.batch import Batch
from xfer.heads.anchors import anchors_of, match
from xfer.heads.detections import Detections, best_of, drawn_edges, drawn_places
from xfer.heads.pyramid import Pyramid

MOST = 512  # proposals of an image
_SIZES, _RATIOS = ((32,), (64,), (128,), (256,), (512,)), (0.5, 1.0, 2.0)  # of anchors by level; height over width
_CANDIDATES = 1000  # of a level, among which proposals are chosen
_OVERLAP = 0.7  # of proposals, above which only the better one stays
_ANCHORS, _PROPOSALS = (0.7, 0.3), (0.5, 0.5)  # overlap with an object from which they answer for it; below, for none
_ANCHORS_DRAWN, _PROPOSALS_DRAWN = (256, 0.5), (512, 0.25)  # of an image by torchvision; the most that are objects
_SIDE, _HIDDEN = 7, 1024  # of what is cut out of the maps for a proposal; channels of its two layers
_SMALLEST = 0.01  # pixels a side of a detection
_ANCHOR_CODER, _BOX_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0)), BoxCoder((10.0, 10.0, 5.0, 5.0))


class FasterRcnn(nn.Module):
    """Fused maps -> at each anchor whether an object is there and how its box differs; of the best of these boxes, the
    proposals, logits of classes and how a box of each class differs.

    `width`: channels of the maps.
    """

    levels = ("C2", "C3", "C4", "C5")

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.pyramid = Pyramid(self.levels, width, LastLevelMaxPool())
        anchors = AnchorGenerator(_SIZES, (_RATIOS,) * len(_SIZES))
        chosen = {"training": _CANDIDATES, "testing": _CANDIDATES}, {"training": MOST, "testing": MOST}
        first = RPNHead(width, anchors.num_anchors_per_location()[0])
        self.rpn = RegionProposalNetwork(anchors, first, *_ANCHORS, *_ANCHORS_DRAWN, *chosen, _OVERLAP)
        self.pool = MultiScaleRoIAlign([level.replace("C", "P") for level in self.levels], _SIDE, sampling_ratio=2)
        self.box = TwoMLPHead(width * _SIDE**2, _HIDDEN)
        self.answer = FastRCNNPredictor(_HIDDEN, num_classes + 1)

    def forward(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """maps: by level [B, width, h, w]; size: height and width of the images in pixels. Returns, float32 where it
        says nothing else,

        objectness [B, N]: logits; differences [B, N, 4]: from the anchors; anchors [N, 4]: x0, y0, x1, y1 in pixels;
        proposals [B, P, 4]: the same, best first, without gradient, filled up with zeros; there [B, P] bool: which are
        proposals; classes [B, P, K + 1]: logits, the first of background; boxes [B, P, K + 1, 4]: differences from the
        proposals. Differences: R-CNN, sec. C; those of the second stage are ten and five times as large.
        """
        pyramid = self.pyramid(maps)
        grids, num_images = list(pyramid.values()), len(maps["C2"])
        objectness, differences = self.rpn.head(grids)
        counts = [one[0].numel() for one in objectness]
        objectness, differences = concat_box_prediction_layers(objectness, differences)
        objectness, differences = objectness.view(num_images, -1), differences.view(num_images, -1, 4)
        shapes = [(x.shape[-2], x.shape[-1]) for x in grids]
        first = {
            "objectness": objectness,
            "differences": differences,
            "anchors": torch.cat(anchors_of(self.rpn.anchor_generator, shapes, size, objectness.device)),
        }
        found, _ = self.rpn.filter_proposals(_moved(first).detach(), objectness.float(), [size] * num_images, counts)
        lengths = torch.tensor([len(one) for one in found], device=objectness.device)
        proposals = pad_sequence(found, batch_first=True)
        there = torch.arange(proposals.shape[1], device=lengths.device) < lengths[:, None]
        return {**first, "proposals": proposals, "there": there, **self._second(pyramid, proposals, size)}

    def _second(self, pyramid: dict[str, Tensor], proposals: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """The two layers are called one by one: torchvision's way has no axis of images, which packing needs."""
        finest = _scale(pyramid["P2"].shape[-2], size[0])
        level, coarser = round(-math.log2(finest)), len(self.levels) - 1
        self.pool.scales = [finest / 2**i for i in range(coarser + 1)]  # by itself it keeps those of the first images
        self.pool.map_levels = initLevelMapper(level, level + coarser)
        pooled = self.pool(pyramid, list(proposals), [size] * len(proposals))
        x = pooled.view(*proposals.shape[:2], self.box.fc6.in_features)
        x = F.relu(self.box.fc7(F.relu(self.box.fc6(x))))
        classes = self.answer.cls_score(x)
        return {"classes": classes, "boxes": self.answer.bbox_pred(x).unflatten(2, (classes.shape[2], 4))}


def _scale(rows: int, height: int) -> float:
    """Rows of a map for one pixel of images of `height`. Of a map that was rounded up it is that of its convolutions, a
    power of two; one of a branch that sees another size is not.
    """
    stride = 2.0 ** round(math.log2(height / rows))
    return 1 / stride if rows == math.ceil(height / stride) else rows / height


def _moved(output: Mapping[str, Tensor]) -> Tensor:
    """The boxes of the first stage: x0, y0, x1, y1 in pixels, [B, N, 4]."""
    anchors, differences = output["anchors"], output["differences"].float()
    flat = _ANCHOR_CODER.decode_single(differences.flatten(0, 1), anchors.repeat(len(differences), 1))
    return flat.view_as(differences)


def _by_class(output: Mapping[str, Tensor]) -> Tensor:
    """The boxes of each class, background too, at each proposal, [B, P, K + 1, 4]."""
    differences = output["boxes"].float()
    flat = _BOX_CODER.decode_single(differences.flatten(0, 1).flatten(1), output["proposals"].flatten(0, 1))
    return flat.view_as(differences)


class FasterRcnnObjective:
    """The training loss: of each image, cross-entropy of objectness and of classes, and smooth L1 of the boxes of both,
    each a mean over the anchors or proposals of an image by their weights; added up over the samples of a batch.

    Boxes that are flagged as ignored are no object and no background, those of no class are background.
    """

    def __init__(self, masks: Tensor, sources: Sequence[str]):
        """masks [S, K] bool: the classes that each of the `sources` annotates, all of them."""
        assert masks.all(), "a softmax over background cannot leave out classes"
        self.sources = tuple(sources)

    def __call__(self, output: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Output and batch as in `BoxObjective`. Returns the sum over valid samples, float32."""
        assert batch.own_share is None, "boxes are not mixed"
        given = [output["anchors"].new_zeros(0, 6)] * len(output["there"]) if batch.boxes is None else batch.boxes
        loss = _of_anchors(output, given) + _of_proposals(output, given)
        return (loss * batch.valid).sum()


def _of_anchors(output: Mapping[str, Tensor], given: Sequence[Tensor]) -> Tensor:
    """The loss of the first stage, [B]. given: the boxes of each image, [n, 6]."""
    anchors, logits = output["anchors"], output["objectness"].float()
    own, positive, weights = _matched([anchors] * len(given), given, _ANCHORS, True, *_ANCHORS_DRAWN)
    loss = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="none")
    image, place = positive.nonzero(as_tuple=True)
    wanted = _ANCHOR_CODER.encode_single(own[image, place, :4], anchors[place])
    return _mean(loss, output["differences"][image, place], wanted, image, place, weights)


def _of_proposals(output: Mapping[str, Tensor], given: Sequence[Tensor]) -> Tensor:
    """The loss of the second stage, [B]."""
    proposals, logits = output["proposals"], output["classes"].float()
    own, positive, weights = _matched(proposals, given, _PROPOSALS, False, *_PROPOSALS_DRAWN, output["there"])
    label = torch.where(positive, own[..., 4].long() + 1, 0)
    loss = F.cross_entropy(logits.movedim(2, 1), label, reduction="none")
    image, place = positive.nonzero(as_tuple=True)
    wanted = _BOX_CODER.encode_single(own[image, place, :4], proposals[image, place])
    return _mean(loss, output["boxes"][image, place, label[image, place]], wanted, image, place, weights)


def _matched(
    places: Sequence[Tensor] | Tensor,
    given: Sequence[Tensor],
    overlap: tuple[float, float],
    every: bool,
    most: int,
    share: float,
    there: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """For places [N, 4] of each image: the box that each answers for [B, N, 5], whether there is one, bool [B, N], and
    its weight [B, N]: how often torchvision would draw it when it draws `most` of an image, of which objects are at
    most `share`, and background the rest, as far as there is so much.
    """
    found = [match(*one, *overlap, every) for one in zip(places, given, strict=True)]
    own, positive, left_out = map(torch.stack, zip(*found, strict=True))
    negative = ~positive & ~left_out
    if there is not None:
        positive, negative = positive & there, negative & there
    objects, others = positive.sum(1, keepdim=True), negative.sum(1, keepdim=True)
    drawn = objects.clamp(max=int(most * share))
    drawn_others = torch.minimum(others, most - drawn)
    weights = positive * (drawn / objects.clamp_min(1)) + negative * (drawn_others / others.clamp_min(1))
    return own, positive, weights


def _mean(loss: Tensor, found: Tensor, wanted: Tensor, image: Tensor, place: Tensor, weights: Tensor) -> Tensor:
    """The mean by `weights` [B, N] of the loss [B, N] of what is there, and that of the boxes, of which p are there:
    found, wanted [p, 4] at image, place [p]. Returns [B].
    """
    of_boxes = F.smooth_l1_loss(found.float(), wanted, beta=1 / 9, reduction="none").sum(1)
    total = (loss * weights).sum(1).index_add(0, image, of_boxes * weights[image, place])
    return total / weights.sum(1).clamp_min(1)


@torch.no_grad()
def decode(
    output: Mapping[str, Tensor],
    size: tuple[int, int],
    score: float = 0.05,
    nms: float = 0.5,
    candidates: int | None = None,
    most: int = 100,
    annotated: Tensor | None = None,
) -> list[Detections]:
    """What an output of `FasterRcnn` on images of `size`, height and width, means: detections of each image, in its
    pixels, by their probability. `candidates`: all, if none are given. The rest as in `best_of`.
    """
    boxes = clip_boxes_to_image(_by_class(output)[:, :, 1:], size)
    scores = output["classes"].float().softmax(2)[..., 1:]
    real = output["there"][..., None] & ((boxes[..., 2:] - boxes[..., :2]).amin(3) >= _SMALLEST)
    scores = scores.masked_fill(~real, 0)
    return best_of(boxes, scores, [boxes.shape[1]], size, score, nms, candidates or scores[0].numel(), most, annotated)


def drawn(output: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """See `Task.drawn`: an object or none at each anchor, and a class or background at each proposal; where one is, its
    box too.
    """
    _, first = drawn_places(output["objectness"][..., None], _moved(output), generator)
    log_p = output["classes"].float().log_softmax(2)
    labels = torch.multinomial(log_p.detach().exp().flatten(0, 1).cpu(), 1, generator=generator)
    labels = labels.to(log_p.device).view(*log_p.shape[:2], 1)
    own = _by_class(output).take_along_dim(labels[..., None], 2).squeeze(2)
    second = log_p.gather(2, labels) + (labels > 0) * drawn_edges(own, generator)
    return first.flatten(1).sum(1) + (second * output["there"][..., None]).flatten(1).sum(1)
