"""Sensitivities of detectors and segmenters: what their drawn labels are, and files of a budget by them."""

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from tests.xfer.box_data import SHARED
from tests.xfer.tasks.runs import BOXES, KINDS
from xfer.backbone import Branch
from xfer.bundle import open_model
from xfer.model import FusionModel
from xfer.quant.fold import fold
from xfer.surface import Run
from xfer.tasks.detect import Detect
from xfer.tasks.segment import Segment
from xfer.widths import sensitivities

EDGE = 0.1  # of the side of a box: what detection takes the deviation of an edge to be


def test_the_drawn_classes_of_pixels_have_the_divergence_of_their_softmax():
    logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    step = 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    exact = kl_divergence(_pixels(logits), _pixels(logits + step)).sum()
    assert _fisher(Segment(), logits, lambda given: given, step) == pytest.approx(float(exact), rel=0.15)


def _pixels(logits):
    return Categorical(logits=logits.movedim(1, -1))


def test_the_drawn_objects_and_boxes_have_the_divergence_of_what_a_detector_says():
    generator = torch.Generator().manual_seed(0)
    points = torch.tensor([[40.0, 40.0, 8.0], [80.0, 40.0, 8.0]])
    classes = torch.tensor([[[1.0, -20.0], [0.0, -20.0]]])  # one class decides whether there is a box
    boxes, step = (
        torch.tensor([[[2.0, 2.0, 2.0, 2.0], [3.0, 1.0, 1.0, 3.0]]]),
        0.02 * torch.randn(1, 2, 4, generator=generator),
    )
    fixed = {"classes": classes, "points": points, "centerness": torch.zeros(1, 2, 1)}
    there = Bernoulli(logits=classes[..., 0]).probs
    edges = Normal(0.0, EDGE * 4 * 8.0), Normal(8 * step, EDGE * 4 * 8.0)  # all boxes are 4 strides a side
    exact = (there[..., None] * kl_divergence(*edges)).sum()
    found = _fisher(Detect(), boxes, lambda given: {**fixed, "boxes": given}, step)
    assert found == pytest.approx(float(exact), rel=0.2)
    moved = 0.2 * torch.randn(classes.shape, generator=generator)
    exact = kl_divergence(Bernoulli(logits=classes), Bernoulli(logits=classes + moved)).sum()
    found = _fisher(Detect(), classes, lambda given: {**fixed, "boxes": boxes, "classes": given}, moved)
    assert found == pytest.approx(float(exact), rel=0.2)


def test_the_drawn_objects_of_two_stages_have_the_divergence_of_what_a_detector_says():
    """The last proposal is filled up, and counts for nothing."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.tensor([[10.0, 10, 50, 50], [20, 10, 60, 50]])  # 40 pixels each
    classes = torch.tensor([[[0.0, 1.0, -20.0], [0.0, 0.0, 0.0]]])  # of background and of one class
    fixed = {
        "objectness": torch.zeros(1, 2),
        "differences": torch.zeros(1, 2, 4),
        "anchors": sides,
        "proposals": sides[None],
        "there": torch.tensor([[True, False]]),
        "classes": classes,
        "boxes": torch.zeros(1, 2, 3, 4),
    }
    moved = 0.2 * torch.randn(classes.shape, generator=generator)
    exact = kl_divergence(Categorical(logits=classes[0, 0]), Categorical(logits=(classes + moved)[0, 0]))
    found = _fisher(Detect(), classes, lambda given: {**fixed, "classes": given}, moved)
    assert found == pytest.approx(float(exact), rel=0.2)

    step = 0.02 * torch.randn(1, 2, 3, 4, generator=generator)
    step[..., 2:] = 0  # of the centre alone, tenths of a side: all edges move alike
    edges = Normal(0.0, EDGE * 40), Normal(4 * step[0, 0, 1, :2], EDGE * 40)
    exact = 2 * classes.softmax(2)[0, 0, 1] * kl_divergence(*edges).sum()
    found = _fisher(Detect(), fixed["boxes"], lambda given: {**fixed, "boxes": given}, step)
    assert found == pytest.approx(float(exact), rel=0.2)

    logits, step = fixed["objectness"], torch.tensor([[0.3, -0.2]])
    exact = kl_divergence(Bernoulli(logits=logits), Bernoulli(logits=logits + step)).sum()
    found = _fisher(Detect(), logits, lambda given: {**fixed, "objectness": given}, step)
    assert found == pytest.approx(float(exact), rel=0.2)


def _fisher(task, values, output_of, step, draws=3000):
    """Half the mean square of the gradient of drawn labels along a step, one image [1, ...]."""
    given = values.repeat(draws, *[1] * (values.dim() - 1)).requires_grad_()
    made = output_of(given)
    if isinstance(made, dict):
        once = {name: x for name, x in made.items() if name not in SHARED and len(x) != draws}
        made |= {name: x.repeat(draws, *[1] * (x.dim() - 1)) for name, x in once.items()}
    total = task.drawn(made, torch.Generator().manual_seed(2))
    assert total.shape == (draws,)
    (grad,) = torch.autograd.grad(total.sum(), given)
    return float((grad * step).flatten(1).sum(1).square().mean() / 2)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_has_a_sensitivity_also_where_stages_were_not_trained(trained, kind):
    model = fold(open_model(trained(kind).folder).model)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    branch = model.get_submodule("branches.main")
    assert isinstance(branch, Branch)
    branch.num_frozen = 2
    assert isinstance(model, FusionModel)
    found = sensitivities(model, [images])
    assert branch.num_frozen == 2
    assert all(set(row) == set(range(2, 9)) for row in found.values())
    assert all(row[2] > row[8] >= 0 for name, row in found.items())
    if kind in BOXES:
        assert any("bbox" in name and row[2] > 0 for name, row in found.items())


@pytest.mark.parametrize("kind", ["fcos", "fpn"])
def test_a_budget_for_a_detector_and_a_segmenter(trained, tmp_path, kind):
    run = Run(trained(kind).folder)
    eight = run.quantize(bits=8, out=tmp_path / "eight").weights_bytes
    model = run.quantize(budget=eight // 2, out=tmp_path / "half")
    assert 0.95 * (eight // 2) < model.weights_bytes <= eight // 2
    assert len(set(model.bits.values())) > 1
