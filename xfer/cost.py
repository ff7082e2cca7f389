"""What a run cost, from the rows of its metrics.jsonl. They are cut where a resumed run began again, so they add up
over all its starts, and steps that were lost and made again count once.
"""

import resource
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from shards.text import duration, size
from xfer.measure import measure_of

MEASURED = ("images_per_s", "seconds", "evaluation_seconds", "memory_mb", "gpu_memory_mb")
"""Keys of rows that say what they cost: the same run again has other values of them, and of nothing else."""


def memory_mb(device: torch.device) -> dict[str, float]:
    """The most memory that this process has had so far, loader processes not counted; and of its GPU's, what PyTorch
    had allocated.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    found = {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6}
    return found | ({"gpu_memory_mb": torch.cuda.max_memory_allocated(device) / 1e6} if device.type == "cuda" else {})


def without_cost(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what was measured: equal for equal runs."""
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]


def cost_rows(rows: Sequence[Mapping[str, Any]], checkpoints: Path) -> list[list[str]]:
    """What is on record as a table for people, its header first. checkpoints: the folder that holds them."""
    timed = [row for row in rows if "seconds" in row]
    found = []
    if timed:
        seconds = sum(row["seconds"] for row in timed)
        images = sum(row["seconds"] * row["images_per_s"] for row in timed)
        found.append(["training", duration(seconds), "wall time of all steps"])
        found.append(["images", f"{images:,.0f}", f"seen in training, {images / max(seconds, 1e-9):,.0f} a second"])
    scoring = [row["evaluation_seconds"] for row in rows if "evaluation_seconds" in row and measure_of(row)]
    if scoring:
        found.append(["evaluation", duration(sum(scoring)), f"wall time of {len(scoring)} while training"])
    for key, what in (("memory_mb", "memory"), ("gpu_memory_mb", "GPU memory")):
        if most := max((row.get(key, 0) for row in rows), default=0):
            found.append([what, size(1e6 * most), "at most, of the process of rank 0 without its loaders"])
    kept = {path: _size(path) for path in sorted(checkpoints.glob("step-*")) if path.is_dir()}
    if kept:
        found.append(["checkpoint", size(list(kept.values())[-1]), f"the newest; {size(sum(kept.values()))} in all"])
    return [["what", "how much", ""], *found] if found else []


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
