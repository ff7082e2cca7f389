import copy

import torch
from torch import nn

from tests.xfer.quant.nets import images, small
from xfer.quant import correct, dequantize, fold, layer_bits, quantize
from xfer.quant.finish import divergence, finish
from xfer.quant.weights import largest_code


def rounded(bits: int, groups: dict[str, int] | None = None):
    model = small()
    with torch.no_grad():
        model.head.weight *= 50  # images of noise are nearly alike to it
        model.head.bias -= model(images(64)).mean(0)
    reference = fold(model)
    quantized = quantize(copy.deepcopy(reference), layer_bits(reference, bits, groups or {}))
    correct(quantized, reference, [images(16, seed=2)])
    return reference, quantized


def apart(model: nn.Module, reference: nn.Module) -> float:
    with torch.no_grad():
        x = images(64, seed=1)
        return float(divergence(model(x), reference(x)))


def test_a_finished_model_is_nearer_on_images_it_was_not_trained_on_and_its_weights_are_its_codes():
    reference, quantized = rounded(2)
    before, floats = apart(quantized.model, reference), copy.deepcopy(reference.state_dict())
    rounded_only = dict(quantized.codes)
    finish(quantized, reference, (images(32, seed=10 + k) for k in range(40)), 40, rate=0.003)
    assert apart(quantized.model, reference) < 0.95 * before
    assert all(torch.equal(value, floats[name]) for name, value in reference.state_dict().items())
    assert any(not torch.equal(codes.q, rounded_only[name].q) for name, codes in quantized.codes.items())
    for name, codes in quantized.codes.items():
        assert codes.q.dtype == torch.int8
        assert codes.q.abs().max() <= largest_code(2)
        assert torch.equal(quantized.model.get_submodule(name).weight, dequantize(codes))


def test_it_begins_at_the_codes_as_corrected_and_one_step_at_no_rate_changes_nothing():
    reference, quantized = rounded(4)
    codes, state = dict(quantized.codes), copy.deepcopy(quantized.model.state_dict())
    finish(quantized, reference, [images(8)], 1, rate=0.0)
    for name, one in quantized.codes.items():
        assert torch.equal(one.q, codes[name].q)
        torch.testing.assert_close(one.scale, codes[name].scale)
    for name, value in quantized.model.state_dict().items():
        torch.testing.assert_close(value, state[name])


def test_divergence_is_that_of_answers():
    p, q = torch.tensor([[0.7, 0.3], [0.5, 0.5]]), torch.tensor([[0.6, 0.4], [0.5, 0.5]])
    expected = 0.5 * (0.7 * torch.log(torch.tensor(0.7 / 0.6)) + 0.3 * torch.log(torch.tensor(0.3 / 0.4)))
    torch.testing.assert_close(divergence(q.log(), p.log()), expected)
    maps = {"a": torch.randn(2, 4, 5), "b": torch.randn(2, 3, 5)}
    assert divergence(maps, maps) == 0
    off = {"a": maps["a"] + 1, "b": maps["b"]}
    torch.testing.assert_close(divergence(off, maps), 1 / maps["a"].var(correction=0))
