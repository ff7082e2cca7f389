"""A model in float becomes an ONNX graph: uint8 images [batch, 3, S, S] in, normalised inside, any batch.

Bytes in, because what an image is divided by cannot be got wrong then. torch.export traces it first: where a model's
code fixes the size of the batch, that refuses, while the ONNX exporter alone would quietly write a graph of that batch.
What torch notes at each node (lines of source, paths of this machine) is taken out.
"""

import json
from typing import Any

import onnx
import torch
from torch import nn

from shards.settings import ConfigError
from xfer.bundle import Trained
from xfer.export.session import FORMAT

OPSET = 20
INPUT = "images"
NAMES = {"classification": "logits", "segmentation": "logits"}
"""Of the output by task, where it is one tensor; a detector's have names of their own."""
BATCH = 2  # images to trace with


def traced(model: nn.Module, size: int) -> torch.export.ExportedProgram:
    """The program of a model in evaluation mode, uint8 images [B, 3, size, size] of any B in. Raises ConfigError where
    the model's code cannot be traced so.
    """
    images = torch.zeros(BATCH, 3, size, size, dtype=torch.uint8)
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"this model cannot be exported: torch.export says {type(error).__name__}: {text}") from None


def described(trained: Trained) -> dict[str, str]:
    """What a file says of itself: all that is needed to show it an image and to read its answer."""
    return {
        "format": FORMAT,
        "name": trained.name,
        "task": trained.model.task,
        "head": trained.model.kind,
        "classes": json.dumps(trained.classes, ensure_ascii=False),
        "image_size": str(trained.image_size),
        "resize": trained.resize,
        "input": "uint8 [batch, 3, image_size, image_size], RGB, 0 to 255; normalised in the graph",
        "weights_sha256": trained.weights_sha256,
    }


def float_graph(trained: Trained, model: nn.Module) -> onnx.ModelProto:
    """The graph of `model`, that of `trained` in evaluation mode and folded, in float. Raises ConfigError."""
    with torch.no_grad():
        output = model(torch.zeros(1, 3, trained.image_size, trained.image_size, dtype=torch.uint8))
        names = list(output) if isinstance(output, dict) else [NAMES[trained.model.task]]
        program = torch.onnx.export(
            traced(model, trained.image_size),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=names,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    proto.producer_name = "xfer"
    name_properties(proto, described(trained))
    return proto


def name_properties(proto: onnx.ModelProto, properties: dict[str, str]) -> None:
    """Has a file say these of itself, in place of what it said before."""
    onnx.helper.set_model_props(proto, properties)


def checked(proto: onnx.ModelProto) -> bytes:
    """The bytes of its file. Raises ValueError if it is no sound ONNX."""
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString()


def _strip(proto: onnx.ModelProto) -> None:
    graph: Any = proto.graph
    for part in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
