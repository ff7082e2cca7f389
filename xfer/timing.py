"""Where the time of a step goes, on each rank: timing-<rank>.jsonl of the run folder, a row for each row of losses.

    {"step": 600, "since": 400, "rank": 1, "ranks": 2, "node": "h2", "steps": 10, "images": 160, "images_per_s": 71.2,
     "mean": {"data": 0.01, "copy": ..., "step": 0.22}, "max": {...}, "exchange": 0.05, "reading": 0.1, "decoding": 0.8,
     "workers": 2, "cpus": 8, "replaced": 0, "memory_mb": 810.0}

`mean` and `max` are seconds over the row's steps. A step is cut where the loop goes from one thing to the next, so the
parts add up to it: waiting for the batch (`data`), bringing it to the device, forward with the loss, backward, the
update, and what is left (the losses read, fusion weights learned). Evaluations and checkpoints are between steps and in
none of them. `exchange` is what of it the rank spent in DeepSpeed's collectives, the wait for slower ranks included;
`reading` and `decoding` are what loader processes took for a step's images, all of them together. `since`: the step at
which this start of the run began.

On a GPU, which works behind the program, the cuts are CUDA events: recorded as the loop passes and read when the losses
are, which waits anyway. So `data` is the time that the GPU had nothing to do, and nothing is made to wait for a clock.

Cost: a dozen readings of a clock a step and 400 bytes a row (benchmarks/results/records.md).
"""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from shards.format.whole import naming, read_json_lines, write_text

FILE = "timing-{}.jsonl"
PARTS = ("data", "copy", "forward", "backward", "update", "rest")
Row = dict[str, Any]


def append(folder: Path, row: Row) -> None:
    """To the file of its rank."""
    path = folder / FILE.format(row["rank"])
    with naming(path), path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_timing(folder: Path) -> list[Row]:
    """The rows of all ranks of a run folder. Raises ConfigError naming a damaged one."""
    return [row for path in sorted(folder.glob(FILE.format("*"))) for row in read_json_lines(path)]


def cut(folder: Path, step: int) -> None:
    """Takes out the rows behind a step, of every rank; while none of them writes."""
    for path in folder.glob(FILE.format("*")):
        rows = read_json_lines(path)
        kept = [row for row in rows if row["step"] <= step]
        if kept:
            write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        else:
            path.unlink()


class Clock:
    """Moments on the time line of a device, and the seconds between them."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"

    def now(self) -> Any:
        """A moment; on a GPU the one when it comes to what is asked of it next."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """On a GPU both have to have come; that is waited for."""
        if not self._cuda:
            return end - begin
        end.synchronize()
        return begin.elapsed_time(end) / 1000


class Spans:
    """How long something took that is done again and again, since it was asked last."""

    def __init__(self, clock: Clock):
        self._clock = clock
        self._spans: list[tuple[Any, Any]] = []

    def measured(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, measured."""

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = self._clock.now()
            try:
                return function(*arguments, **options)
            finally:
                self._spans.append((begin, self._clock.now()))

        return timed

    def take(self) -> float:
        """Seconds, and forgets them."""
        spans, self._spans = self._spans, []
        return sum(self._clock.seconds(*span) for span in spans)


class Laps:
    """The parts of the steps since the last row."""

    def __init__(self, device: torch.device):
        self._clock = Clock(device)
        self._last, self._step = self._clock.now(), []
        self._steps: list[list[tuple[str, Any, Any]]] = []
        self._images = 0

    def start(self) -> None:
        """The next step begins now; what was since the last one belongs to none."""
        self._last, self._step = self._clock.now(), []

    def lap(self, part: str) -> None:
        """What was done since the last call is `part` of the step."""
        now = self._clock.now()
        self._step.append((part, self._last, now))
        self._last = now

    def end(self, images: int) -> None:
        """A step is done, of so many images of this rank; the next begins."""
        self.lap("rest")
        self._steps.append(self._step)
        self._step = []
        self._images += images

    def row(self) -> Row:
        """Of the steps since the last one, at least one; waits for the device."""
        seconds = []
        for step in self._steps:
            parts: dict[str, float] = defaultdict(float)
            for part, begin, end in step:
                parts[part] += self._clock.seconds(begin, end)
            seconds.append(parts | {"step": sum(parts.values())})
        count, images = len(seconds), self._images
        self._steps, self._images = [], 0
        total = {part: sum(one.get(part, 0.0) for one in seconds) for part in (*PARTS, "step")}
        return {
            "steps": count,
            "images": images,
            "images_per_s": round(images / max(total["step"], 1e-9), 2),
            "mean": {part: round(value / count, 6) for part, value in total.items()},
            "max": {part: round(max(one.get(part, 0.0) for one in seconds), 6) for part in total},
        }
