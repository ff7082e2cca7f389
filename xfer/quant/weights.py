"""Symmetric per-output-channel integer weights: W ~ scale[c] * q, q in -(2^(b-1) - 1) .. 2^(b-1) - 1.

Symmetric, so that an integer runtime needs no zero point for weights; per output channel, because folded BatchNorm
factors differ by orders of magnitude between channels and a scale per channel costs 4 bytes. The clip that minimises
the squared error beats the maximum below about 6 bits, where cutting a few outliers buys a finer grid for all others
(Banner et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment", 2019); two bits are
ternary. After each clip the scale is refitted to its codes by least squares.

Shapes: weight float32 [C_out, ...]; q int8 of the same shape; scale float32 [C_out]. Cost: some 20 passes over the
weights, about a second for a ResNet-18 on two cores. Models are changed in place: hand in a copy to keep the original.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xfer.quant.bits import FLOAT, check_width, layers

# The smallest clip tried, as a fraction of the channel's largest weight: coarse grids gain from cutting deep.
_DEEPEST_CLIP = {2: 0.08, 3: 0.15, 4: 0.25, 5: 0.35, 6: 0.5, 7: 0.6, 8: 0.7}
_NUM_CLIPS = 16


@dataclass(frozen=True)
class Codes:
    """What the file stores of one weight. q: int8 [C_out, ...]; scale: float32 [C_out]."""

    q: Tensor
    scale: Tensor
    bits: int


@dataclass(frozen=True)
class Quantized:
    """A model computing with `dequantize(codes[name])` in the layers named; all others are in float."""

    model: nn.Module
    codes: dict[str, Codes]


def largest_code(bits: int) -> int:
    return 2 ** (bits - 1) - 1


def dequantize(codes: Codes) -> Tensor:
    """float32 [C_out, ...]; one multiplication, so every reader of the file gets the same bits."""
    return codes.q.float() * _over_channels(codes.scale, codes.q)


@torch.no_grad()
def quantize_weight(weight: Tensor, bits: int) -> Codes:
    """Codes for weight float32 [C_out, ...], each channel clipped where its squared error is least."""
    flat = weight.detach().float().flatten(1)  # [C_out, n]
    top = largest_code(bits)
    widest = flat.abs().amax(1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny * 256) / top  # [C_out, 1]
    best, least = widest, torch.full_like(widest, torch.inf)
    for fraction in torch.logspace(0, 1, _NUM_CLIPS, base=_DEEPEST_CLIP[bits]).tolist():
        scale = _refit(flat, widest * fraction, top)
        error = _round(flat, scale, top).mul_(scale).sub_(flat).square_().sum(1, keepdim=True)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return Codes(_round(flat, best, top).to(torch.int8).view(weight.shape), best.squeeze(1), bits)


def quantize(model: nn.Module, bits: Mapping[str, int]) -> Quantized:
    """Replace in place the weights of the layers in `bits` by what their codes stand for; 32 leaves a layer alone.

    Every quantized layer gets a bias (zero where it had none): `correct` writes to it, and the file's size is then
    known before. bits: width per layer name, as from `layer_bits`; a layer not named stays in float.
    """
    check_layers(model, bits)
    found, codes = layers(model), {}
    for name, width in bits.items():
        if width == FLOAT:
            continue
        codes[name] = quantize_weight(found[name].weight, width)
        give_bias(found[name])
        write(found[name], codes[name])
    return Quantized(model, codes)


@torch.no_grad()
def write(layer: nn.Conv2d | nn.Linear, codes: Codes) -> None:
    layer.weight.copy_(dequantize(codes))


def give_bias(layer: nn.Conv2d | nn.Linear) -> None:
    if layer.bias is None:
        zeros = layer.weight.new_zeros(layer.weight.shape[0])
        layer.bias = nn.Parameter(zeros, requires_grad=layer.weight.requires_grad)


def check_layers(model: nn.Module, bits: Mapping[str, int]) -> None:
    """Refuse names that are no layers, widths that do not exist and weights that codes cannot stand for."""
    found = layers(model)
    if unknown := sorted(set(bits) - set(found)):
        raise ValueError(f"no convolution or linear layer called {', '.join(unknown)}; quantizable: {', '.join(found)}")
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    for name, width in bits.items():
        check_width(width, name)
        if width == FLOAT:
            continue
        weight = found[name]._parameters.get("weight")
        if weight is None or weight.dtype != torch.float32:
            raise ValueError(f"{name}: the weight is no plain float32 parameter; quantize from the float32 master copy")
        if not bool(torch.isfinite(weight).all()):
            raise ValueError(f"{name}: the weight has values that are not finite")
        if uses[id(weight)] > 1:
            raise ValueError(
                f"{name}: the weight is shared with another layer; give each its own or keep it at 32 bits"
            )


def _refit(flat: Tensor, scale: Tensor, top: int) -> Tensor:
    """The least-squares scale for the codes that `scale` [C_out, 1] gives: s = <w, q> / <q, q>, never a worse one."""
    q = _round(flat, scale, top)
    norm = q.square().sum(1, keepdim=True)
    fitted = (flat * q).sum(1, keepdim=True) / norm.clamp_min(1)
    return torch.where((norm > 0) & (fitted > 0), fitted, scale)


def _round(flat: Tensor, scale: Tensor, top: int) -> Tensor:
    return torch.div(flat, scale).round_().clamp_(-top, top)


def _over_channels(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))
