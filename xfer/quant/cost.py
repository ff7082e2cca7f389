"""What a choice of widths costs, before it is made: bytes on disk and bit operations.

Bytes are exact, not estimated: the list of tensors is the writer's own, and the safetensors header is spelled out here.
Bit operations (multiply-accumulates x weight bits x activation bits) are the literature's unit for comparing mixed
widths. They are *not* time: on a CPU a 4-bit convolution runs at int8 speed at best.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xfer.quant.bits import FLOAT, WIDTHS, layers
from xfer.quant.coded import encode
from xfer.quant.layout import DTYPE_NAMES, METADATA_KEY, Layout, header_text, layout
from xfer.quant.stream import num_bytes
from xfer.quant.weights import Codes, check_layers, quantize_weight

CodedSizes = Mapping[str, Mapping[int, int]]  # layer -> width -> bytes of its codes, where they are shorter coded


def predicted_bytes(
    model: nn.Module,
    bits: Mapping[str, int],
    metadata: Mapping[str, Any] | None = None,
    coded: CodedSizes | None = None,
) -> int:
    """Size of the file that `pack` will write for the folded `model` at these widths and with this metadata; `coded`:
    of which layers at which widths codes are written shorter.
    """
    check_layers(model, bits)
    sizes = {name: row[bits[name]] for name, row in (coded or {}).items() if bits.get(name, FLOAT) in row}
    entries = layout(model, bits, sizes)
    header = _header_bytes(entries, header_text(model, bits, metadata or {}, sizes))
    return header + sum(_tensor_bytes(dtype, shape) for dtype, shape in entries.values())


def coded_sizes(model: nn.Module, widths: Iterable[int] = WIDTHS) -> dict[str, dict[int, int]]:
    """Bytes of the codes of each layer of a folded model in float that are shorter coded, by width: it rounds and codes
    each once. About 8 s for a ResNet-18 and all widths on one core.
    """
    widths = tuple(widths)
    return {
        name: _shorter(quantize_weight(layer.weight, width) for width in widths)
        for name, layer in layers(model).items()
    }


def sizes_of(codes: Mapping[str, Codes]) -> dict[str, dict[int, int]]:
    """The same of codes that there are."""
    return {name: _shorter([one]) for name, one in codes.items()}


def _shorter(codes: Iterable[Codes]) -> dict[int, int]:
    found = ((one.bits, len(encode(one.q, one.bits)), num_bytes(one.q.numel(), one.bits)) for one in codes)
    return {bits: coded for bits, coded, plain in found if coded < plain}


def layer_bytes(
    model: nn.Module, widths: Iterable[int] = (*WIDTHS, FLOAT), coded: CodedSizes | None = None
) -> dict[str, dict[int, int]]:
    """Bytes of each layer's own tensors at each width, its scales and bias included; what `front` trades with. `coded`:
    as for `predicted_bytes`.
    """
    table: dict[str, dict[int, int]] = {}
    for name, layer in layers(model).items():
        count, channels = layer.weight.numel(), layer.weight.shape[0]
        shorter = (coded or {}).get(name, {})
        table[name] = {
            width: 4 * (count + channels)
            if width == FLOAT
            else shorter.get(width, num_bytes(count, width)) + 8 * channels
            for width in widths
        }
    return table


def bops(model: nn.Module, bits: Mapping[str, int], image_size: int | tuple[int, int], activation_bits: int = 8) -> int:
    """Bit operations of one image float [1, 3, H, W]; a layer in float counts 32 x 32. Cost: one forward."""
    return sum(
        macs * (FLOAT * FLOAT if bits.get(name, FLOAT) == FLOAT else bits[name] * activation_bits)
        for name, macs in layer_macs(model, image_size).items()
    )


@torch.no_grad()
def layer_macs(model: nn.Module, image_size: int | tuple[int, int]) -> dict[str, int]:
    """Multiply-accumulates per convolution and linear layer for one image, summed over all calls of the layer."""
    macs: dict[str, int] = {}

    def watch(name: str, layer: nn.Conv2d | nn.Linear) -> Any:
        per_value = layer.weight[0].numel()  # one output value reads one filter

        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            macs[name] = macs.get(name, 0) + output.numel() * per_value

        return layer.register_forward_hook(hook)

    modes = {module: module.training for module in model.modules()}
    handles = [watch(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    like = next(model.parameters())
    try:
        model.eval()(torch.zeros(1, 3, height, width, dtype=like.dtype, device=like.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return macs


def _header_bytes(entries: Layout, metadata: str) -> int:
    """Length field, JSON and padding to 8 bytes, as safetensors writes them (widest dtype first, then by name)."""
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: metadata}}
    start = 0
    for key, (dtype, shape) in sorted(entries.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        stop = start + _tensor_bytes(dtype, shape)
        header[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return 8 + -(-len(text) // 8) * 8


def _tensor_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
