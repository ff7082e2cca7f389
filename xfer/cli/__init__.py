"""The verbs of one process, one a file. Heavy imports wait inside the functions, so help is instant."""

from xfer.cli.evaluate import evaluate
from xfer.cli.fit import fit
from xfer.cli.predict import predict
from xfer.cli.quantize import quantize

__all__ = ["evaluate", "fit", "predict", "quantize"]
