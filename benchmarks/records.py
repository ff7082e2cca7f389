"""What a run's records of its steps cost, chain.jsonl and timing-<rank>.jsonl, against a small step.

    python -m benchmarks.records

Two loops, one with and one without records, differ by less than a shared machine's noise. So what the records do is
done here by itself, often, for the steps of one row of losses, and its CPU time held against that of a step.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.overhead import CLASSES, MASKS, batches
from benchmarks.record import commit
from shards.format.hashing import fold
from xfer import chain, timing
from xfer.engine import PlainEngine
from xfer.labels import Objective
from xfer.model import build_model
from xfer.model_config import ModelConfig
from xfer.optimizer import build_optimizer
from xfer.train import train_step

STEPS, LAPS, BATCH = 10, 6, 32  # of a row of losses; of a step; images of a step
CPU = torch.device("cpu")


def chained(folder: Path) -> None:
    losses = [torch.rand(()) for _ in range(STEPS)]
    prints = [torch.randint(-(2**62), 2**62, (BATCH,)).sum() for _ in range(STEPS)]
    means, images = chain.unpacked(chain.packed(losses, prints))
    before, links = {}, []
    for step, (mean, image) in enumerate(zip(means, images, strict=True)):
        links.append(chain.linked(before, step, 1, image, mean))
        before = chain.ends(links[-1])
    chain.append(folder, links)


def signed(folder: Path) -> None:
    names, places = np.ones(2, np.uint64), np.arange(BATCH)
    for _ in range(STEPS):
        fold(names[places % 2], places, places)


def timed(folder: Path) -> None:
    laps = timing.Laps(CPU)
    laps.start()
    for _ in range(STEPS):
        for _ in range(LAPS - 1):
            laps.lap("forward")
        laps.end(BATCH)
    timing.append(folder, {"rank": 0, **laps.row(), "step": 1, "node": "n", "since": 0, "exchange": 0.0})


def step(side: int) -> Callable[[Path], None]:
    """A training step of a ResNet-18 on images of so many pixels a side."""
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate({"branches": {"one": {"backbone": "resnet18"}}}), CLASSES, seed=0)
    engine = PlainEngine(model, build_optimizer(model, "sgd", 0.01, 0.9, 5e-4), device=CPU)
    (batch,) = batches(BATCH, side, 1)
    objective = Objective(MASKS, ["s", "t"])
    engine.module.train()
    return lambda folder: train_step(engine, batch, objective, BATCH) and None


def cpu_ms(what: Callable[[Path], None], times: int, folder: Path) -> list[float]:
    """CPU milliseconds of each of five rounds, by call."""
    what(folder)
    found = []
    for _ in range(5):
        started = time.process_time()
        for _ in range(times):
            what(folder)
        found.append(1000 * (time.process_time() - started) / times)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "records.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = {f"step, {side} px": cpu_ms(step(side), 2, folder) for side in (64, 96)}
        parts = {"chain": chained, "fingerprints, in the loader": signed, "timing": timed}
        rows = {what: [ms / STEPS for ms in cpu_ms(part, 200, folder)] for what, part in parts.items()}
        sizes = {path.name: path.stat().st_size / (1001 * STEPS) for path in sorted(folder.iterdir())}
    (small, step_ms), *_ = ((what, statistics.median(found)) for what, found in steps.items())
    lines = [f"| what | CPU ms a step | of a {small} |", "|---|---|---|"]
    for what, found in {**rows, **steps}.items():
        middle = statistics.median(found)
        lines.append(f"| {what} | {middle:.4f} | {100 * middle / step_ms:.3f} % |")
    written = ", ".join(f"{name} {size:.0f}" for name, size in sizes.items())
    raw = [
        json.dumps({"what": what, "ms": [round(ms, 5) for ms in found]}) for what, found in {**rows, **steps}.items()
    ]
    arguments.out.write_text(
        f"""# What the records of steps cost

Command: `python -m benchmarks.records`
Commit: {commit()}. Machine: {platform.machine()}, one thread, torch {torch.__version__}.
A step: forward, backward and update of a ResNet-18 on {BATCH} images in memory, `train_step`. The records: those of
{STEPS} steps and one row of losses, as in a run with `train.log_every` 10, by step. Medians of five rounds.

{chr(10).join(lines)}

Bytes a step: {written}.

Raw rows (rounds):

```
{chr(10).join(raw)}
```
"""
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
