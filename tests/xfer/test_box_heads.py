"""What every head of a detector keeps: a loss of each image by itself, silence about what a source leaves out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from tests.xfer.box_data import ALL, MASKS, K, batch, boxes, maps, part
from xfer.heads import fcos, retinanet
from xfer.heads.detections import BoxHead, BoxObjective


@dataclass(frozen=True)
class Kind:
    """A head, with its loss and what its numbers mean."""

    build: Callable[[int, int], BoxHead]
    objective: Callable[[Tensor, list[str]], BoxObjective]
    decode: Callable[..., Any]

    def head(self, spread: float = 30.0) -> BoxHead:
        """Its answers differ from place to place."""
        torch.manual_seed(0)
        made = self.build(32, K)
        regression = [part for name, part in made.head.regression_head.named_children() if name.startswith("bbox_")]
        for last in (made.head.classification_head.cls_logits, *regression):
            nn.init.normal_(last.weight, std=0.001 * spread)
        return made


KINDS = {
    "fcos": Kind(fcos.Fcos, fcos.FcosObjective, fcos.decode),
    "retinanet": Kind(retinanet.RetinaNet, retinanet.RetinaNetObjective, retinanet.decode),
}
SIZE = (128, 128)


@pytest.fixture(params=KINDS)
def kind(request) -> Kind:
    return KINDS[request.param]


def test_half_precision_leaves_places_and_loss_whole(kind):
    head, given, own = kind.head(1), maps((224, 224)), [boxes((224, 224), 4), boxes((224, 224), 4, seed=1)]
    objective = kind.objective(ALL, ["a"])
    whole = head(given, (224, 224))
    with torch.autocast("cpu", torch.bfloat16):
        output = head(given, (224, 224))
        loss = objective(output, batch(own))
    assert output["classes"].dtype == torch.bfloat16
    assert loss.dtype == output[objective.places].dtype == torch.float32
    assert torch.equal(output[objective.places], whole[objective.places])
    torch.testing.assert_close(loss, objective(whole, batch(own)), rtol=0.02, atol=0)
    loss.backward()
    assert kind.decode(output, (224, 224))[0].boxes.dtype == torch.float32


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

    def of_class_2(head: BoxHead) -> Tensor:
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


def test_the_loss_of_a_batch_is_the_sum_of_its_samples(kind):
    output = kind.head()(maps(SIZE, images=4), SIZE)
    own = [boxes(SIZE, 9), boxes(SIZE, 0), boxes(SIZE, 2, seed=1), boxes(SIZE, 4, seed=2)]
    objective, sources = kind.objective(MASKS, ["a", "b"]), [0, 1, 1, 0]
    whole = objective(output, batch(own, sources))
    single = [objective(part(output, i), batch([own[i]], [sources[i]])) for i in range(4)]
    torch.testing.assert_close(whole, torch.stack(single).sum())
    filled = objective(output, batch(own, sources, [True, False, True, False]))
    torch.testing.assert_close(filled, single[0] + single[2])


def test_a_batch_can_be_split_as_training_splits_it(kind):
    output, given = kind.head()(maps(SIZE, images=3), SIZE), batch([boxes(SIZE, n) for n in (3, 0, 2)])
    objective, (first, last) = kind.objective(ALL, ["a"]), given.split(2)
    parts = objective(part(output, slice(0, 2)), first) + objective(part(output, slice(2, 3)), last)
    torch.testing.assert_close(parts, objective(output, given))


def test_images_without_boxes_are_background(kind):
    head = kind.head(1)
    output, objective = head(maps(SIZE), SIZE), kind.objective(ALL, ["a"])
    none = objective(output, batch(None, [0, 0]))
    assert none > 0
    assert none == objective(output, batch([torch.zeros(0, 6)] * 2))
    none.backward()
    assert all(p.grad is not None for p in head.parameters()), "ranks meet in the backward pass"
    assert head.head.classification_head.cls_logits.bias.grad.gt(0).all()
    assert not head.head.regression_head.bbox_reg.weight.grad.any()
    unknown = boxes(SIZE, 3)
    unknown[:, 4] = -1
    assert objective(output, batch([unknown, unknown])) == none


def test_what_is_not_a_number_is_no_detection(kind):
    output = kind.head()(maps(SIZE), SIZE)
    whole = kind.decode(output, SIZE)
    for name in {"classes", "boxes", "centerness"} & output.keys():
        broken = {key: value.detach().clone() for key, value in output.items()}
        broken[name][0] = torch.nan
        found = kind.decode(broken, SIZE)
        assert len(found[0].boxes) == 0
        torch.testing.assert_close(found[1].boxes, whole[1].boxes)


def test_classes_that_may_not_be_answers_take_no_places(kind):
    found = kind.decode(kind.head()(maps(SIZE), SIZE), SIZE, score=0.001, most=20, annotated=MASKS)
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


def test_one_image_has_the_output_that_it_has_among_others(kind):
    """Also a small one, whose coarsest map is a single point."""
    head, given = kind.head(), maps((64, 64), images=3)
    among, alone = head(given, (64, 64)), head({level: x[1:2] for level, x in given.items()}, (64, 64))
    for name, value in part(among, slice(1, 2)).items():
        torch.testing.assert_close(alone[name], value)
