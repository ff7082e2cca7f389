import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.xfer.quant.nets import TwoBranches, images, shake, small
from xfer.quant import (
    best_within,
    correct,
    dequantize,
    fold,
    front,
    layer_bytes,
    quantize,
    quantize_weight,
    sensitivity,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = shake(TwoBranches()).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    x, labels = _shapes(512, seed=4)
    for _ in range(6):
        for shown, targets in zip(x.split(32), labels.split(32), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(shown), targets).backward()
            optimizer.step()
    return fold(model)


def test_it_is_the_quadratic_form_of_gradients_per_image():
    model, x = fold(small()), images(4)
    values = sensitivity(model, [x], _generator(), widths=(3,), corrected=False)
    draws = torch.multinomial(model(x).softmax(1).detach(), 1, generator=_generator())
    for name in ("branches.head.conv1", "branches.b.layer4.0.downsample.0", "projections.b.0", "head"):
        weight = model.get_submodule(name).weight
        moved = dequantize(quantize_weight(weight, 3)) - weight
        total = 0.0
        for image, label in zip(x, draws, strict=True):
            score = model(image[None]).log_softmax(1)[0, label]
            total += ((torch.autograd.grad(score.sum(), weight)[0] * moved.detach()).sum() ** 2).item()
        assert values[name][3] == pytest.approx(total / 8, rel=1e-3)


def test_nothing_of_the_model_changes_and_frozen_models_work():
    model = fold(small()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    first = sensitivity(model, [images()], _generator(), widths=(2, 8))
    assert first == sensitivity(model, [images()], _generator(), widths=(2, 8))
    assert all(row[2] > row[8] >= 0 for row in first.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_it_predicts_the_divergence_that_quantizing_one_layer_causes(trained):
    model, x = trained, _shapes(128, seed=5)[0]
    values = sensitivity(model, x.split(32), _generator(), widths=(4,), corrected=False)
    predicted, measured = [], []
    for name, row in values.items():
        quantized = quantize(copy.deepcopy(model), {name: 4})
        predicted.append(row[4])
        measured.append(_divergence(quantized.model, model, x))
    rank = np.corrcoef(np.argsort(np.argsort(predicted)), np.argsort(np.argsort(measured)))[0, 1]
    assert rank > 0.7


def test_it_allocates_better_than_shuffled_sensitivities_and_than_one_width(trained):
    model, held_out = trained, _shapes(256, seed=6)[0]
    calibration = _shapes(128, seed=5)[0]
    widths = (2, 3, 4, 5, 6, 8)
    values, sizes = sensitivity(model, calibration.split(32), _generator(), widths), layer_bytes(model, widths)
    budget = sum(row[4] for row in sizes.values())

    def divergence(bits: dict[str, int]) -> float:
        quantized = quantize(copy.deepcopy(model), bits)
        correct(quantized, model, calibration.split(64))
        return _divergence(quantized.model, model, held_out)

    ours = divergence(best_within(front(values, sizes), budget).bits)
    draw, names, shuffled = np.random.default_rng(0), list(values), []
    for _ in range(5):
        mixed = dict(zip(names, (values[names[i]] for i in draw.permutation(len(names))), strict=True))
        shuffled.append(divergence(best_within(front(mixed, sizes), budget).bits))
    assert ours < float(np.median(shuffled))
    assert ours < divergence(dict.fromkeys(names, 4))


def test_a_stage_that_runs_without_a_graph_is_refused():
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.stem(x)
            return self.head(x.mean((2, 3)))

    with pytest.raises(ValueError, match="stem: no gradient reaches it"):
        sensitivity(Frozen(), [images()], _generator())


def test_models_without_logits_and_empty_calibrations_are_refused():
    with pytest.raises(ValueError, match="logits"):
        sensitivity(nn.Sequential(nn.Conv2d(3, 4, 1)), [images()], _generator())
    with pytest.raises(ValueError, match="no calibration images"):
        sensitivity(fold(small()), [], _generator())


def _divergence(model: nn.Module, reference: nn.Module, x: Tensor) -> float:
    """Mean KL(reference || model) in nats."""
    with torch.no_grad():
        return float(nn.functional.kl_div(model(x).log_softmax(1), reference(x).softmax(1), reduction="batchmean"))


def _shapes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bar: horizontal, vertical or none; float [count, 3, 16, 16] and labels [count]."""
    generator = _generator(seed)
    x = torch.randn(count, 3, 16, 16, generator=generator)
    labels = torch.randint(3, (count,), generator=generator)
    where = torch.randint(14, (count,), generator=generator)
    for image, label, start in zip(x, labels.tolist(), where.tolist(), strict=True):
        if label == 0:
            image[:, start : start + 2] += 1.5
        elif label == 1:
            image[:, :, start : start + 2] += 1.5
    return x, labels
