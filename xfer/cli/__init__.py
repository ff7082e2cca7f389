"""The verbs of one process, one a file. Heavy imports wait inside the functions, so help is instant."""

from xfer.cli.bench import bench
from xfer.cli.compare import compare
from xfer.cli.evaluate import evaluate
from xfer.cli.export import export
from xfer.cli.features import features
from xfer.cli.fit import fit
from xfer.cli.predict import predict
from xfer.cli.quantize import quantize
from xfer.cli.soup import soup

__all__ = ["bench", "compare", "evaluate", "export", "features", "fit", "predict", "quantize", "soup"]
