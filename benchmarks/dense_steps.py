"""What a step of a detector and of a segmenter costs, against torchvision's own model of the same parts in a bare loop.

    python -m benchmarks.dense_steps

FCOS and LR-ASPP on a ResNet-18 with random weights, every layer trained, in float32; batches lie in memory. Both take
turns in one process on one thread, and what counts is CPU time, so that other work beside it matters little: each round
gives one ratio. Ours is the whole loop of a run (`benchmarks/overhead.py`), with the loss that is masked by source.
Parts that differ: our projections have a BatchNorm, and bring maps to one width before LR-ASPP's head too.
"""

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.overhead import batches, ours
from benchmarks.plain_tasks import WIDTH, fcos, fcos_loss, lraspp, lraspp_loss
from benchmarks.record import commit
from shards.loading.batch import Batch
from shards.progress import progress
from xfer.engine import PlainEngine
from xfer.model import build_model
from xfer.model_config import ModelConfig
from xfer.optimizer import build_optimizer
from xfer.tasks.known import task_of
from xfer.tasks.task import Loss, Supervision

CLASSES = 3
OBJECTS = 10  # an image
SGD = ("sgd", 1e-3, 0.9, 5e-4)
RESULT = Path(__file__).parent / "results" / "dense-steps.md"
Scripts = dict[str, Callable[[int], tuple[nn.Module, Callable[[Batch], Tensor]]]]


def _fcos(size: int) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    net = fcos(resnet18(), CLASSES, size)
    return net, lambda batch: fcos_loss(net, batch, "fp32")


def _lraspp(size: int) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    net = lraspp(resnet18(), CLASSES)
    return net, lambda batch: lraspp_loss(net, batch, "fp32")


SCRIPTS: Scripts = {"fcos": _fcos, "lraspp": _lraspp}


def dense_batches(batch_size: int, side: int) -> list[Batch]:
    """Of one source that annotates all classes: random boxes and masks."""
    generator = torch.Generator().manual_seed(0)
    return [replace(batch, sources=batch.sources * 0, **_said(batch, generator)) for batch in batches(batch_size, side)]


def _said(batch: Batch, generator: torch.Generator) -> dict[str, Any]:
    count, side = len(batch), batch.images.shape[-1]
    corners = torch.rand(count, OBJECTS, 2, generator=generator) * side * 0.7
    sides = (0.05 + 0.25 * torch.rand(count, OBJECTS, 2, generator=generator)) * side
    labels = torch.randint(CLASSES, (count, OBJECTS, 1), generator=generator).float()
    boxes = torch.cat([corners, corners + sides, labels, torch.zeros_like(labels)], 2)
    masks = torch.randint(CLASSES, (count, side, side), generator=generator, dtype=torch.uint8)
    return {"boxes": tuple(boxes), "masks": masks}


def bare(net: nn.Module, loss: Callable[[Batch], Tensor], optimizer: torch.optim.Optimizer, data: Any, steps: int):
    net.train()
    for _ in range(steps):
        value = loss(next(data))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()


def rounds(head: str, options: argparse.Namespace) -> Iterator[dict[str, float]]:
    """CPU seconds a step of both, in turn."""
    data = itertools.cycle(dense_batches(options.batch, options.side))
    torch.manual_seed(0)
    net, loss = SCRIPTS[head](options.side)
    optimizer = build_optimizer(net, *SGD)
    config = ModelConfig.model_validate(
        {"branches": {"main": {"backbone": "resnet18"}}, "fusion": {"width": WIDTH}, "head": {"kind": head}}
    )
    model = build_model(config, CLASSES, seed=0)
    engine = PlainEngine(model, build_optimizer(model, *SGD), device=torch.device("cpu"))
    objective: Loss = task_of(model.task).loss(Supervision(torch.ones(1, CLASSES, dtype=torch.bool), ["s"]))
    for turn in range(options.rounds + 1):  # the first one warms up
        spent = {}
        for which in ("bare", "ours") if turn % 2 else ("ours", "bare"):
            started = time.process_time()
            if which == "bare":
                bare(net, loss, optimizer, data, options.steps)
            else:
                ours(engine, data, options.steps, options.batch, objective)
            spent[which] = (time.process_time() - started) / options.steps
        if turn:
            yield {**spent, "ratio": spent["bare"] / spent["ours"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="of each in a round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {head: [] for head in SCRIPTS}
    with progress("steps", len(SCRIPTS) * options.rounds, "rounds") as advance:
        for head, rows in found.items():
            for row in rounds(head, options):
                rows.append(row)
                advance(1)
    lines = ["| head | bare, s a step | ours, s a step | bare over ours, median | lowest | highest |"]
    lines.append("|---|---|---|---|---|---|")
    for head, rows in found.items():
        bare_s, ours_s, ratio = (statistics.median(row[key] for row in rows) for key in ("bare", "ours", "ratio"))
        ends = f"{min(row['ratio'] for row in rows):.3f} | {max(row['ratio'] for row in rows):.3f}"
        lines.append(f"| {head} | {bare_s:.3f} | {ours_s:.3f} | **{ratio:.3f}** | {ends} |")
    raw = [json.dumps({"head": head, **row}) for head, rows in found.items() for row in rows]
    RESULT.write_text(
        "\n".join(
            [
                "# A step of a detector and of a segmenter, against torchvision's own",
                "",
                "    python -m benchmarks.dense_steps",
                "",
                f"Commit {commit()}, {platform.machine()}, one thread, torch {torch.__version__}. Batches of "
                f"{options.batch} at {options.side} px, {OBJECTS} objects an image, {options.rounds} rounds of "
                f"{options.steps} steps of each in turn; CPU seconds.",
                "",
                *lines,
                "",
                "Raw rows:",
                "",
                "```",
                *raw,
                "```",
            ]
        )
        + "\n"
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
