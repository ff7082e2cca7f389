"""What each rank does, for Prometheus: Ray hands these on from every node, as `ray_xfer_...`, each with run, rank and
the name Ray gives the node. cluster/grafana.json draws them.

They are those of the run folder's timing rows (xfer/timing.py), set as often as these are written; nothing is measured
for them. A rank that ended says nothing any more.
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

PART = "xfer_step_seconds"
GAUGES = {
    "xfer_step": ("step", "The last step."),
    "xfer_images_per_s": ("images_per_s", "Images a second of this rank."),
    "xfer_exchange_seconds": ("exchange", "Of a step in exchange with other ranks, waiting for them included."),
    "xfer_replaced": ("replaced", "Damaged samples that were replaced since the row before."),
    "xfer_memory_mb": ("memory_mb", "Memory of the process, at its peak."),
}
"""By name the key of a timing row, and what it says."""


class Gauges:
    """Of one rank of a run."""

    def __init__(self, run: str, rank: int):
        tags = {"run": run, "rank": str(rank)}
        self._gauges = {name: Gauge(name, said, tuple(tags)) for name, (_, said) in GAUGES.items()}
        self._parts = Gauge(PART, "Mean seconds of a step, by part.", (*tags, "part"))
        self._tags = tags

    def show(self, row: Mapping[str, Any]) -> None:
        """row: of xfer/timing.py."""
        for name, (key, _) in GAUGES.items():
            if key in row:
                self._gauges[name].set(row[key], self._tags)
        for part, seconds in row["mean"].items():
            self._parts.set(seconds, {**self._tags, "part": part})
