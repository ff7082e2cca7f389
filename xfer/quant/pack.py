"""One safetensors file with the real bits, and the way back.

Any safetensors reader opens it; nothing is pickled, nothing in it is run. The reader trusts nothing either: it lists
what this model needs, compares names, dtypes, shapes and byte counts from the header, and only then reads tensors, all
of them before it touches the model. What it cannot see is a flipped bit inside a valid code: whoever ships the file
ships its digest too. Cost: a ResNet-18 packs and unpacks in a fraction of a second; outputs are bit-identical.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from shards.format.whole import whole_file
from xfer.quant.bits import WIDTHS, layers
from xfer.quant.coded import decode, encode
from xfer.quant.layout import CODED_VERSION, DTYPE_NAMES, FORMAT, METADATA_KEY, VERSION, header_text, layout
from xfer.quant.stream import from_stream, num_bytes, to_stream
from xfer.quant.weights import Codes, Quantized, dequantize, give_bias, write


def pack(quantized: Quantized, path: str | os.PathLike[str], metadata: Mapping[str, Any], coded: bool = False) -> None:
    """Write `quantized` to `path`, whole or not at all. metadata: anything JSON can say, for `read_metadata`; coded:
    codes are written shorter, in layers where they then are.
    """
    bits = {name: codes.bits for name, codes in quantized.codes.items()}
    streams = {name: _stream(codes, coded) for name, codes in quantized.codes.items()}
    sizes = {name: len(stream) for name, (stream, is_coded) in streams.items() if is_coded}
    expected = layout(quantized.model, bits, sizes)
    state, found = quantized.model.state_dict(), layers(quantized.model)
    tensors: dict[str, Tensor] = {}
    for name, codes in quantized.codes.items():
        layer = found[name]
        if not torch.equal(layer.weight, dequantize(codes)) or layer.bias is None:
            raise ValueError(f"{name}: the weight was changed after quantization; quantize the model again")
        tensors[f"{name}.q"] = streams[name][0]
        tensors[f"{name}.s"] = codes.scale
        tensors[f"{name}.b"] = layer.bias
    sources = {**state, **tensors}
    # clone: safetensors refuses tensors that share memory, as buffers of one module may
    ready = {key: sources[key].detach().cpu().clone().contiguous() for key in expected}
    text = header_text(quantized.model, bits, metadata, sizes)
    with whole_file(os.fspath(path)) as draft:
        save_file(ready, draft, metadata={METADATA_KEY: text})


def _stream(codes: Codes, coded: bool) -> tuple[Tensor, bool]:
    """The bytes of a layer's codes, and whether they are coded: only if that is shorter."""
    if coded and len(stream := encode(codes.q, codes.bits)) < num_bytes(codes.q.numel(), codes.bits):
        return stream, True
    return to_stream(codes.q, codes.bits), False


def unpack(path: str | os.PathLike[str], model: nn.Module) -> Quantized:
    """Load `path` into `model`, freshly built and folded; the codes come back for exporters that want the integers.

    ValueError, naming the layer, when the file is damaged or belongs to another model; `model` is then unchanged.
    """
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            content = _content(file.metadata(), path)
            bits = _bits(content, model)
            coded = _coded(content, model, bits)
            expected = layout(model, bits, coded)
            _check_header(file, expected, path)
            tensors = {key: file.get_tensor(key) for key in expected}
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error
    codes = {name: _codes(tensors, name, width, model, name in coded) for name, width in bits.items()}
    _load(model, codes, tensors)
    return Quantized(model, codes)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What was given to `pack` as metadata; reads the header only."""
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            return _content(file.metadata(), path)["metadata"]
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error


def is_coded(path: str | os.PathLike[str]) -> bool:
    """Whether layers of a packed file are coded; reads the header only."""
    with safe_open(os.fspath(path), framework="pt") as file:
        return _content(file.metadata(), path)["version"] == CODED_VERSION


def _content(metadata: Mapping[str, str] | None, path: object) -> dict[str, Any]:
    """The parsed metadata entry, its outer shape checked."""
    try:
        content = json.loads((metadata or {}).get(METADATA_KEY, "null"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: the metadata is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no packed model: the metadata names no format {FORMAT!r}")
    if content.get("version") not in (VERSION, CODED_VERSION):
        known = f"{VERSION} and {CODED_VERSION}"
        raise ValueError(f"{path} has format version {content.get('version')!r}; this release reads {known}")
    if not isinstance(content.get("layers"), dict) or not isinstance(content.get("metadata"), dict):
        raise ValueError(f"{path}: the metadata lacks its layers")
    return content


def _bits(content: dict[str, Any], model: nn.Module) -> dict[str, int]:
    """Width per packed layer, each layer known to the model and of the model's shape."""
    found, bits = layers(model), {}
    for name, entry in content["layers"].items():
        width = entry.get("bits") if isinstance(entry, dict) else None
        if type(width) is not int or width not in WIDTHS:
            raise ValueError(f"{name}: {width!r} bits in the file; accepted are {WIDTHS[0]} to {WIDTHS[-1]}")
        if name not in found:
            raise ValueError(f"{name} is in the file but not in the model")
        shape = list(found[name].weight.shape)
        if entry.get("shape") != shape:
            raise ValueError(f"{name}: shape {entry.get('shape')} in the file, {shape} in the model")
        bits[name] = width
    return bits


def _coded(content: dict[str, Any], model: nn.Module, bits: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the streams of coded layers: fewer than those of a plain stream, so no more is ever read than that."""
    coded = {name: entry["coded"] for name, entry in content["layers"].items() if "coded" in entry}
    for name, length in coded.items():
        most = num_bytes(layers(model)[name].weight.numel(), bits[name])
        if type(length) is not int or not 0 < length < most:
            raise ValueError(f"{name}: {length!r} coded bytes in the file; expected 1 to {most - 1}")
    if bool(coded) != (content["version"] == CODED_VERSION):
        raise ValueError(
            f"the format version is {content['version']}, which does not go with {len(coded)} coded layers"
        )
    return coded


def _check_header(file: Any, expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], path: object) -> None:
    """Names, dtypes and shapes, before a single tensor is allocated."""
    present = set(file.keys())
    if missing := sorted(expected.keys() - present):
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    if surplus := sorted(present - expected.keys()):
        raise ValueError(f"{path} holds {', '.join(surplus)}, which the model does not have: was it folded?")
    for key, (dtype, shape) in expected.items():
        entry = file.get_slice(key)
        given = (entry.get_dtype(), list(entry.get_shape()))
        if given != (DTYPE_NAMES[dtype], list(shape)):
            raise ValueError(f"{key}: {given[0]} {given[1]} in the file, {DTYPE_NAMES[dtype]} {list(shape)} expected")


def _codes(tensors: Mapping[str, Tensor], name: str, width: int, model: nn.Module, coded: bool) -> Codes:
    weight, scale = layers(model)[name].weight, tensors[f"{name}.s"]
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError(f"{name}: a scale is not a positive number")
    try:
        q = (decode if coded else from_stream)(tensors[f"{name}.q"], width, weight.numel())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return Codes(q.view(weight.shape).to(weight.device), scale.to(weight.device), width)


@torch.no_grad()
def _load(model: nn.Module, codes: Mapping[str, Codes], tensors: Mapping[str, Tensor]) -> None:
    state, found = model.state_dict(), layers(model)
    for name, layer_codes in codes.items():
        give_bias(found[name])
        write(found[name], layer_codes)
        bias = found[name].bias
        assert bias is not None
        bias.copy_(tensors[f"{name}.b"])
    for key in layout(model, {name: layer_codes.bits for name, layer_codes in codes.items()}):
        if key in state and key.rpartition(".")[0] not in codes:
            state[key].copy_(tensors[key])
