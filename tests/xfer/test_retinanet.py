"""RetinaNet: torchvision's numbers, a loss of each image by itself, silence about what a source does not annotate."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import retinanet as theirs
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from tests.xfer.test_fcos import ALL, MASKS, SIZES, K, batch, boxes, maps
from xfer.heads.retinanet import RetinaNet, RetinaNetObjective, decode

SHARED = ("anchors", "level")  # of all images


def head(spread: float = 30.0) -> RetinaNet:
    """A head whose answers differ from anchor to anchor."""
    torch.manual_seed(0)
    made = RetinaNet(32, K)
    nn.init.normal_(made.head.classification_head.cls_logits.weight, std=0.01 * spread)
    nn.init.normal_(made.head.regression_head.bbox_reg.weight, std=0.01 * spread / 10)
    return made


def part(output: dict[str, Tensor], i: int | slice) -> dict[str, Tensor]:
    own = slice(i, i + 1) if isinstance(i, int) else i
    return {name: value if name in SHARED else value[own] for name, value in output.items()}


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


def test_gradient_on_classes_a_source_does_not_annotate_is_exactly_zero():
    output = head()(maps((128, 128)), (128, 128))
    logits = output["classes"].detach().requires_grad_()
    own = [boxes((128, 128), 9), boxes((128, 128), 9)]
    own = [rows[MASKS[i][rows[:, 4].long()]] for i, rows in enumerate(own)]
    RetinaNetObjective(MASKS, ["a", "b"])({**output, "classes": logits}, batch(own, [0, 1])).backward()
    assert logits.grad is not None
    assert (logits.grad.transpose(1, 2)[~MASKS] == 0).all()
    assert (logits.grad.transpose(1, 2)[MASKS] != 0).any(1).all()


def test_the_loss_of_a_batch_is_the_sum_of_its_samples():
    output = head()(maps((128, 128), images=4), (128, 128))
    own = [boxes((128, 128), 9), boxes((128, 128), 0), boxes((128, 128), 2, seed=1), boxes((128, 128), 4, seed=2)]
    objective, sources = RetinaNetObjective(MASKS, ["a", "b"]), [0, 1, 1, 0]
    whole = objective(output, batch(own, sources))
    single = [objective(part(output, i), batch([own[i]], [sources[i]])) for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(single).sum())
    filled = objective(output, batch(own, sources, [True, False, True, False]))
    torch.testing.assert_close(filled, single[0] + single[2])


def test_images_without_boxes_are_background():
    ours = head(1)
    output, objective = ours(maps((128, 128)), (128, 128)), RetinaNetObjective(ALL, ["a"])
    none = objective(output, batch(None, [0, 0]))
    assert none == objective(output, batch([torch.zeros(0, 6)] * 2)) > 0
    none.backward()
    assert all(p.grad is not None for p in ours.parameters()), "ranks meet in the backward pass"
    unknown = boxes((128, 128), 3)
    unknown[:, 4] = -1
    assert objective(output, batch([unknown, unknown])) == none


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


def test_a_few_images_are_learnt():
    size = (128, 128)
    given = maps(size)
    own = [torch.tensor([[16.0, 16, 56, 72, 1, 0]]), torch.tensor([[40.0, 30, 110, 120, 3, 0], [4, 90, 30, 120, 0, 0]])]
    torch.manual_seed(0)
    ours, objective = RetinaNet(32, K), RetinaNetObjective(ALL, ["a"])
    descent = torch.optim.Adam(ours.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = objective(ours(given, size), batch(own))
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for found, true in zip(decode(ours.eval()(given, size), size), own, strict=True):
        assert (box_iou(true[:, :4], found.boxes[: len(true)]).amax(1) > 0.5).all()
        assert sorted(found.labels[: len(true)].tolist()) == sorted(true[:, 4].long().tolist())


def test_one_image_has_the_output_that_it_has_among_others():
    """Also a small one, whose coarsest map is a single point."""
    ours, given = head(), maps((64, 64), images=3)
    among, alone = ours(given, (64, 64)), ours({level: x[1:2] for level, x in given.items()}, (64, 64))
    for name, value in part(among, slice(1, 2)).items():
        torch.testing.assert_close(alone[name], value)


def test_half_precision_leaves_anchors_and_loss_whole():
    ours, own = head(1), [boxes((224, 224), 4), boxes((224, 224), 4, seed=1)]
    given = maps((224, 224))
    with torch.autocast("cpu", torch.bfloat16):
        output = ours(given, (224, 224))
        loss = RetinaNetObjective(ALL, ["a"])(output, batch(own))
    assert output["anchors"].dtype == loss.dtype == torch.float32
    torch.testing.assert_close(
        loss, RetinaNetObjective(ALL, ["a"])(ours(given, (224, 224)), batch(own)), rtol=0.02, atol=0
    )
    assert decode(output, (224, 224))[0].boxes.dtype == torch.float32


def test_a_width_that_groups_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        RetinaNet(48, K)
