"""FCOS: torchvision's numbers, a loss of each image by itself, and silence about what a source does not annotate."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from shards.loading.batch import Batch
from xfer.heads.fcos import Fcos, FcosObjective, decode, points
from xfer.heads.pyramid import Pyramid

K = 5
ALL = torch.ones(1, K, dtype=torch.bool)
SIZES = [(128, 128), (224, 224), (96, 160), (100, 100)]


def maps(size: tuple[int, int], images: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """As a ResNet makes them: each half the size of the one before, rounded up."""
    drawn = torch.Generator().manual_seed(seed)
    shapes = {level: [-(-side // 2**level) for side in size] for level in (3, 4, 5)}
    return {f"C{level}": torch.randn(images, 32, *shape, generator=drawn) for level, shape in shapes.items()}


def head(spread: float = 30.0) -> Fcos:
    """A head whose answers differ from point to point."""
    torch.manual_seed(0)
    fcos = Fcos(32, K)
    regression = fcos.head.regression_head
    for last in (fcos.head.classification_head.cls_logits, regression.bbox_reg, regression.bbox_ctrness):
        nn.init.normal_(last.weight, std=0.01 * spread)
    return fcos


def boxes(size: tuple[int, int], n: int, seed: int = 0) -> Tensor:
    """[n, 6], none ignored."""
    drawn = torch.Generator().manual_seed(seed)
    whole = torch.tensor([size[1], size[0]])
    corners = (torch.rand(n, 2, 2, generator=drawn) * whole).sort(1).values
    labels = torch.randint(0, K, (n, 1), generator=drawn)
    return torch.cat([corners.flatten(1), labels, torch.zeros(n, 1)], 1)


def batch(own: list[Tensor] | None, sources: list[int] | None = None, valid: list[bool] | None = None) -> Batch:
    n = len(own) if own is not None else len(sources or [0])
    return Batch(
        torch.zeros(n, 3, 8, 8, dtype=torch.uint8),
        torch.full((n,), -1),
        torch.tensor(sources or [0] * n),
        torch.arange(n),
        torch.tensor(valid or [True] * n),
        None if own is None else tuple(own),
    )


def part(output: dict[str, Tensor], i: int | slice) -> dict[str, Tensor]:
    own = slice(i, i + 1) if isinstance(i, int) else i
    return {name: value if name == "points" else value[own] for name, value in output.items()}


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
    given = Pyramid(Fcos.levels, 32, extra=True)(maps(size))
    sizes = ((8,), (16,), (32,), (64,), (128,))
    images = ImageList(torch.zeros(1, 3, *size), [size])
    (anchors,) = AnchorGenerator(sizes, ((1.0,),) * 5)(images, list(given.values()))
    own = points([(x.shape[-2], x.shape[-1]) for x in given.values()], size)
    assert torch.equal(own[:, :2], (anchors[:, :2] + anchors[:, 2:]) / 2)
    assert torch.equal(own[:, 2], anchors[:, 2] - anchors[:, 0])


def test_half_precision_leaves_points_and_loss_whole():
    fcos, given, own = head(1), maps((224, 224)), [boxes((224, 224), 4), boxes((224, 224), 4, seed=1)]
    whole = fcos(given, (224, 224))
    with torch.autocast("cpu", torch.bfloat16):
        output = fcos(given, (224, 224))
        loss = FcosObjective(ALL, ["a"])(output, batch(own))
    assert output["classes"].dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.equal(output["points"], whole["points"])
    assert output["points"].dtype == torch.float32
    torch.testing.assert_close(loss, FcosObjective(ALL, ["a"])(whole, batch(own)), rtol=0.02, atol=0)
    loss.backward()
    assert decode(output, (224, 224))[0].boxes.dtype == torch.float32


def test_pyramid_keeps_sizes_and_adds_two_levels():
    given = maps((100, 100))
    pyramid = Pyramid(("C3", "C4", "C5"), 32, extra=True)(given)
    assert [(level, tuple(x.shape)) for level, x in pyramid.items()] == [
        (f"P{level}", (2, 32, side, side)) for level, side in zip(range(3, 8), (13, 7, 4, 2, 1), strict=True)
    ]
    without = Pyramid(("C4", "C5"), 32, extra=False)(given)
    assert list(without) == ["P4", "P5"]
    below = Pyramid(("C4", "C5"), 32, extra=False)
    moved = {"C4": given["C4"], "C5": given["C5"] + 1}
    assert not torch.equal(below(given)["P4"], below(moved)["P4"]), "what is coarse reaches what is fine"


def test_widths_that_cannot_be_normalised_in_groups_are_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        Fcos(48, K)


MASKS = torch.tensor([[True, True, False, False, False], [False, True, True, True, True]])


def test_gradient_on_classes_a_source_does_not_annotate_is_exactly_zero():
    output = head()(maps((128, 128)), (128, 128))
    logits = output["classes"].detach().requires_grad_()
    own = [boxes((128, 128), 9), boxes((128, 128), 9)]
    own = [rows[MASKS[i][rows[:, 4].long()]] for i, rows in enumerate(own)]
    assert all(len(rows) for rows in own)
    FcosObjective(MASKS, ["a", "b"])({**output, "classes": logits}, batch(own, [0, 1])).backward()
    assert logits.grad is not None
    assert (logits.grad.transpose(1, 2)[~MASKS] == 0).all()
    assert (logits.grad.transpose(1, 2)[MASKS] != 0).any(1).all()


def test_only_the_naive_loss_pushes_down_what_a_source_does_not_annotate():
    """Source a annotates classes 0 and 1; objects of class 2 are on its images, unannotated."""

    def after(masks: Tensor) -> Tensor:
        fcos, given = head(1), maps((128, 128))
        own = [rows[rows[:, 4] < 2] for rows in (boxes((128, 128), 9), boxes((128, 128), 9, seed=1))]
        before = fcos(given, (128, 128))["classes"][..., 2].mean()
        descent = torch.optim.Adam(fcos.head.classification_head.cls_logits.parameters(), 0.01)
        for _ in range(5):
            descent.zero_grad()
            FcosObjective(masks, ["a"])(fcos(given, (128, 128)), batch(own)).backward()
            descent.step()
        return fcos(given, (128, 128))["classes"][..., 2].mean() - before

    assert after(ALL) < -0.05
    assert after(MASKS[:1]) == 0


def test_the_loss_of_a_batch_is_the_sum_of_its_samples():
    output = head()(maps((128, 128), images=4), (128, 128))
    own = [boxes((128, 128), 9), boxes((128, 128), 0), boxes((128, 128), 2, seed=1), boxes((128, 128), 4, seed=2)]
    objective, sources = FcosObjective(MASKS, ["a", "b"]), [0, 1, 1, 0]
    whole = objective(output, batch(own, sources))
    single = [objective(part(output, i), batch([own[i]], [sources[i]])) for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(single).sum())
    filled = objective(output, batch(own, sources, [True, False, True, False]))
    torch.testing.assert_close(filled, single[0] + single[2])


def test_images_without_boxes_are_background():
    fcos = head(1)
    output, objective = fcos(maps((128, 128)), (128, 128)), FcosObjective(ALL, ["a"])
    none = objective(output, batch(None, [0, 0]))
    assert none > 0
    assert none == objective(output, batch([torch.zeros(0, 6)] * 2))
    none.backward()
    assert all(p.grad is not None for p in fcos.parameters()), "ranks meet in the backward pass"
    assert fcos.head.classification_head.cls_logits.bias.grad.gt(0).all()
    assert not fcos.head.regression_head.bbox_reg.weight.grad.any()
    unknown = boxes((128, 128), 3)
    unknown[:, 4] = -1
    assert objective(output, batch([unknown, unknown])) == none


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


def test_what_is_not_a_number_is_no_detection():
    size = (128, 128)
    output = head()(maps(size), size)
    whole = decode(output, size)
    for name in ("classes", "boxes", "centerness"):
        broken = {key: value.detach().clone() for key, value in output.items()}
        broken[name][0] = torch.nan
        found = decode(broken, size)
        assert len(found[0].boxes) == 0
        torch.testing.assert_close(found[1].boxes, whole[1].boxes)


def test_classes_that_may_not_be_answers_take_no_places():
    size = (128, 128)
    output = head()(maps(size), size)
    masks = MASKS[[0, 1]]
    found = decode(output, size, most=20, annotated=masks)
    assert all(len(one.boxes) == 20 and masks[i][one.labels].all() for i, one in enumerate(found))


def test_a_few_images_are_learnt():
    size = (128, 128)
    given = maps(size)
    own = [torch.tensor([[16.0, 16, 56, 72, 1, 0]]), torch.tensor([[40.0, 30, 110, 120, 3, 0], [4, 90, 30, 120, 0, 0]])]
    torch.manual_seed(0)
    fcos, objective = Fcos(32, K), FcosObjective(ALL, ["a"])
    descent = torch.optim.Adam(fcos.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = objective(fcos(given, size), batch(own))
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for found, true in zip(decode(fcos.eval()(given, size), size), own, strict=True):
        first = found.boxes[: len(true)]
        assert (box_iou(true[:, :4], first).amax(1) > 0.5).all()
        assert sorted(found.labels[: len(true)].tolist()) == sorted(true[:, 4].long().tolist())


def test_one_image_has_the_output_that_it_has_among_others():
    """Also a small one, whose coarsest map is a single point."""
    fcos, given = head(), maps((64, 64), images=3)
    among, alone = fcos(given, (64, 64)), fcos({level: x[1:2] for level, x in given.items()}, (64, 64))
    for name, value in part(among, slice(1, 2)).items():
        torch.testing.assert_close(alone[name], value)


def test_a_batch_can_be_split_as_training_splits_it():
    output, given = head()(maps((128, 128), images=3), (128, 128)), batch([boxes((128, 128), n) for n in (3, 0, 2)])
    objective, (first, last) = FcosObjective(ALL, ["a"]), given.split(2)
    whole = objective(output, given)
    torch.testing.assert_close(
        objective(part(output, slice(0, 2)), first) + objective(part(output, slice(2, 3)), last), whole
    )
