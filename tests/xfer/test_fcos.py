"""FCOS: torchvision's numbers, and what its loss leaves out; test_box_heads.py has what every head keeps."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tests.xfer.box_data import ALL, SIZES, K, batch, boxes, maps, part
from xfer.heads.fcos import Fcos, FcosObjective, decode, points
from xfer.heads.pyramid import Pyramid


def head(spread: float = 30.0) -> Fcos:
    """A head whose answers differ from point to point."""
    torch.manual_seed(0)
    fcos = Fcos(32, K)
    regression = fcos.head.regression_head
    for last in (fcos.head.classification_head.cls_logits, regression.bbox_reg, regression.bbox_ctrness):
        nn.init.normal_(last.weight, std=0.01 * spread)
    return fcos


class Theirs:
    """torchvision's FCOS on the same maps."""

    def __init__(self, fcos: Fcos, size: tuple[int, int]):
        backbone = nn.Identity()
        backbone.out_channels = 32  # pyright: ignore[reportAttributeAccessIssue]
        settings = {"score_thresh": 0.05, "nms_thresh": 0.6, "topk_candidates": 1000, "detections_per_img": 100}
        self.model, self.size = FCOS(backbone, K, head=fcos.head, **settings), size

    def outputs(self, fcos: Fcos, given: dict[str, Tensor]) -> None:
        pyramid = list(fcos.pyramid(given).values())
        self.output, n = fcos.head(pyramid), len(pyramid[0])
        images = ImageList(torch.zeros(n, 3, *self.size), [self.size] * n)
        self.anchors = self.model.anchor_generator(images, pyramid)
        self.each = [x.shape[-2] * x.shape[-1] for x in pyramid]

    def loss(self, own: Tensor, i: int) -> Tensor:
        targets = [{"boxes": own[:, :4], "labels": own[:, 4].long()}]
        output = {name: value[i : i + 1] for name, value in self.output.items()}
        return sum(self.model.compute_loss(targets, output, self.anchors[i : i + 1], self.each).values())

    def detections(self) -> list[dict[str, Tensor]]:
        output = {name: list(value.split(self.each, 1)) for name, value in self.output.items()}
        anchors = [list(own.split(self.each)) for own in self.anchors]
        return self.model.postprocess_detections(output, anchors, [self.size] * len(anchors))


@pytest.mark.parametrize("size", SIZES)
def test_loss_and_detections_are_those_of_torchvision(size):
    fcos, given = head(), maps(size)
    output, theirs = fcos(given, size), Theirs(fcos, size)
    theirs.outputs(fcos, given)
    for i, n in enumerate((12, 3)):
        own = boxes(size, n, seed=i)
        got = FcosObjective(ALL, ["a"])(part(output, i), batch([own]))
        torch.testing.assert_close(got, theirs.loss(own, i), rtol=1e-5, atol=1e-5)
    for got, want in zip(decode(output, size), theirs.detections(), strict=True):
        assert 10 < len(got.boxes) <= 100
        for name, value in want.items():
            torch.testing.assert_close(getattr(got, name), value)
        assert (got.scores.diff() <= 0).all()
        assert got.labels.dtype == torch.int64


@pytest.mark.parametrize("size", SIZES)
def test_points_are_those_of_torchvision(size):
    given = Pyramid(Fcos.levels, 32, LastLevelP6P7(32, 32))(maps(size))
    sizes = ((8,), (16,), (32,), (64,), (128,))
    images = ImageList(torch.zeros(1, 3, *size), [size])
    (anchors,) = AnchorGenerator(sizes, ((1.0,),) * 5)(images, list(given.values()))
    own = points([(x.shape[-2], x.shape[-1]) for x in given.values()], size)
    assert torch.equal(own[:, :2], (anchors[:, :2] + anchors[:, 2:]) / 2)
    assert torch.equal(own[:, 2], anchors[:, 2] - anchors[:, 0])


def test_pyramid_keeps_sizes_and_adds_two_levels():
    given = maps((100, 100))
    pyramid = Pyramid(("C3", "C4", "C5"), 32, LastLevelP6P7(32, 32))(given)
    assert [(level, tuple(x.shape)) for level, x in pyramid.items()] == [
        (f"P{level}", (2, 32, side, side)) for level, side in zip(range(3, 8), (13, 7, 4, 2, 1), strict=True)
    ]
    without = Pyramid(("C4", "C5"), 32, None)(given)
    assert list(without) == ["P4", "P5"]
    below = Pyramid(("C4", "C5"), 32, None)
    moved = {"C4": given["C4"], "C5": given["C5"] + 1}
    assert not torch.equal(below(given)["P4"], below(moved)["P4"]), "what is coarse reaches what is fine"


def test_ignored_boxes_are_neither_objects_nor_background():
    output = head()(maps((128, 128), images=1), (128, 128))
    logits = output["classes"].detach().requires_grad_()
    crowd = torch.tensor([[20.0, 20, 90, 90, 0, 1]])
    inside = torch.tensor([[40.0, 40, 72, 72, 1, 0]])
    where = output["points"][:, :2]
    covered = ((where > 20) & (where < 90)).all(1)
    for own in (crowd, torch.cat([crowd, inside])):
        (gradient,) = torch.autograd.grad(
            FcosObjective(ALL, ["a"])({**output, "classes": logits}, batch([own])), logits
        )
        heard = gradient[0].any(1)
        positive = gradient[0, :, 1] < 0
        assert heard[~covered].all()
        assert torch.equal(heard[covered], positive[covered])
        assert positive.any() == (len(own) == 2)
    alone = FcosObjective(ALL, ["a"])(output, batch([inside]))
    far = torch.cat([inside, torch.tensor([[120.5, 120.5, 121, 121, 0, 1]])])  # no point is in it
    assert FcosObjective(ALL, ["a"])(output, batch([far])) == alone
