"""A graph in float becomes one in int8, on exactly the codes of the bundle.

The form is QDQ: quantize and dequantize nodes in a graph of float operators, which a runtime fuses into integer ones
where it has them, and which means the same where it has not. Weights: int8 codes and a scale for each output channel,
as the bundle has them; codes of fewer bits are the same numbers in 8. Activations: uint8 for each tensor (`observe`).
Biases: int32 at scale of input x scale of weight, which is what the products add up to, so they are added without
rounding twice.

Quantized are: what goes into a layer that has codes; what comes out of a convolution, after its ReLU if there is one;
sums and maxima of such tensors. Not quantized is what comes out of a layer behind which there is no other: it is the
answer, and 256 levels of it are too few to compare classes by. A layer that stays in float reads and gives float.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from xfer.export.observe import Range
from xfer.quant.weights import Codes, dequantize

Node = onnx.NodeProto
_LAYERS = ("Conv", "Gemm", "MatMul")
_CARRY = ("Add", "MaxPool")  # run on integers if what goes in is
_LARGEST_BIAS, _FEW = 2.0**31 - 1, 2.0**24


class Weight(NamedTuple):
    """A constant of a graph that is the weight of a layer, or of several that have the same; axis: of its output
    channels.
    """

    layers: tuple[str, ...]
    codes: Codes
    axis: int


@dataclass
class Plan:
    """layers: by the name of a node its `Weight`; tensors: the activations to quantize, each with the one whose range
    it has; why_float: by layer that has codes and is in float all the same, the reason.
    """

    layers: dict[str, Weight] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    why_float: dict[str, str] = field(default_factory=dict)

    @property
    def observed(self) -> list[str]:
        """Tensors whose range has to be found."""
        return list(dict.fromkeys(self.tensors.values()))


def plan(proto: onnx.ModelProto, codes: Mapping[str, Codes]) -> Plan:
    """What is quantized in a graph in float, whose weights are what `codes` stand for, by layer."""
    graph, made = proto.graph, Plan()
    homes = _homes(graph, codes)
    constants = {"", *(one.name for one in graph.initializer)}
    for node in graph.node:
        if node.op_type in _LAYERS and node.input[1] in homes and set(node.input[2:]) <= constants:
            made.layers[node.name] = homes[node.input[1]]
    placed = {layer for weight in made.layers.values() for layer in weight.layers}
    made.why_float = {layer: "is no convolution or product of the graph" for layer in codes if layer not in placed}
    readers: dict[str, list[Node]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    inner = _before_a_layer(graph, made)
    for node in graph.node:
        out = _after(node, readers)
        if node.name in made.layers:
            made.tensors.setdefault(node.input[0], node.input[0])
            if node.op_type == "Conv" and out in inner:
                made.tensors[out] = out
        elif node.op_type in _CARRY and out in inner and all(name in made.tensors for name in node.input):
            made.tensors[out] = made.tensors[node.input[0]] if node.op_type == "MaxPool" else out
    return made


def _homes(graph: onnx.GraphProto, codes: Mapping[str, Codes]) -> dict[str, Weight]:
    """By constant that is the weight of a layer, as it is or turned. By value, for the exporter keeps one constant
    where two layers have the same.
    """
    by_shape: dict[tuple[int, ...], list[tuple[str, np.ndarray]]] = {}
    for one in graph.initializer:
        if one.data_type == TensorProto.FLOAT and len(one.dims) >= 2:
            by_shape.setdefault(tuple(one.dims), []).append((one.name, numpy_helper.to_array(one)))
    homes: dict[str, Weight] = {}
    for layer, own in codes.items():
        weight = dequantize(own).numpy()
        for axis, turned in enumerate((weight, weight.T) if weight.ndim == 2 else (weight,)):
            for name, value in by_shape.get(turned.shape, ()):
                if np.array_equal(value, turned):
                    first = homes.get(name, Weight((), own, axis))
                    homes[name] = first._replace(layers=(*first.layers, layer))
    return homes


def _after(node: Node, readers: Mapping[str, list[Node]]) -> str:
    """What comes out of a node, after its ReLU if nothing else reads it."""
    read = readers.get(node.output[0], [])
    return read[0].output[0] if len(read) == 1 and read[0].op_type == "Relu" else node.output[0]


def _before_a_layer(graph: onnx.GraphProto, made: Plan) -> set[str]:
    """Tensors that a layer with codes depends on."""
    found: set[str] = set()
    for node in reversed(graph.node):
        if node.name in made.layers or found.intersection(node.output):
            found.update(node.input[:1] if node.name in made.layers else node.input)
    return found


def int8_graph(proto: onnx.ModelProto, made: Plan, ranges: Mapping[str, Range]) -> onnx.ModelProto:
    """The graph in int8. `ranges`: of `made.observed`. Layers whose bias is no int32 stay in float, and are added to
    `made.why_float`.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph: Any = result.graph
    constants = {one.name: one for one in graph.initializer}
    nodes, new = list(graph.node), _Made()
    del graph.node[:]
    for node in nodes:
        if weight := made.layers.get(node.name):
            bias = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 and node.input[2] else None
            if not _layer(node, weight, ranges[made.tensors[node.input[0]]].scale, bias, new):
                made.why_float |= dict.fromkeys(weight.layers, "its bias is too large for an int32 at its scales")
        for place, name in enumerate(node.input):
            if name in made.tensors:
                node.input[place] = f"{name}_dq"
        new.nodes.append(node)
        for name in node.output:
            if name in made.tensors:
                _activation(name, ranges[made.tensors[name]], new)
    graph.node.extend(new.nodes)
    read = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    kept = [one for one in graph.initializer if one.name in read]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *(numpy_helper.from_array(value, name) for name, value in new.constants.items())])
    return result


@dataclass
class _Made:
    """Nodes and constants of a graph that is being made."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def dequantize(self, name: str, q: np.ndarray, scale: np.ndarray, axis: int = 0) -> str:
        """What a constant of codes stands for; made once for each name. Returns the name of the tensor."""
        if name not in self.constants:
            zero = np.zeros(scale.shape, q.dtype)
            self.constants |= {name: q, f"{name}_scale": scale, f"{name}_zero": zero}
            inputs = [name, f"{name}_scale", f"{name}_zero"]
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], f"{name}_dq", axis=axis))
        return f"{name}_dq"


def _activation(name: str, own: Range, new: _Made) -> None:
    """A tensor in uint8 and back."""
    scale, zero = f"{name}_scale", f"{name}_zero"
    new.constants |= {scale: np.array(own.scale, np.float32), zero: np.array(own.zero, np.uint8)}
    new.nodes.append(helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_q"], f"{name}_q"))
    new.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_dq"], f"{name}_dq"))


def _layer(node: Node, weight: Weight, input_scale: float, bias: np.ndarray | None, new: _Made) -> bool:
    """Gives a node its weight and bias in integers; False if its bias is no int32, and nothing was done."""
    codes, name = weight.codes, weight.layers[0]
    scale, q = codes.scale.numpy(), codes.q.numpy()
    if bias is not None:
        dead = ~codes.q.flatten(1).any(1).numpy()
        if dead.any():  # all codes of a channel are 0 at any scale: one is taken at which its bias fits
            fits = np.abs(bias) / np.float32(input_scale) / np.float32(_FEW)
            scale, name = np.where(dead, np.where(fits > 0, fits, 1), scale).astype(np.float32), f"{name}.{node.name}"
        steps = np.float32(input_scale) * scale
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            rounded = np.round(bias.astype(np.float64) / steps)
        if not (np.abs(rounded) < _LARGEST_BIAS).all():
            return False
        node.input[2] = new.dequantize(f"{weight.layers[0]}.{node.name}.bias", rounded.astype(np.int32), steps)
    turned = np.ascontiguousarray(q.T if weight.axis else q)
    node.input[1] = new.dequantize(f"{name}.codes", turned, scale, weight.axis)
    return True


def different_codes(proto: onnx.ModelProto, codes: Mapping[str, Codes]) -> tuple[int, int]:
    """Of a graph in int8: how many codes it has, and how many of them, or of their scales, are not the bundle's."""
    found = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    count = different = 0
    for name in [name for name in found if name.endswith(".codes")]:
        layer = next(one for one in codes if name.startswith(f"{one}."))
        q, own = found[name], codes[layer]
        same = own.q.numpy() if q.shape == tuple(own.q.shape) else own.q.numpy().T
        live = own.q.flatten(1).any(1).numpy()
        count += q.size
        different += int((q != same).sum()) + int((found[f"{name}_scale"] != own.scale.numpy())[live].sum())
    return count, different
