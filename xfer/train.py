"""The loop: steps of one global batch each, on an infinite stream, until a number of steps is done.

It gets engine, batches, evaluation, saving and reporting as arguments and knows neither Ray nor DeepSpeed nor where
batches come from. Counting steps, not epochs, means that ranks can never disagree about the end.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shards.loading.batch import Batch
from xfer.checkpoint import TrainState
from xfer.engine import Engine
from xfer.labels import Objective

Row = dict[str, Any]


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov & Hutter, SGDR, ICLR 2017); a pure function of the step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def set_training(module: nn.Module, freeze_batchnorm: bool) -> None:
    """Training mode; BatchNorm stays in evaluation mode where asked."""
    module.train()
    if freeze_batchnorm:
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()


@contextmanager
def _batchnorm_still(module: nn.Module) -> Iterator[None]:
    """BatchNorm neither counts nor is disturbed by what passes in here."""
    moving = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d) and part.training]
    for part in moving:
        part.eval()
    try:
        yield
    finally:
        for part in moving:
            part.train()


def train_step(engine: Engine, batch: Batch, objective: Objective, global_batch: int) -> Tensor:
    """One update from this rank's share of a global batch. Returns this rank's part of the mean loss, a scalar on the
    device.

    The loss is divided by the global batch, not by the share, so unequal shares still give the exact global mean.
    """
    total = torch.zeros((), device=engine.device)
    batch = batch.to(engine.device)
    for micro in batch.split(engine.accumulation):
        if len(micro):
            logits = engine.forward(micro.images)
            loss = objective(logits, micro.targets, micro.sources, micro.valid) / global_batch
        else:  # another rank's share is larger: take part in its backward with gradients of zero
            with _batchnorm_still(engine.module):
                loss = engine.forward(batch.images[:1]).float().sum() * 0
        engine.backward(loss * engine.world_size)  # the engine averages over ranks
        engine.step()
        total += loss.detach()
    return total


def train(
    engine: Engine,
    batches: Iterator[Batch],
    objective: Objective,
    state: TrainState,
    *,
    steps: int,
    global_batch: int,
    rate: Callable[[int], float],
    evaluate: Callable[[], Row],
    save: Callable[[TrainState], None],
    report: Callable[[Row], None],
    freeze_batchnorm: bool = False,
    evaluate_every: int = 100,
    save_every: int = 100,
    log_every: int = 10,
) -> TrainState:
    """Trains from `state` to `steps` done and returns the last state.

    `report` gets, on every rank, a row every `log_every` steps (loss of each step, mean over ranks) and one for each
    evaluation.
    """
    set_training(engine.module, freeze_batchnorm)
    losses: list[Tensor] = []
    started = time.perf_counter()
    while state.step < steps:
        engine.set_learning_rate(rate(state.step))
        losses.append(train_step(engine, next(batches), objective, global_batch))
        state.step += 1
        last = state.step == steps
        if last or state.step % log_every == 0:
            mean = engine.sum(torch.stack(losses)).tolist()  # the one place that waits for the device
            seconds = time.perf_counter() - started
            report(
                {
                    "step": state.step,
                    "loss": sum(mean) / len(mean),
                    "losses": mean,
                    "learning_rate": rate(state.step - 1),
                    "images_per_s": len(mean) * global_batch / seconds,
                }
            )
            losses, started = [], time.perf_counter()
        saving = last or state.step % save_every == 0
        scoring = last or state.step % evaluate_every == 0
        if saving or scoring:
            engine.average_buffers()  # what is scored is what is saved
            if saving:  # first: an evaluation may fail
                save(state)
            if scoring:
                report({"step": state.step, **evaluate()})
                set_training(engine.module, freeze_batchnorm)
            started = time.perf_counter()
    return state
