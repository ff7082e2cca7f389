import pytest
import torch
from torch import nn

from tests.xfer.quant.nets import big, images, small
from xfer.quant import dequantize, fold, groups, layer_bits, quantize, quantize_weight
from xfer.quant.bits import WIDTHS


def _weight() -> torch.Tensor:
    return torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_are_in_range_and_beat_the_widest_grid(bits):
    weight, top = _weight(), 2 ** (bits - 1) - 1
    codes = quantize_weight(weight, bits)
    assert codes.q.dtype == torch.int8
    assert codes.q.abs().max() <= top
    widest = weight.flatten(1).abs().amax(1).view(-1, 1, 1, 1) / top
    naive = (weight / widest).round() * widest
    channels = (1, 2, 3)
    ours = (dequantize(codes) - weight).square().sum(channels)
    assert (ours <= (naive - weight).square().sum(channels) * 1.0001).all()


def test_error_falls_with_every_bit():
    errors = [float((dequantize(quantize_weight(_weight(), bits)) - _weight()).norm()) for bits in WIDTHS]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 30 * errors[-1]


def test_a_dead_channel_and_a_tiny_one_stay_finite():
    weight = _weight()
    weight[0], weight[1] = 0, 1e-30
    codes = quantize_weight(weight, 4)
    assert dequantize(codes).isfinite().all()
    assert (dequantize(codes)[0] == 0).all()
    assert (codes.scale > 0).all()


def test_the_model_computes_what_the_codes_say_and_32_is_left_alone():
    model = fold(small())
    bits = layer_bits(model, 4, {"stem": 32})
    stem = model.get_submodule("branches.b.conv1").weight.clone()
    quantized = quantize(model, bits)
    assert torch.equal(model.get_submodule("branches.b.conv1").weight, stem)
    assert "branches.b.conv1" not in quantized.codes
    for name, codes in quantized.codes.items():
        assert torch.equal(model.get_submodule(name).weight, dequantize(codes))
        assert codes.q.unique().numel() <= 15
    assert model(images()).isfinite().all()


def test_groups_of_a_fusion_model_and_of_a_plain_one():
    found = groups(small())
    assert list(found) == ["stem", "layer1", "layer4", "project", "head"]
    assert found["stem"] == ["branches.head.conv1", "branches.b.conv1"]
    assert found["head"] == ["head"]
    assert found["project"] == ["projections.head.0", "projections.b.0"]
    plain = groups(big())
    assert list(plain) == ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
    assert plain["stem"] == ["conv1"]
    assert "layer4.0.downsample.0" in plain["layer4"]
    assert groups(nn.Sequential(nn.Linear(2, 2))) == {"other": ["0"]}


def test_what_cannot_be_asked_for():
    model = small()
    with pytest.raises(ValueError, match=r"unknown layer groups neck; this model has stem, .*head"):
        layer_bits(model, 8, {"neck": 4})
    for width in (1, 9, 16, True, 4.0):
        with pytest.raises(ValueError, match="accepted are 2, 3"):
            layer_bits(model, width, {})
    with pytest.raises(ValueError, match="no convolution or linear layer called nose"):
        quantize(model, {"nose": 4})
    with pytest.raises(ValueError, match="float32 master copy"):
        quantize(small().half(), {"head": 4})
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="shared with another layer"):
        quantize(tied, {"0": 4})
