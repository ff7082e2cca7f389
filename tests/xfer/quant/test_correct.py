import copy

import pytest
import torch
from torch import nn

from tests.xfer.quant.nets import big, images, small
from xfer.quant import correct, dequantize, fold, layer_bits, quantize


def _error(model, reference, x):
    with torch.no_grad():
        expected = reference(x)
        return float((model(x) - expected).norm() / expected.norm())


@pytest.mark.parametrize("bits", [3, 4])
def test_a_corrected_resnet_is_closer_on_images_it_was_not_calibrated_on(bits):
    reference = fold(big())
    quantized = quantize(copy.deepcopy(reference), layer_bits(reference, bits, {}))
    held_out = images(16, 64, seed=1)
    before = _error(quantized.model, reference, held_out)
    correct(quantized, reference, (images(16, 64, seed=seed) for seed in (2, 3)))
    assert _error(quantized.model, reference, held_out) < 0.8 * before
    for name, codes in quantized.codes.items():
        assert torch.equal(quantized.model.get_submodule(name).weight, dequantize(codes))


def test_every_layer_has_the_float_moments_on_the_calibration_batch():
    reference, x = fold(small()), images(16)
    quantized = quantize(copy.deepcopy(reference), layer_bits(reference, 4, {}))
    correct(quantized, reference, [x])
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in quantized.codes}
    for model in (reference, quantized.model):
        for name in outputs:
            hook = lambda _, __, output, name=name: outputs[name].append(output.clone())  # noqa: E731
            model.get_submodule(name).register_forward_hook(hook)
        model(x)
    for expected, ours in outputs.values():
        axes = (0, 2, 3) if ours.dim() == 4 else (0,)
        assert torch.allclose(ours.mean(axes), expected.mean(axes), atol=1e-4)
        assert torch.allclose(ours.std(axes), expected.std(axes), rtol=1e-3, atol=1e-5)


def test_dead_channels_and_wild_ratios_stay_tame():
    reference = nn.Sequential(nn.Conv2d(3, 4, 1))
    reference[0].weight.data[0] = 0  # constant in float
    quantized = quantize(copy.deepcopy(reference), {"0": 4})
    scale = quantized.codes["0"].scale.clone()
    quantized.model[0].weight.data[1] *= 1000  # as if quantization had ruined a channel
    quantized.model[0].weight.data[2] = 0  # and killed another
    correct(quantized, reference, [images()])
    ratio = quantized.codes["0"].scale / scale
    assert ratio.isfinite().all()
    assert ratio.min() >= 0.4999
    assert ratio.max() <= 2.0001
    assert ratio[0] == ratio[2] == 1


def test_a_layer_called_twice_is_paired_call_by_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x):
            return self.conv(x * 10) + self.conv(self.conv(x)).mean()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        reference = Twice()
    quantized = quantize(copy.deepcopy(reference), {"conv": 3})
    before = _error(quantized.model, reference, images())
    correct(quantized, reference, [images()])
    assert _error(quantized.model, reference, images()) < before * 1.05


def test_no_batches_and_another_reference_are_refused():
    model = fold(small())
    quantized = quantize(copy.deepcopy(model), {"head": 4})
    with pytest.raises(ValueError, match="at least one"):
        correct(quantized, model, [])
    with pytest.raises(ValueError, match="no layer head"):
        correct(quantized, fold(big()), [images()])
