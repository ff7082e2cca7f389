"""What every committed measurement says: of which commit, and how sure a mean over seeds is."""

import json
import math
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from shards.progress import progress
from xfer.metrics import Estimate

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t for a two-sided 95 % interval, by degrees of freedom."""


def commit() -> str:
    """The commit of this checkout, `-dirty` if anything but results was changed since; `unknown` outside of one."""
    found = _git("describe", "--always")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results")
    return f"{found}-dirty" if found and changed else found or "unknown"


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of runs that were made before; none if there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def keep(path: Path, *rows: dict[str, Any]) -> None:
    """Adds rows to those of a file."""
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


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


def each_on_a_core(name: str, jobs: int, run: Callable[..., Any], todo: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """What `run(*arguments)` returns for each of `todo`, as it ends: in processes of their own with one thread each,
    `jobs` at a time. One that fails is told at once and costs no other; raises SystemExit at the end if any did.
    """
    failed = 0
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,), max_tasks_per_child=1)
    with progress(name, len(todo), "runs") as advance, pool:
        for done in as_completed([pool.submit(run, *one) for one in todo]):
            if error := done.exception():
                failed += 1
                print("".join(traceback.format_exception(error)), file=sys.stderr)
            else:
                yield done.result()
            advance()
    if failed:
        raise SystemExit(f"{failed} of {len(todo)} runs failed; the same command tries them again")
