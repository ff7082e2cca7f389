"""`make mutants`: applies each break to a copy of the project, runs the tests that should see it, and reports which do.

    python -m tests.mutants                        # those that are new or stale; writes benchmarks/results/mutants.md
    python -m tests.mutants clip-ignored wsum-norm # only these

A break is caught if its tests fail; one that survives is a hole in the tests. Before it is tried its tests run on the
unbroken copy: they have to pass, or a failure would prove nothing. Costs 5 to 60 seconds a break. What was found is
kept in mutants.jsonl until the break, its file or its tests change: a command that was stopped goes on.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.record import commit
from shards.progress import progress
from tests.mutants.breaks import BREAKS
from tests.mutants.broken import Break

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "mutants.md"
KEPT = RESULT.with_suffix(".jsonl")
TIMEOUT_S = 300


@dataclass(frozen=True)
class Outcome:
    """`caught`: its tests failed. `by`: the first test that did, or why there is none. `of`: see `_fingerprint`."""

    name: str
    of: str
    caught: bool
    by: str
    seconds: float
    commit: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="breaks to try; all if none is given")
    names = parser.parse_args().names
    unknown = sorted(set(names) - {broken.name for broken in BREAKS})
    if unknown:
        print(f"no such break: {', '.join(unknown)}; there are {', '.join(b.name for b in BREAKS)}", file=sys.stderr)
        return 2
    kept = _kept()
    chosen = [broken for broken in BREAKS if (broken.name in names if names else broken.name not in kept)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = _copy(Path(folder) / "project")
        sound: set[str] = set()  # tests that pass on the unbroken copy
        with progress("breaks", len(chosen), "tried") as advance:
            for broken in chosen:
                failure = _run(copy, [test for test in broken.tests if test not in sound], 20 * TIMEOUT_S)
                if failure:
                    print(f"without any break the tests fail already: {failure}", file=sys.stderr)
                    return 1
                sound.update(broken.tests)
                kept[broken.name] = _try(copy, broken)
                _write(kept)
                advance(1, f"{sum(kept[one.name].caught for one in chosen if one.name in kept)} caught")
    _write(kept)
    survivors = [broken for broken in BREAKS if broken.name in kept and not kept[broken.name].caught]
    for broken in survivors:
        print(f"NOT CAUGHT {broken.name}: {broken.file}: {broken.what}")
    print(f"{len(kept) - len(survivors)} of {len(kept)} caught, {len(BREAKS) - len(kept)} not tried; written: {RESULT}")
    return 1 if survivors else 0


def _kept() -> dict[str, Outcome]:
    """What was found of breaks that are what they were, and so are their files and tests."""
    rows = [Outcome(**json.loads(line)) for line in KEPT.read_text().splitlines()] if KEPT.is_file() else []
    now = {broken.name: _fingerprint(broken) for broken in BREAKS}
    return {row.name: row for row in rows if now.get(row.name) == row.of}


def _fingerprint(broken: Break) -> str:
    """Of a break, its file and its tests."""
    named = {ROOT / broken.file, *(ROOT / test.partition("::")[0] for test in broken.tests)}
    files = {file for path in named for file in (path.rglob("*.py") if path.is_dir() else [path])}
    parts = [repr(broken), *(path.read_text() for path in sorted(files))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


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
    seconds = round(time.monotonic() - started, 1)
    return Outcome(broken.name, _fingerprint(broken), bool(failure), failure or "nothing", seconds, commit())


def _run(copy: Path, tests: list[str], timeout_s: float) -> str:
    """The first test that fails, or empty."""
    if not tests:
        return ""
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


def _write(kept: dict[str, Outcome]) -> None:
    found = [(broken, kept[broken.name]) for broken in BREAKS if broken.name in kept]
    KEPT.write_text("".join(json.dumps(asdict(outcome)) + "\n" for _, outcome in found))
    RESULT.write_text(_report(found))


def _report(found: list[tuple[Break, Outcome]]) -> str:
    caught = sum(o.caught for _, o in found)
    rows = [
        f"| {one.name} | `{one.file}` | {one.what} | {'yes' if o.caught else '**no**'} | `{o.by}` | {o.seconds:.0f} "
        f"| {o.commit} |"
        for one, o in found
    ]
    rest = f", {len(BREAKS) - len(found)} not tried yet" if len(found) < len(BREAKS) else ""
    return "\n".join(
        [
            "# Breaks that the tests must catch",
            "",
            "Command: `make mutants`",
            f"Machine: {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}.",
            "",
            f"**{caught} of {len(found)} caught{rest}.** The breaks: `tests/mutants/breaks/`.",
            "",
            "| break | file | what is broken | caught | first test that fails | seconds | commit |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
