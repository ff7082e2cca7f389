"""Post-training quantization whose bits are real on disk.

The order of work is `fold` -> `layer_bits` -> `quantize` -> `correct` -> `finish` -> `pack`; `unpack` undoes the last
one, and `finish`, which takes minutes, may be left out.
Each step is one file and can be read alone. Storage width (2 to 8 bits, packed) and compute width are two different
things: the model that leaves `unpack` computes in float with exactly the values that the file stores.
"""

from xfer.quant.allocate import Allocation, best_within, front
from xfer.quant.bits import groups, layer_bits
from xfer.quant.correct import correct
from xfer.quant.cost import bops, layer_bytes, predicted_bytes
from xfer.quant.finish import finish
from xfer.quant.fold import check_fold, fold
from xfer.quant.pack import pack, read_metadata, unpack
from xfer.quant.sensitivity import sensitivity
from xfer.quant.weights import Codes, Quantized, dequantize, quantize, quantize_weight

__all__ = [
    "Allocation",
    "Codes",
    "Quantized",
    "best_within",
    "bops",
    "check_fold",
    "correct",
    "dequantize",
    "finish",
    "fold",
    "front",
    "groups",
    "layer_bits",
    "layer_bytes",
    "pack",
    "predicted_bytes",
    "quantize",
    "quantize_weight",
    "read_metadata",
    "sensitivity",
    "unpack",
]
