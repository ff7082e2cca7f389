"""RetinaNet: torchvision's numbers, and what its loss leaves out; test_box_heads.py has what every head keeps."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import retinanet as theirs
from torchvision.models.detection.image_list import ImageList

from tests.xfer.box_data import ALL, SIZES, K, batch, boxes, maps, part
from xfer.heads.retinanet import RetinaNet, RetinaNetObjective, decode


def head(spread: float = 30.0) -> RetinaNet:
    """A head whose answers differ from anchor to anchor."""
    torch.manual_seed(0)
    made = RetinaNet(32, K)
    nn.init.normal_(made.head.classification_head.cls_logits.weight, std=0.01 * spread)
    nn.init.normal_(made.head.regression_head.bbox_reg.weight, std=0.01 * spread / 10)
    return made


@pytest.mark.parametrize("size", SIZES)
def test_anchors_loss_and_detections_are_those_of_torchvision(size):
    ours, given = head(), maps(size)
    output, pyramid = ours(given, size), list(ours.pyramid(given).values())
    backbone = nn.Identity()
    backbone.out_channels = 32  # pyright: ignore[reportAttributeAccessIssue]
    settings = {"score_thresh": 0.05, "nms_thresh": 0.5, "topk_candidates": 1000, "detections_per_img": 100}
    model = theirs.RetinaNet(backbone, K, head=ours.head, **settings)
    ours.head.regression_head._loss_type = "giou"  # as in version 2
    anchors = model.anchor_generator(ImageList(torch.zeros(2, 3, *size), [size] * 2), pyramid)
    assert torch.equal(output["anchors"], anchors[0])
    raw = ours.head(pyramid)
    for i, n in enumerate((12, 3)):
        own = boxes(size, n, seed=i)
        targets = [{"boxes": own[:, :4], "labels": own[:, 4].long()}]
        one = {name: value[i : i + 1] for name, value in raw.items()}
        want = sum(model.compute_loss(targets, one, anchors[i : i + 1]).values())
        got = RetinaNetObjective(ALL, ["a"])(part(output, i), batch([own]))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    each = [9 * x.shape[-2] * x.shape[-1] for x in pyramid]
    split = {name: list(value.split(each, 1)) for name, value in raw.items()}
    wanted = model.postprocess_detections(split, [list(own.split(each)) for own in anchors], [size] * 2)
    for got, want in zip(decode(output, size), wanted, strict=True):
        assert 10 < len(got.boxes) <= 100
        for name, value in want.items():
            torch.testing.assert_close(getattr(got, name), value)


def test_ignored_boxes_are_neither_objects_nor_background():
    output = head()(maps((128, 128), images=1), (128, 128))
    logits = output["classes"].detach().requires_grad_()
    crowd, inside = torch.tensor([[10.0, 10, 100, 100, 0, 1]]), torch.tensor([[40.0, 40, 72, 72, 1, 0]])
    anchors = output["anchors"]
    shared = (anchors.clamp(10, 100)[:, 2:] - anchors.clamp(10, 100)[:, :2]).clamp_min(0).prod(1)
    covered = shared > 0.5 * (anchors[:, 2:] - anchors[:, :2]).prod(1)
    assert covered.any()
    for own in (crowd, torch.cat([crowd, inside])):
        loss = RetinaNetObjective(ALL, ["a"])({**output, "classes": logits}, batch([own]))
        (gradient,) = torch.autograd.grad(loss, logits)
        heard, positive = gradient[0].any(1), gradient[0, :, 1] < 0
        assert torch.equal(heard[covered], positive[covered])
        assert positive.any() == (len(own) == 2)
        if len(own) == 1:
            assert heard[~covered].all()
