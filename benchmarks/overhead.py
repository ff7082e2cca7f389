"""What the loop, the engines, Ray and DeepSpeed cost: images/s against a bare PyTorch loop on the same model and
batches.

    python -m benchmarks.overhead

Both loops run in turn in one process on one thread, each first in every other round; each round gives one ratio, and
the median is reported. A second is one of CPU time, so that other work beside it matters little. The loss is masked by
source in both, and both keep an average of the weights where it says EMA. For Ray and DeepSpeed that process is the one
worker of a Ray Train run. Batches lie in memory.
"""

import argparse
import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.record import commit
from cluster.session import connect
from shards.loading.batch import Batch
from shards.progress import progress
from xfer.chain import Link
from xfer.checkpoint import TrainState
from xfer.config import TrainConfig
from xfer.deepspeed_engine import DeepSpeedEngine
from xfer.engine import Engine, PlainEngine
from xfer.labels import Objective
from xfer.model import build_model
from xfer.model_config import ModelConfig
from xfer.optimizer import build_optimizer
from xfer.tasks.task import Loss
from xfer.train import Row, Training, train

CLASSES = 7
TWO = {"fine": {"backbone": "resnet18"}, "coarse": {"backbone": "resnet18", "size": 64}}
MODELS: dict[str, tuple[dict[str, Any], float | None]] = {
    "resnet18": ({"one": {"backbone": "resnet18"}}, None),
    "two branches": (TWO, None),
    "two branches, EMA": (TWO, 0.99),
}
MASKS = torch.arange(CLASSES).expand(2, -1) // 4 != torch.tensor([[1], [0]])  # each of two sources annotates a part


def batches(batch_size: int, side: int, count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randint(0, 256, (batch_size, 3, side, side), generator=generator, dtype=torch.uint8),
            torch.randint(0, 3, (batch_size,), generator=generator) + 4 * (torch.arange(batch_size) % 2),
            torch.arange(batch_size) % 2,
            torch.arange(batch_size),
            torch.ones(batch_size, dtype=torch.bool),
        )
        for _ in range(count)
    ]


def bare(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None, data: Any, steps: int
) -> None:
    """The loop anybody would write."""
    model.train()
    for _ in range(steps):
        batch = next(data)
        logits = model(batch.images).masked_fill(~MASKS[batch.sources], -torch.inf)
        loss = F.cross_entropy(logits, batch.targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if average:
            average.update_parameters(model)


def ours(engine: Engine, data: Any, steps: int, batch_size: int, objective: Loss) -> None:
    """xfer's own loop, with a report at the end."""
    config = TrainConfig(steps=steps, learning_rate=0.01, warmup=0, log_every=steps)
    train(Training(engine, data, objective, config, batch_size, range(steps), Nothing()), TrainState())


class Nothing:
    """A record of nothing: what a run folder costs is not measured here."""

    def evaluate(self) -> Row:
        return {}

    def save(self, state: TrainState) -> None:
        pass

    def report(self, row: Row) -> None:
        pass

    def timed(self, row: Row) -> None:
        pass

    def prove(self, links: Sequence[Link]) -> None:
        pass

    def is_asked_to_stop(self) -> bool:
        return False

    def is_over(self) -> bool:
        return False


def compare(config: dict[str, Any], make_engine: Any, advance: Any = lambda count: None) -> list[dict[str, float]]:
    """One row a round: images/s of both loops, and ours over bare."""
    data = itertools.cycle(batches(config["batch"], config["side"]))
    model_config = ModelConfig.model_validate({"branches": config["branches"]})
    plain, wrapped = (build_model(model_config, CLASSES, seed=0) for _ in range(2))
    optimizer = build_optimizer(plain, "sgd", 0.01, 0.9, 5e-4)
    engine = make_engine(wrapped, build_optimizer(wrapped, "sgd", 0.01, 0.9, 5e-4), ema=config["ema"])
    average = None
    if config["ema"]:
        average = AveragedModel(plain, multi_avg_fn=get_ema_multi_avg_fn(config["ema"]), use_buffers=True)
    objective = Objective(MASKS.to(engine.device), ["s", "t"])
    rows = []
    for turn in range(config["rounds"] + 1):  # the first one warms up
        seconds = {}
        for which in ("bare", "ours") if turn % 2 else ("ours", "bare"):
            started = time.process_time()
            if which == "bare":
                bare(plain, optimizer, average, data, config["steps"])
            else:
                ours(engine, data, config["steps"], config["batch"], objective)
            seconds[which] = time.process_time() - started
        if turn:
            images = config["steps"] * config["batch"]
            speeds = {which: images / took for which, took in seconds.items()}
            rows.append({**speeds, "ratio": seconds["bare"] / seconds["ours"]})
            advance(1)
    return rows


def in_ray(config: dict[str, Any]) -> None:
    """The Ray Train worker: DeepSpeed on one rank, beside the bare loop."""

    def make_engine(model: nn.Module, optimizer: torch.optim.Optimizer, ema: float | None) -> Engine:
        device, batch = torch.device("cpu"), config["batch"]
        return DeepSpeedEngine(model, optimizer, device, config["zero_stage"], micro_batch=batch, ema=ema)

    torch.set_num_threads(1)
    Path(config["answer"]).write_text(json.dumps(compare(config, make_engine)))


def ray_deepspeed(config: dict[str, Any]) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder, connect():
        answer = Path(folder) / "rows.json"
        from ray.train import RunConfig, ScalingConfig  # Ray reads its security settings when imported: connect() first
        from ray.train.torch import TorchTrainer

        trainer = TorchTrainer(
            in_ray,
            train_loop_config={**config, "answer": str(answer)},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(name="overhead", storage_path=folder),
        )
        trainer.fit()
        return json.loads(answer.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="of each loop in a round")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[tuple[str, str], list[dict[str, float]]] = {}
    for name, (branches, ema) in MODELS.items():
        config = {
            "branches": branches,
            "ema": ema,
            "batch": arguments.batch,
            "side": arguments.side,
            "steps": arguments.steps,
            "rounds": arguments.rounds,
            "zero_stage": 1,
        }
        with progress(f"PlainEngine, {name}", arguments.rounds, "rounds") as advance:
            results[name, "PlainEngine"] = compare(config, PlainEngine, advance)
        print(f"Ray Train + DeepSpeed, {name}: about as long again")
        results[name, "Ray Train, DeepSpeed, 1 worker"] = ray_deepspeed(config)
    lines = ["| model | engine | ratio to bare loop (median) | lowest | highest |", "|---|---|---|---|---|"]
    for (model, engine), rows in results.items():
        ratios = [row["ratio"] for row in rows]
        middle = statistics.median(ratios)
        lines.append(f"| {model} | {engine} | **{middle:.3f}** | {min(ratios):.3f} | {max(ratios):.3f} |")
    raw = [json.dumps({"model": m, "engine": e, **row}) for (m, e), rows in results.items() for row in rows]
    arguments.out.write_text(
        f"""# Training overhead, CPU, steady state

Command: `python -m benchmarks.overhead --rounds {arguments.rounds} --steps {arguments.steps}`
Commit: {commit()}. Machine: {platform.machine()}, one thread, torch {torch.__version__}.
Batches of {arguments.batch} at {arguments.side} px from memory; {arguments.rounds} rounds of {arguments.steps} steps of
each loop in turn, in one process.

{chr(10).join(lines)}

Raw rows (images per CPU second):

```
{chr(10).join(raw)}
```
"""
    )
    print("\n".join(lines))


if __name__ == "__main__":
    main()
