"""Faster R-CNN: torchvision's numbers, and what its loss leaves out; test_box_heads.py has what every head keeps."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads

from tests.xfer.box_data import ALL, SIZES, K, batch, maps, part
from xfer.heads import faster_rcnn
from xfer.heads.faster_rcnn import FasterRcnn, FasterRcnnObjective, decode


def head(spread: float = 30.0) -> FasterRcnn:
    """A head whose answers differ from place to place."""
    torch.manual_seed(0)
    made = FasterRcnn(32, K)
    for name, last in made.named_modules():
        std = {"cls_logits": 0.01, "cls_score": 0.01, "bbox_pred": 0.001}.get(name.rpartition(".")[2])
        if std:
            nn.init.normal_(last.get_parameter("weight"), std=std * spread)
    return made


class Theirs:
    """torchvision's two stages with the layers of `ours`."""

    def __init__(self, ours: FasterRcnn, size: tuple[int, int]):
        self.first, self.size = ours.rpn, size
        layers = ours.pool, ours.box, ours.answer
        self.second = RoIHeads(*layers, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 100)
        self.second.add_gt_proposals = lambda proposals, gt_boxes: proposals  # a head does not see them

    def targets(self, own: Tensor) -> list[dict[str, Tensor]]:
        return [{"boxes": own[:, :4], "labels": own[:, 4].long() + 1}]

    def losses(self, pyramid: dict[str, Tensor], proposals: Tensor, own: Tensor) -> Tensor:
        """Of one image, of both stages [2]: draws of the global random state."""
        images = ImageList(torch.zeros(1, 3, *self.size), [self.size])
        _, first = self.first.train()(images, pyramid, self.targets(own))
        _, second = self.second.train()(pyramid, [proposals], [self.size], self.targets(own))
        return torch.stack([sum(first.values()), sum(second.values())])


def crowded(output: dict[str, Tensor], count: int) -> Tensor:
    """Boxes that so many proposals of the first image answer for, [n, 6]."""
    proposals = output["proposals"][0][output["there"][0]]
    own = proposals[torch.linspace(0, len(proposals) - 1, count).long()]
    return torch.cat([own, torch.arange(count)[:, None] % K, torch.zeros(count, 1)], 1)


@pytest.mark.parametrize("size", SIZES)
def test_proposals_and_detections_are_those_of_torchvision(size):
    ours, given = head().eval(), maps(size)
    output, pyramid, theirs = ours(given, size), ours.pyramid(given), Theirs(ours, size)
    ours.pool.scales = ours.pool.map_levels = None  # torchvision finds them by itself
    found, _ = theirs.first(ImageList(torch.zeros(2, 3, *size), [size] * 2), pyramid)
    for i, one in enumerate(found):
        assert torch.equal(output["proposals"][i, : len(one)], one)
        assert output["there"][i].sum() == len(one) > 300
    wanted, _ = theirs.second.eval()(pyramid, found, [size] * 2)
    for got, want in zip(decode(output, size), wanted, strict=True):
        assert 10 < len(got.boxes) <= 100
        torch.testing.assert_close(got.boxes, want["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(got.scores, want["scores"])
        assert torch.equal(got.labels + 1, want["labels"])


@pytest.mark.parametrize("count", [12, 200])
def test_the_loss_is_that_of_torchvision_by_the_mean_of_its_draws(count):
    """Of few objects all proposals are drawn, so the second stage has exactly its loss; of many, a part of them."""
    size, ours = (128, 128), head()
    output = ours(maps(size), size)
    own, pyramid = crowded(output, count), ours.pyramid({level: x[:1] for level, x in maps(size).items()})
    first, second = (one(part(output, 0), [own]) for one in (faster_rcnn._of_anchors, faster_rcnn._of_proposals))
    whole = FasterRcnnObjective(ALL, ["a"])(part(output, 0), batch([own]))
    assert torch.equal(whole, (first + second).sum())
    with torch.no_grad():
        theirs, proposals = Theirs(ours, size), output["proposals"][0][output["there"][0]]
        draws = torch.stack([theirs.losses(pyramid, proposals, own) for _ in range(60)]).double()
    error = draws.std(0) / len(draws) ** 0.5
    assert error[0] < 0.02 * draws[:, 0].mean()
    assert abs(first.item() - draws[:, 0].mean()) < 4 * error[0]
    if count == 12:
        torch.testing.assert_close(second[0], draws[0, 1].float())
        assert error[1] < 1e-6
    else:
        assert 0 < error[1] < 0.01 * draws[:, 1].mean()
        assert abs(second.item() - draws[:, 1].mean()) < 4 * error[1]


@pytest.mark.parametrize("stage", ["objectness", "classes"])
def test_ignored_boxes_are_neither_objects_nor_background(stage):
    output = head()(maps((128, 128), images=1), (128, 128))
    places = output["anchors"] if stage == "objectness" else output["proposals"][0]
    logits = output[stage].detach().requires_grad_()
    crowd, inside = torch.tensor([[10.0, 10, 100, 100, 0, 1]]), torch.tensor([[40.0, 40, 72, 72, 1, 0]])
    shared = (places.clamp(10, 100)[:, 2:] - places.clamp(10, 100)[:, :2]).clamp_min(0).prod(1)
    covered = shared > 0.5 * (places[:, 2:] - places[:, :2]).prod(1)
    assert covered.any()
    assert not covered.all()
    for own in (crowd, torch.cat([crowd, inside])):
        loss = FasterRcnnObjective(ALL, ["a"])({**output, stage: logits}, batch([own]))
        (gradient,) = torch.autograd.grad(loss, logits)
        gradient = gradient[0].view(len(places), -1)
        positive = gradient[:, 0] < 0 if stage == "objectness" else gradient[:, 2] < 0
        assert torch.equal(gradient[covered].any(1), positive[covered])
        assert positive.any() == (len(own) == 2)
        assert gradient[~covered & ~positive].any(1).sum() > 100


def test_a_true_box_is_no_proposal_and_what_is_filled_up_does_not_count():
    output = head()(maps((64, 64)), (64, 64))
    assert len(set(output["there"].sum(1).tolist())) == 2, "one of the two is filled up"
    own = [torch.tensor([[1.0, 1, 7, 3, 2, 0]])] * 2  # a box that is near no proposal
    logits = output["classes"].detach().requires_grad_()
    FasterRcnnObjective(ALL, ["a"])({**output, "classes": logits}, batch(own)).backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad.any(2), output["there"])
    assert (logits.grad[..., 1:] >= 0).all()
    anything = torch.where(output["there"][..., None], output["classes"], 100.0)
    for one, other in zip(decode(output, (64, 64)), decode({**output, "classes": anything}, (64, 64)), strict=True):
        assert torch.equal(one.boxes, other.boxes)


@pytest.mark.parametrize(("size", "rows"), [(64, 16), (64, 12), (100, 25), (98, 25)])
def test_what_is_cut_out_of_the_maps_lies_where_the_proposal_does(size, rows):
    """Also where a branch sees the image at a size of its own, and where maps were rounded up."""
    ours = head()
    stride = 4.0 if rows == -(-size // 4) else size / rows
    shapes = [-(-rows // 2**i) for i in range(4)]
    pyramid = {  # at each place how far right it is, in pixels
        f"P{2 + i}": (stride * 2**i * torch.arange(side)).expand(1, 32, side, side) for i, side in enumerate(shapes)
    }
    seen = []
    ours.box.fc6.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    ours._second(pyramid, torch.tensor([[[8.0, 8, 40, 40], [20, 4, 28, 12]]]), (size, size))
    assert seen[0].view(2, -1).mean(1).tolist() == pytest.approx([24, 24], abs=1e-3)
