"""What every committed measurement says: of which commit, and how sure a mean over seeds is."""

import math
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path

from xfer.metrics import Estimate

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t for a two-sided 95 % interval, by degrees of freedom."""


def commit() -> str:
    """The commit of this checkout, `-dirty` if it was changed since; `unknown` outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean of 2 to 10 values, one a seed, with its 95 % t-interval."""
    mean = statistics.fmean(values)
    half = T_95[len(values) - 1] * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def cell(values: Sequence[float], signed: bool) -> str:
    """For a table: the mean and half of its interval; one value alone as it is."""
    form = "+.1f" if signed else ".1f"
    if len(values) < 2:
        return format(values[0], form) if values else "-"
    mean, low, high = over_seeds(values)
    return f"{mean:{form}} ± {(high - low) / 2:.1f}"
