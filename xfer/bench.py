"""How fast models run here: latency and throughput of each way to run them, side by side.

Each way is a process of its own, so its memory is its own too, and they take turns: in every round each sees every
batch for a moment, so what slows the machine for a while slows all. A machine that others use at the same time cannot
tell; that is said, and not hidden in an average.
"""

import logging
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from shards.progress import progress
from shards.settings import ConfigError
from shards.text import table
from xfer.bundle import open_model
from xfer.export.opened import open_onnx
from xfer.export.write import FLOAT_FILE, INT8_FILE

EAGER, COMPILED, BF16, ONNX = "eager fp32", "compiled fp32", "compiled bf16", "onnxruntime"
ROUNDS = 7
BUSY, SPREAD = 0.15, 0.25
"""The share of the CPUs that others may use, and of its median that the rounds of a way may differ by."""


class Way(NamedTuple):
    """A way to run a model, or a file of one, whose weights take `file_mb` on disk."""

    path: Path
    name: str
    file_mb: float


@dataclass(frozen=True)
class Timed:
    """One way to run a model. `milliseconds`: by batch size the median of the rounds, each a median of its own;
    `spread`: by batch size, the lowest and the highest round; `memory_mb`: the most that its process held; `file_mb`:
    its weights on disk.
    """

    model: str
    way: str
    milliseconds: dict[int, float]
    spread: dict[int, tuple[float, float]]
    memory_mb: float
    file_mb: float

    @property
    def noise(self) -> float:
        """The largest distance of two rounds, in medians."""
        return max((high - low) / self.milliseconds[size] for size, (low, high) in self.spread.items())


@dataclass(frozen=True)
class Found:
    """All ways, and whether the machine was quiet enough to tell them apart: `noise` says why not."""

    rows: list[Timed]
    threads: int
    noise: str = ""

    def text(self) -> str:
        """A table for people."""
        sizes = list(self.rows[0].milliseconds)
        head = [
            "model",
            "way",
            *(f"batch of {size}, ms" for size in sizes),
            f"images/s at {sizes[-1]}",
            "MB",
            "file MB",
        ]
        rows = [head]
        for row in self.rows:
            times = [_ms(row, size) for size in sizes]
            rate = f"{1000 * sizes[-1] / row.milliseconds[sizes[-1]]:,.0f}"
            rows.append([row.model, row.way, *times, rate, f"{row.memory_mb:,.0f}", f"{row.file_mb:.1f}"])
        lines = [*table(rows), f"{self.threads} threads, {_cpu()}; median of {ROUNDS} rounds (lowest to highest)"]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        about = {"cpu": _cpu(), "threads": self.threads, "rounds": ROUNDS, "torch": torch.__version__}
        return {**about, "noise": self.noise, "rows": [asdict(row) for row in self.rows]}


def _ms(row: Timed, size: int) -> str:
    low, high = row.spread[size]
    return f"{row.milliseconds[size]:.1f} ({low:.1f} to {high:.1f})"


def bench(paths: Sequence[Path], sizes: Sequence[int], seconds: float, threads: int | None = None) -> Found:
    """Times every way to run the models at `paths` (runs, bundles, files of xfer export) on batches of `sizes` random
    images, for about `seconds` each. Raises ConfigError if one cannot be opened or other programs keep the CPUs busy.
    """
    threads = threads or torch.get_num_threads()
    ways = [way for path in paths for way in ways_of(path)]
    if (busy := busy_share()) > BUSY:
        raise ConfigError(
            f"other programs use {busy:.0%} of the CPUs, so times would say little; stop them and try again"
        )
    started: list[tuple[BaseProcess, Connection]] = []
    try:
        with progress("bench", len(ways) * (1 + ROUNDS), "turns") as advance:
            for way in ways:
                started.append(_start(way, sizes, threads))
                _ask(started[-1][1], None)  # loaded, compiled and warm
                advance()
            times: list[list[list[float]]] = [[] for _ in ways]
            for _ in range(ROUNDS):
                for own, (_, worker) in zip(times, started, strict=True):
                    own.append(_ask(worker, seconds / ROUNDS / len(sizes)))
                    advance()
        memory = [_ask(worker, "memory") for _, worker in started]
    finally:
        for process, worker in started:
            worker.close()
            process.terminate()
            process.join()
    rows = []
    for way, own, held in zip(ways, times, memory, strict=True):
        rounds = {size: [one[at] for one in own] for at, size in enumerate(sizes)}
        spread = {size: (min(found), max(found)) for size, found in rounds.items()}
        medians = {size: statistics.median(found) for size, found in rounds.items()}
        rows.append(Timed("/".join(way.path.absolute().parts[-2:]), way.name, medians, spread, held, way.file_mb))
    worst = max(rows, key=lambda row: row.noise)
    noise = f"the rounds of {worst.way} differ by {worst.noise:.0%}" if worst.noise > SPREAD else ""
    return Found(rows, threads, noise)


def ways_of(path: Path) -> list[Way]:
    """All ways to run a model on this machine. Raises ConfigError if it is none."""
    if path.suffix == ".onnx":
        return [Way(path, ONNX, open_onnx(path).weights_bytes / 1e6)]
    size = open_model(path).weights_bytes / 1e6
    files = [path / name for name in (FLOAT_FILE, INT8_FILE)]
    exported = [way for file in files if file.is_file() for way in ways_of(file)]
    return [*(Way(path, name, size) for name in (EAGER, COMPILED, BF16)), *exported]


def busy_share(seconds: float = 1.0) -> float:
    """The share of all CPUs that is in use while this process waits."""
    before = _cpu_times()
    time.sleep(seconds)
    total, idle = (after - one for after, one in zip(_cpu_times(), before, strict=True))
    return 1 - idle / total if total else 0.0


def _cpu_times() -> tuple[int, int]:
    """All and idle, in ticks; zeros where the system does not say."""
    with suppress(OSError, ValueError):
        values = [int(one) for one in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(values), values[3] + values[4]
    return 0, 0


def _cpu() -> str:
    """The name of the processor."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _start(way: Way, sizes: Sequence[int], threads: int) -> tuple[BaseProcess, Connection]:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, way, tuple(sizes), threads), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _ask(worker: Connection, what: Any) -> Any:
    """Raises ConfigError with what went wrong there."""
    try:
        worker.send(what)
        found = worker.recv()
    except (EOFError, BrokenPipeError):
        raise ConfigError("a process that was timed ended, perhaps for lack of memory") from None
    if isinstance(found, str):
        raise ConfigError(found)
    return found


def _work(parent: Connection, way: Way, sizes: Sequence[int], threads: int) -> None:
    """Answers what it is asked for: None: that it is ready; seconds: the median milliseconds of each batch size, timed
    for so long; "memory": MB that it held at most. A text says why it cannot.
    """
    import resource

    torch.set_num_threads(threads)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # that there is no CUDA is no news
    with suppress(EOFError, BrokenPipeError):
        try:
            parent.recv()
            size, see = _opened(way, threads)
            drawn = np.random.default_rng(0)
            images = {n: torch.from_numpy(drawn.integers(0, 256, (n, 3, size, size), np.uint8)) for n in sizes}
            for batch in images.values():
                for _ in range(3):
                    see(batch)
            parent.send(True)
        except Exception as error:
            parent.send(f"{way.path}: {way.name}: {type(error).__name__}: {str(error).splitlines()[0]}")
            return
        while True:
            what = parent.recv()
            if what == "memory":
                parent.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
            else:
                parent.send([_median(see, images[n], what) for n in sizes])


def _median(see: Callable[[torch.Tensor], object], images: torch.Tensor, seconds: float) -> float:
    """Milliseconds."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        started = time.perf_counter()
        see(images)
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def _opened(way: Way, threads: int) -> tuple[int, Callable[[torch.Tensor], object]]:
    """The size of its images, and what sees a batch of them."""
    if way.name == ONNX:
        trained = open_onnx(way.path, threads)
        return trained.image_size, trained.model
    trained = open_model(way.path)
    model: Any = trained.model.eval() if way.name == EAGER else torch.compile(trained.model.eval(), dynamic=False)

    @torch.inference_mode()
    def see(images: torch.Tensor) -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=way.name == BF16):
            return model(images)

    return trained.image_size, see
