"""A session of onnxruntime on the CPU, and what it makes of a graph."""

from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from shards.settings import ConfigError

FORMAT = "xfer-export 1"  # of the files, as they say it themselves
NEEDED = ("onnx", "onnxruntime", "onnxscript")
INTEGER = ("QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")
"""Operators that multiply 8-bit integers."""
FLOAT = ("Conv", "FusedConv", "NhwcFusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
"""The same in float."""


def check_installed() -> None:
    """Raises ConfigError if what export needs is not there."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ConfigError(f"xfer export needs {' and '.join(missing)}, not installed here: pip install 'xfer[onnx]'")


def open_session(model: bytes, optimized: Path | None = None, threads: int = 0) -> Any:
    """A session on the bytes of a file. optimized: where its graph is written after the optimizations that other CPUs
    can read too (extended); None: all of them, nothing is written. threads: 0 for as many as there are cores.

    Raises ConfigError if onnxruntime cannot read the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    if optimized is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class, nor one of Python's
        text = " ".join(str(error).split())[:300]
        raise ConfigError(f"the exported graph: onnxruntime cannot open it ({text})") from None


def run(session: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """What a session makes of images uint8 [B, 3, S, S], by the names of its outputs."""
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: images}), strict=True))


def products(model: bytes) -> tuple[Counter[str], list[str]]:
    """How many operators of each kind of `INTEGER` and `FLOAT` onnxruntime runs on this CPU, after its optimizations;
    and the names of the nodes in float.
    """
    import onnx

    with TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, optimized=path)
        nodes = onnx.load(path).graph.node
    counts = Counter(node.op_type for node in nodes if node.op_type in (*INTEGER, *FLOAT))
    return counts, [node.name for node in nodes if node.op_type in FLOAT]
