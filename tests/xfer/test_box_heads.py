"""What every head of a detector keeps: a loss of each image by itself; and, of one stage, silence about what a source
leaves out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from tests.xfer.box_data import ALL, MASKS, SHARED, K, batch, boxes, maps, part
from xfer.heads import faster_rcnn, fcos, retinanet


@dataclass(frozen=True)
class Kind:
    """A head, with its loss, what its numbers mean, and where an output has its places. masks: of classes that its
    sources may annotate.
    """

    build: Callable[[int, int], Any]
    objective: Callable[[Tensor, list[str]], Any]
    decode: Callable[..., Any]
    places: str
    masks: Tensor

    def head(self, spread: float = 30.0) -> Any:
        """Its answers differ from place to place."""
        torch.manual_seed(0)
        made = self.build(32, K)
        for name, last in made.named_modules():
            if name.rpartition(".")[2] in ("cls_logits", "cls_score") or "bbox_" in name:
                nn.init.normal_(last.weight, std=0.001 * spread)
        return made


KINDS = {
    "fcos": Kind(fcos.Fcos, fcos.FcosObjective, fcos.decode, "points", MASKS),
    "retinanet": Kind(retinanet.RetinaNet, retinanet.RetinaNetObjective, retinanet.decode, "anchors", MASKS),
}
TWO_STAGE = Kind(
    faster_rcnn.FasterRcnn, faster_rcnn.FasterRcnnObjective, faster_rcnn.decode, "anchors", ALL.expand(2, K)
)
EVERY = {**KINDS, "faster_rcnn": TWO_STAGE}
SIZE = (128, 128)


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    """Of one stage."""
    return KINDS[request.param]


@pytest.fixture(params=EVERY)
def each(request) -> Kind:
    return EVERY[request.param]


def test_half_precision_leaves_places_and_loss_whole(each):
    head, given, own = each.head(1), maps((224, 224)), [boxes((224, 224), 4), boxes((224, 224), 4, seed=1)]
    objective = each.objective(ALL, ["a"])
    whole = head(given, (224, 224))
    with torch.autocast("cpu", torch.bfloat16):
        output = head(given, (224, 224))
        loss = objective(output, batch(own))
    assert output["classes"].dtype == torch.bfloat16
    assert loss.dtype == output[each.places].dtype == torch.float32
    assert torch.equal(output[each.places], whole[each.places])
    torch.testing.assert_close(loss, objective(whole, batch(own)), rtol=0.02, atol=0)
    loss.backward()
    assert each.decode(output, (224, 224))[0].boxes.dtype == torch.float32


def test_widths_that_cannot_be_normalised_in_groups_are_refused(kind):
    with pytest.raises(ValueError, match="multiple of 32"):
        kind.build(48, K)


def test_gradient_on_classes_a_source_does_not_annotate_is_exactly_zero(kind):
    output = kind.head()(maps(SIZE), SIZE)
    logits = output["classes"].detach().requires_grad_()
    own = [boxes(SIZE, 9), boxes(SIZE, 9)]
    own = [rows[MASKS[i][rows[:, 4].long()]] for i, rows in enumerate(own)]
    assert all(len(rows) for rows in own)
    kind.objective(MASKS, ["a", "b"])({**output, "classes": logits}, batch(own, [0, 1])).backward()
    assert logits.grad is not None
    assert (logits.grad.transpose(1, 2)[~MASKS] == 0).all()
    assert (logits.grad.transpose(1, 2)[MASKS] != 0).any(1).all()


def test_only_the_naive_loss_pushes_down_what_a_source_does_not_annotate(kind):
    """Source a annotates classes 0 and 1; objects of class 2 are on its images, unannotated."""

    def of_class_2(head: Any) -> Tensor:
        return head(maps(SIZE), SIZE)["classes"][..., 2].mean()

    def after(masks: Tensor) -> Tensor:
        head, objective = kind.head(1), kind.objective(masks, ["a"])
        own = [rows[rows[:, 4] < 2] for rows in (boxes(SIZE, 9), boxes(SIZE, 9, seed=1))]
        before = of_class_2(head)
        descent = torch.optim.Adam(head.head.classification_head.cls_logits.parameters(), 0.01)
        for _ in range(5):
            descent.zero_grad()
            objective(head(maps(SIZE), SIZE), batch(own)).backward()
            descent.step()
        return of_class_2(head) - before

    assert after(ALL) < -0.05
    assert after(MASKS[:1]) == 0


def test_the_loss_of_a_batch_is_the_sum_of_its_samples(each):
    output = each.head()(maps(SIZE, images=4), SIZE)
    own = [boxes(SIZE, 9), boxes(SIZE, 0), boxes(SIZE, 2, seed=1), boxes(SIZE, 4, seed=2)]
    objective, sources = each.objective(each.masks, ["a", "b"]), [0, 1, 1, 0]
    whole = objective(output, batch(own, sources))
    single = [objective(part(output, i), batch([own[i]], [sources[i]])) for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(single).sum())
    filled = objective(output, batch(own, sources, [True, False, True, False]))
    torch.testing.assert_close(filled, single[0] + single[2])


def test_a_batch_can_be_split_as_training_splits_it(each):
    output, given = each.head()(maps(SIZE, images=3), SIZE), batch([boxes(SIZE, n) for n in (3, 0, 2)])
    objective, (first, last) = each.objective(ALL, ["a"]), given.split(2)
    parts = objective(part(output, slice(0, 2)), first) + objective(part(output, slice(2, 3)), last)
    torch.testing.assert_close(parts, objective(output, given))


def test_images_without_boxes_are_background(each):
    head = each.head(1)
    output, objective = head(maps(SIZE), SIZE), each.objective(ALL, ["a"])
    none = objective(output, batch(None, [0, 0]))
    assert none > 0
    assert none == objective(output, batch([torch.zeros(0, 6)] * 2))
    none.backward()
    assert all(p.grad is not None for p in head.parameters()), "ranks meet in the backward pass"
    grads = {name: p.grad for name, p in head.named_parameters()}
    assert all(grad.gt(0).all() for name, grad in grads.items() if name.endswith("cls_logits.bias"))
    assert not any(grad.any() for name, grad in grads.items() if "bbox_" in name)
    unknown = boxes(SIZE, 3)
    unknown[:, 4] = -1
    assert objective(output, batch([unknown, unknown])) == none


def test_what_is_not_a_number_is_no_detection(each):
    output = each.head()(maps(SIZE), SIZE)
    whole = each.decode(output, SIZE)
    for name in {"classes", "boxes", "centerness"} & output.keys():
        broken = {key: value.detach().clone() for key, value in output.items()}
        broken[name][0] = torch.nan
        found = each.decode(broken, SIZE)
        assert len(found[0].boxes) == 0
        torch.testing.assert_close(found[1].boxes, whole[1].boxes)


def test_classes_that_may_not_be_answers_take_no_places(each):
    found = each.decode(each.head()(maps(SIZE), SIZE), SIZE, score=0.001, most=20, annotated=MASKS)
    assert all(len(one.boxes) == 20 and MASKS[i][one.labels].all() for i, one in enumerate(found))


def test_a_few_images_are_learnt(kind):
    given = maps(SIZE)
    own = [torch.tensor([[16.0, 16, 56, 72, 1, 0]]), torch.tensor([[40.0, 30, 110, 120, 3, 0], [4, 90, 30, 120, 0, 0]])]
    torch.manual_seed(0)
    head, objective = kind.build(32, K), kind.objective(ALL, ["a"])
    descent = torch.optim.Adam(head.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        loss = objective(head(given, SIZE), batch(own))
        descent.zero_grad()
        loss.backward()
        descent.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for found, true in zip(kind.decode(head.eval()(given, SIZE), SIZE), own, strict=True):
        assert (box_iou(true[:, :4], found.boxes[: len(true)]).amax(1) > 0.5).all()
        assert sorted(found.labels[: len(true)].tolist()) == sorted(true[:, 4].long().tolist())


def test_one_image_has_the_output_that_it_has_among_others(each):
    """Also a small one, whose coarsest map is a single point."""
    head, given = each.head(), maps((64, 64), images=3)
    among, alone = head(given, (64, 64)), head({level: x[1:2] for level, x in given.items()}, (64, 64))
    for name, value in part(among, slice(1, 2)).items():
        if name not in SHARED:
            value = value[:, : alone[name].shape[1]]  # proposals are filled up to the longest of a batch
        torch.testing.assert_close(alone[name], value)
