"""Which tensors a packed file holds: one list that `pack` writes, `unpack` checks and `cost` adds up.

Per quantized layer `<name>.q` (bit stream), `<name>.s` (scales), `<name>.b` (bias); every other parameter and buffer
under its own name. The list depends on the folded model and the widths alone, so a file's size is known to the byte
before anything is quantized, and a reader knows what to expect before it reads.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from xfer.quant.bits import FLOAT, layers
from xfer.quant.stream import num_bytes

FORMAT, VERSION = "xfer-packed", 1
CODED_VERSION = 2  # of a file with coded layers, which older releases cannot read
# One metadata entry: safetensors writes its map in random order, and equal models should give equal files.
METADATA_KEY = "packed"

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Layout = dict[str, tuple[torch.dtype, tuple[int, ...]]]  # tensor name -> dtype, shape


Coded = Mapping[str, int]  # layer that is coded (xfer/quant/coded.py) -> bytes of its stream
PLAIN: Coded = MappingProxyType({})


def layout(model: nn.Module, bits: Mapping[str, int], coded: Coded = PLAIN) -> Layout:
    """Every tensor of the packed file of the folded `model` with layer widths `bits`, those `coded` so long."""
    found, entries = layers(model), {}
    for name, width in bits.items():
        if width != FLOAT:
            channels = found[name].weight.shape[0]
            length = coded.get(name) or num_bytes(found[name].weight.numel(), width)
            entries[f"{name}.q"] = (torch.uint8, (length,))
            entries[f"{name}.s"] = entries[f"{name}.b"] = (torch.float32, (channels,))
    for key, (dtype, shape) in _rest(model, bits).items():
        if key in entries:
            raise ValueError(f"{key}: the model has a tensor of the name that the packed layer needs")
        entries[key] = (dtype, shape)
    return entries


def _rest(model: nn.Module, bits: Mapping[str, int]) -> Layout:
    """Everything that stays as it is; a quantized layer registered under a second name is not stored again."""
    found = layers(model)
    packed = {id(found[name]) for name, width in bits.items() if width != FLOAT}
    aliases = [name for name, module in model.named_modules(remove_duplicate=False) if id(module) in packed]
    skip = {f"{name}.{part}" for name in aliases for part in ("weight", "bias")}
    rest: Layout = {}
    for key, value in model.state_dict().items():
        if key in skip:
            continue
        if not isinstance(value, torch.Tensor) or value.dtype not in DTYPE_NAMES:
            raise ValueError(f"{key}: only plain tensors can be packed")
        rest[key] = (value.dtype, tuple(value.shape))
    return rest


def header_text(model: nn.Module, bits: Mapping[str, int], metadata: Mapping[str, Any], coded: Coded = PLAIN) -> str:
    """The file's one metadata entry, the same text for the same content."""
    found = layers(model)
    packed = {
        name: {"bits": width, "shape": list(found[name].weight.shape)}
        | ({"coded": coded[name]} if name in coded else {})
        for name, width in bits.items()
        if width != FLOAT
    }
    version = CODED_VERSION if coded else VERSION
    content = {"format": FORMAT, "version": version, "layers": packed, "metadata": dict(metadata)}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
