"""Mutates shards, manifests, indexes and the files of others a hundred thousand times, and writes down what came of it.

    python -m benchmarks.fuzz                # -> benchmarks/results/fuzz.md
    python -m benchmarks.fuzz --count 2000 --seed 7 --out /tmp/fuzz.md

`tests/shards/fuzzing.py` says what is done and what must not happen; the exit status is 1 if anything of that did.
"""

import os
import platform
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cyclopts

from benchmarks.record import commit
from tests.shards.fuzzing import NAMED, SECONDS, Tally, run, targets

_RESULTS = Path(__file__).parent / "results" / "fuzz.md"
_STEP = 1000


def main(count: int = 100_000, seed: int = 0, out: Path = _RESULTS) -> int:
    """Runs `count` mutations and writes the report; in memory where there is such a folder, for files are many."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        ways_in = targets(Path(folder) / "sound")
        run(ways_in, Path(folder) / "work", 500, seed + 1)  # everything imported, every cache filled
        before, started, total = _peak_mb(), time.monotonic(), Tally()
        for first in range(0, count, _STEP):
            part = run(ways_in, Path(folder) / "work", min(_STEP, count - first), seed, first)
            total.outcomes.update(part.outcomes)
            total.mutations.update(part.mutations)
            total.findings += part.findings
            print(
                f"{first + _STEP:,} of {count:,}, {len(total.findings)} findings, {_peak_mb():,.0f} MB", file=sys.stderr
            )
        seconds = time.monotonic() - started
    out.write_text(_report(total, count, seed, seconds, before, _peak_mb()))
    return 1 if total.findings else 0


def _report(tally: Tally, count: int, seed: int, seconds: float, before: float, after: float) -> str:
    command = f"python -m benchmarks.fuzz --count {count} --seed {seed}"
    columns = ["as written", *(error.__name__ for error in NAMED), "finding"]
    ways_in = sorted({name for name, _ in tally.outcomes})
    rows = [[name, *(f"{tally.outcomes[name, column] or ''}" for column in columns)] for name in ways_in]
    sums = Counter[str]()
    for (_, outcome), number in tally.outcomes.items():
        sums[outcome] += number
    rows.append(["all", *(f"{sums[column]}" for column in columns)])
    lines = [
        "# Fuzzing",
        "",
        f"    nice -n 15 {command}",
        "",
        f"Commit {commit()}, {platform.machine()}, {_cpu()}, Python {platform.python_version()}.",
        f"{count:,} mutations in {seconds:,.0f} s, {1000 * seconds / count:.1f} ms each. Peak memory {before:,.0f} MB",
        f"before the first, {after:,.0f} MB after the last; no mutation may take more than {SECONDS:g} s, open a file",
        "outside its folder, or yield a sample that nobody wrote.",
        "",
        f"Findings: {len(tally.findings)}.",
        *(f"- {finding[:300]}" for finding in tally.findings[:50]),
        "",
        "What came of it, by way in. As written: it does not matter, such as a bit in the time of a tar header, or it",
        "made a sound file that says something else, where no checksum tells (tars and tables of others).",
        "",
        "| way in | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        "| mutation | times |",
        "|---|---:|",
        *(f"| {name} | {number} |" for name, number in sorted(tally.mutations.items())),
    ]
    return "\n".join(lines) + "\n"


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cpu() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return f"{len(names)} x {names[0]}" if names else "unknown processor"


if __name__ == "__main__":
    sys.exit(cyclopts.run(main))
