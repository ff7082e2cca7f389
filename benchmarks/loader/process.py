"""A measurement in a fresh process of its own session: started, timed out, its answer read, its memory summed.

Peers print as they like, so the answer comes back in a file.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def answer_of(python: Path, module: str, question: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
    """Runs `python -m module FILE` with the question, and gives its rows; one row with an `error` if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered, said = (Path(folder) / name for name in ("question", "answer", "said"))
        asked.write_text(json.dumps({**question, "answer": str(answered), "started": time.time()}))
        with said.open("wb") as output:
            process = subprocess.Popen(
                [python, "-m", module, asked],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status: int | str = process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                status = f"no answer within {timeout_s:.0f} s"
            finally:
                _end(process)
        if answered.is_file():
            return json.loads(answered.read_text())
        last = said.read_text(errors="replace").strip().splitlines()[-1:] or [""]
        return [{"error": f"exit status {status}: {last[0]}"[:300]}]


def _end(process: subprocess.Popen) -> None:
    """Ends the measurement's session, whatever it left running in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def settle(timeout_s: float = 30.0) -> None:
    """Waits until the machine is idle: what a contestant left behind would slow the next one down."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        before, started = _busy_s(), time.monotonic()
        time.sleep(0.5)
        if _busy_s() - before < 0.05 * (time.monotonic() - started):
            return


def _busy_s() -> float:
    """CPU seconds that anybody used, on all cores."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split(maxsplit=8)[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    parents = {}
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            stat = Path(entry.path, "stat").read_text()
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def memory_mb(pid: int) -> dict[str, float]:
    """Of the tree: `pss_mb` counts shared pages once, `rss_mb` in every process that has them."""
    total = {"Pss": 0, "Rss": 0}
    for member in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in total:
                    total[name] += int(value.split()[0])
    return {"pss_mb": total["Pss"] / 1024, "rss_mb": total["Rss"] / 1024}
