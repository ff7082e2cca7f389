"""`make mutants`: applies each break to a copy of the project, runs the tests that should see it, and reports which do.

    python -m tests.mutants                        # all of them; writes benchmarks/results/mutants.md
    python -m tests.mutants clip-ignored wsum-norm # only these; writes nothing

A break is caught if its tests fail; one that survives is a hole in the tests. First the tests named by the breaks run
on the unbroken copy: they have to pass, or a failure would prove nothing. Costs 5 to 30 seconds a break.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.record import commit
from shards.progress import progress
from tests.mutants.breaks import BREAKS
from tests.mutants.broken import Break

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "mutants.md"
TIMEOUT_S = 300


@dataclass(frozen=True)
class Outcome:
    """`caught`: its tests failed. `by`: the first test that did, or why there is none."""

    broken: Break
    caught: bool
    by: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="breaks to try; all if none is given")
    names = parser.parse_args().names
    unknown = sorted(set(names) - {broken.name for broken in BREAKS})
    if unknown:
        print(f"no such break: {', '.join(unknown)}; there are {', '.join(b.name for b in BREAKS)}", file=sys.stderr)
        return 2
    chosen = [broken for broken in BREAKS if not names or broken.name in names]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = _copy(Path(folder) / "project")
        failure = _run(copy, sorted({test for broken in chosen for test in broken.tests}), 20 * TIMEOUT_S)
        if failure:
            print(f"without any break the tests fail already: {failure}", file=sys.stderr)
            return 1
        outcomes = []
        with progress("breaks", len(chosen), "tried") as advance:
            for broken in chosen:
                outcomes.append(_try(copy, broken))
                advance(1, f"{sum(outcome.caught for outcome in outcomes)} caught")
    survivors = [outcome for outcome in outcomes if not outcome.caught]
    for outcome in survivors:
        print(f"NOT CAUGHT {outcome.broken.name}: {outcome.broken.file}: {outcome.broken.what}")
    print(f"{len(outcomes) - len(survivors)} of {len(outcomes)} caught")
    if not names:
        RESULT.write_text(_report(outcomes))
        print(f"written: {RESULT}")
    return 1 if survivors else 0


def _copy(target: Path) -> Path:
    """The tracked files, so nothing that is broken can touch the work tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


def _try(copy: Path, broken: Break) -> Outcome:
    path, started = copy / broken.file, time.monotonic()
    text = path.read_text()
    path.write_text(broken.apply(text))
    try:
        failure = _run(copy, list(broken.tests), TIMEOUT_S)
    finally:
        path.write_text(text)
    return Outcome(broken, bool(failure), failure or "nothing", time.monotonic() - started)


def _run(copy: Path, tests: list[str], timeout_s: float) -> str:
    """The first test that fails, or empty."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"timed out after {timeout_s:g} s"
    if done.returncode == 0:
        return ""
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0].split(maxsplit=1)[1] if failed else f"pytest ended with {done.returncode}"


def _report(outcomes: list[Outcome]) -> str:
    caught = sum(outcome.caught for outcome in outcomes)
    rows = [
        f"| {o.broken.name} | `{o.broken.file}` | {o.broken.what} | {'yes' if o.caught else '**no**'} | `{o.by}` "
        f"| {o.seconds:.0f} |"
        for o in outcomes
    ]
    return "\n".join(
        [
            "# Breaks that the tests must catch",
            "",
            "Command: `make mutants`",
            f"Commit: {commit()}. Machine: {platform.machine()}, {os.cpu_count()} CPUs, "
            f"Python {platform.python_version()}.",
            "",
            f"**{caught} of {len(outcomes)} caught.** The breaks: `tests/mutants/breaks/`.",
            "",
            "| break | file | what is broken | caught | first test that fails | seconds |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
