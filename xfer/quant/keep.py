"""Layers that keep their codes: what was rounded once is packed again bit for bit, after any save and load.

A float weight does not tell its codes: where all codes of a channel are even, half of them at twice the scale are the
same weight, and a channel of zeros has any scale. So width and scales stay with the layer as buffers, which a
checkpoint holds like any tensor. The codes follow from them exactly: fl(q * s) / s is less than 2^-22 q away from q.
"""

from collections.abc import Mapping

import torch
from torch import nn

from xfer.quant.bits import FLOAT, layers
from xfer.quant.weights import Codes

BITS, SCALE = "kept_bits", "kept_scale"  # buffers of a layer: int64 [], float32 [C_out]


def keep(model: nn.Module, codes: Mapping[str, Codes | None]) -> None:
    """The layers named keep these codes, which their weights stand for; None: they stay in float."""
    found = layers(model)
    for name, one in codes.items():
        ones = torch.ones(found[name].weight.shape[0])
        found[name].register_buffer(BITS, torch.tensor(one.bits if one else FLOAT))
        found[name].register_buffer(SCALE, one.scale.clone() if one else ones)


def kept(model: nn.Module) -> dict[str, Codes | None]:
    """The codes by name of every layer that keeps any; None: it stays in float."""
    found = {name: layer for name, layer in layers(model).items() if BITS in layer._buffers}
    return {name: _codes(layer) for name, layer in found.items()}


def release(model: nn.Module) -> None:
    """No layer keeps its codes any more."""
    for layer in layers(model).values():
        for name in (BITS, SCALE):
            layer._buffers.pop(name, None)


def _codes(layer: nn.Conv2d | nn.Linear) -> Codes | None:
    bits, scale = int(layer.get_buffer(BITS)), layer.get_buffer(SCALE)
    if bits == FLOAT:
        return None
    weight = layer.weight.detach()
    q = torch.round(weight / scale.view(-1, *[1] * (weight.dim() - 1)))
    return Codes(q.to(torch.int8), scale, bits)
