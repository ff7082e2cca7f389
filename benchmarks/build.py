"""What a build costs: memory while ten thousand to ten million samples are listed, planned and written, and samples/s.

    python -m benchmarks.build

The source is generated: it lists as many samples as it is asked for, and each is the same image under another name, a
tiny one if there are very many of them: memory is then what is looked at, and the disk has an end.
Every row is a process of its own. Memory is the peak of each process as the kernel counts it (VmHWM), workers apart.
"""

import argparse
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.record import commit
from shards.ingest import plan as planning
from shards.ingest.build import build
from shards.ingest.plan import Request
from shards.sources import Item
from shards.sources.notes import Notes

CLASSES = 1000
SIDE, TINY = 128, 16
MANY = 1_000_000


class Drawn:
    """A source of `count` samples. Processes leave their peak memory in the folder `peaks` as they read."""

    task, fields, ignored, notes = "classification", {"label": "cls"}, 0, Notes()
    classes = tuple(f"{label:03d}" for label in range(CLASSES))

    def __init__(self, count: int, peaks: Path):
        side = TINY if count >= MANY else SIDE
        noise = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((side, side)).save(buffer, "JPEG")
        self.count, self.peaks, self.image = count, peaks, buffer.getvalue()

    def items(self) -> Iterator[Item]:
        for number in range(self.count):
            name = f"{number % CLASSES:03d}/{number:09d}"
            stamp = f"{len(self.image)}:1700000000000000000"
            yield Item(name, len(self.image), stamp, number % CLASSES, {"image": f"{name}.jpg"})

    def read(self, item: Item) -> dict[str, bytes]:
        if int(item.key[-9:]) % 100 == 0:
            (self.peaks / str(os.getpid())).write_text(str(peak_mb()))
        return {"jpg": self.image, "cls": b"%d" % item.label}


def peak_mb() -> float:
    """Most memory that this process held since it began, or since `forget_peak`, in MB."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return round(int(found.group(1)) * 1024 / 1e6, 1)


def forget_peak() -> float:
    """Sets the peak to what is held now, in MB: imports held more for a moment than they do afterwards."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def list_and_plan(count: int, processes: int, folder: Path) -> dict[str, Any]:
    source = Drawn(count, folder)
    before, started = forget_peak(), time.perf_counter()
    plan = planning.make(source, Request("drawn", "train", "", "drawn", {}, 64_000_000, 0), folder)
    tasks = plan.tasks()
    seconds = time.perf_counter() - started
    assert sum(task.span.count for task in tasks) == count
    return {
        "seconds": seconds,
        "before_mb": before,
        "peak_mb": peak_mb(),
        "listing_mb": plan.listing.path.stat().st_size / 1e6,
    }


def whole_build(count: int, processes: int, folder: Path) -> dict[str, Any]:
    peaks = folder / "peaks"
    peaks.mkdir()
    before, started = forget_peak(), time.perf_counter()
    report = build(Drawn(count, peaks), folder / "out", processes=processes, shard_mb=64 if count >= MANY else 8)
    seconds = time.perf_counter() - started
    assert report.manifest.num_samples == count
    workers = [float(path.read_text()) for path in peaks.iterdir() if path.name != str(os.getpid())]
    return {"seconds": seconds, "before_mb": before, "peak_mb": peak_mb(), "workers_mb": workers}


KINDS = {"list": list_and_plan, "build": whole_build}


def one(kind: str, count: int, processes: int) -> dict[str, Any]:
    """Measures in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.build", "--one", kind, str(count), str(processes)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(answer.splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| what | samples | processes | seconds | samples/s | peak of the parent | of each worker |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        workers = ", ".join(f"{mb:.0f}" for mb in row.get("workers_mb", ())) or "-"
        parent = f"{row['peak_mb']:.0f} MB (+{row['peak_mb'] - row['before_mb']:.0f})"
        lines.append(
            f"| {row['kind']} | {row['samples']:,} | {row['processes']} | {row['seconds']:.1f} | "
            f"**{row['samples'] / row['seconds']:,.0f}** | {parent} | {workers} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=int, nargs="*", default=[10_000, 100_000, 1_000_000, 10_000_000], help="samples")
    parser.add_argument("--build", type=int, nargs="*", default=[10_000, 100_000], help="samples, 1 and 2 processes")
    parser.add_argument(
        "--large",
        type=int,
        nargs="*",
        default=[1_000_000],
        help="samples, all processes; tiny images (10^7 take half an hour)",
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "build.md")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        kind, count, processes = arguments.one
        with tempfile.TemporaryDirectory() as folder:
            row = KINDS[kind](int(count), int(processes), Path(folder))
        print(json.dumps({"kind": kind, "samples": int(count), "processes": int(processes), **row}))
        return
    steps = [("list", count, 1) for count in arguments.list]
    steps += [("build", count, processes) for count in arguments.build for processes in (1, 2)]
    steps += [("build", count, os.cpu_count() or 1) for count in arguments.large]
    busy, rows = os.getloadavg()[0], []
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] {' '.join(map(str, step))}", file=sys.stderr, flush=True)
        rows.append(one(*step))
        arguments.out.write_text(page(rows, busy))  # after each row: the large ones take long
    print(f"-> {arguments.out}")


def page(rows: list[dict[str, Any]], busy: float) -> str:
    return f"""# Building shards: memory and speed

Command: `python -m benchmarks.build`
Commit: {commit()}. Machine: {platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}.
`list`: a source listed, sorted on disk, and cut into shards. `build`: the same, then every sample read, decoded as a
check, written and hashed; each one is the same JPEG of {SIDE} x {SIDE} pixels, of {TINY} x {TINY} from a million on. In
brackets: what the work added to a process that had only imported. Seconds include the start of the worker processes.
Load average: {busy:.1f} before, {os.getloadavg()[0]:.1f} after (this alone is 1 to 2); where others worked beside it,
memory holds and seconds do not.

{chr(10).join(table(rows))}

Raw rows:

```
{chr(10).join(json.dumps(row) for row in rows)}
```
"""


if __name__ == "__main__":
    main()
