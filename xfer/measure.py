"""By what a task is measured: the name under which rows of metrics.jsonl and kept scores have it."""

from collections.abc import Mapping
from typing import Any

MEASURES = ("accuracy", "AP", "mIoU")  # classification, detection, segmentation
WITH_SIDE = "with_side"  # key of what a model came to that saw side inputs too (xfer/side.py)


def measure_of(row: Mapping[str, Any]) -> str | None:
    """The measure that a row or a kept score has; None: nothing was measured."""
    return next((name for name in MEASURES if row.get(name) is not None), None)


def measured(row: Mapping[str, Any]) -> Any:
    """Its value, or its values by source; none: an empty dict."""
    name = measure_of(row)
    return row[name] if name else {}


def heading(measure: str) -> str:
    """A measure as a heading begins with it."""
    return measure.capitalize() if measure.islower() else measure
