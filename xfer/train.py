"""The loop: steps of one global batch each, on an infinite stream, until a number of steps is done.

It gets one object, a `Training`, and knows neither Ray nor DeepSpeed nor where batches come from. Counting steps, not
epochs, means that ranks can never disagree about the end.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from shards.loading.batch import Batch
from xfer.chain import Link, ends, linked, packed, unpacked
from xfer.checkpoint import TrainState
from xfer.config import TrainConfig
from xfer.engine import Engine
from xfer.learn import Learner
from xfer.side import inputs
from xfer.tasks.task import Loss, nothing
from xfer.timing import Laps

Row = dict[str, Any]


class DivergedError(RuntimeError):
    """Loss or weights are no longer finite: the same steps again would end the same way."""


class Record(Protocol):
    """What becomes of a run, on every rank."""

    def evaluate(self) -> Row:
        """Scores of the model as it is; leaves it in evaluation mode."""
        ...

    def save(self, state: TrainState) -> None: ...

    def report(self, row: Row) -> None: ...

    def timed(self, row: Row) -> None:
        """Takes where this rank's time went since the last row (xfer/timing.py)."""
        ...

    def prove(self, links: Sequence[Link]) -> None:
        """Takes what the newest steps add to the chain of the run (xfer/chain.py)."""
        ...

    def is_asked_to_stop(self) -> bool:
        """Whether someone wants the run to save and be over (xfer/stop.py); the same on every rank. A collective."""
        ...

    def is_over(self) -> bool:
        """Whether training ends here, whatever steps are left; the same on every rank."""
        ...


@dataclass(frozen=True)
class Training:
    """One rank's share of a part of a run: the steps after each of `steps`, trained as `config` says. `scored`: the
    step of the newest evaluation that is on record; `learner`: of the fusion weights, if they are learned.
    """

    engine: Engine
    batches: Iterator[Batch]
    objective: Loss
    config: TrainConfig
    global_batch: int
    steps: range
    record: Record
    scored: int = 0
    learner: Learner | None = None


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: str = "cosine") -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov & Hutter, SGDR, ICLR 2017) or the peak; a pure function of the
    step.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
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


def train_step(
    engine: Engine, batch: Batch, objective: Loss, global_batch: int, lap: Callable[[str], None] = lambda part: None
) -> Tensor:
    """One update from this rank's share of a global batch. Returns this rank's part of the mean loss, a scalar on the
    device.

    The loss is divided by the global batch, not by the share, so unequal shares still give the exact global mean. `lap`
    is told what is done, each time.
    """
    total = torch.zeros((), device=engine.device)
    batch = batch.to(engine.device)
    lap("copy")
    for micro in batch.split(engine.accumulation):
        if len(micro):
            loss = objective(engine.forward(*inputs(engine.module, micro)), micro) / global_batch
        else:  # another rank's share is larger: take part in its backward with gradients of zero
            with _batchnorm_still(engine.module):
                loss = nothing(engine.forward(*inputs(engine.module, next(batch.split(len(batch))))))
        lap("forward")
        engine.backward(loss * engine.world_size)  # the engine averages over ranks
        lap("backward")
        engine.step()
        lap("update")
        total += loss.detach()
    return total


class _Losses:
    """Losses of the steps since the last row, and what these add to the chain of the run. Reading them is the one place
    that waits for the device.
    """

    def __init__(self, engine: Engine, objective: Loss):
        self._engine, self._objective = engine, objective
        self._known: list[float] = []
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.links: list[Link] = []

    def add(self, loss: Tensor, batch: Batch) -> None:
        prints = torch.zeros_like(batch.positions) if batch.fingerprints is None else batch.fingerprints
        self._pending.append((loss, prints.sum(), batch.sources))

    def read(self, state: TrainState) -> list[float]:
        """Mean over the global batch of each step up to that of `state`, whose chain goes on to it. Raises
        DivergedError, on every rank alike, naming the first step whose loss is not finite. A collective.
        """
        if self._pending:
            losses, prints, sources = zip(*self._pending, strict=True)
            means, images = unpacked(self._engine.sum(packed(losses, prints)))
            first = state.step - len(means) + 1
            for number, (mean, image, of) in enumerate(zip(means, images, sources, strict=True), first):
                if not math.isfinite(mean):
                    raise DivergedError(f"the loss of step {number} is {mean}; its batch was {self._describe(of)}")
                self.links.append(linked(state.chain, number, self._engine.world_size, image, mean))
                state.chain = ends(self.links[-1])
            self._known += means
            self._pending = []
        return self._known

    def clear(self) -> None:
        self._known, self.links = [], []

    def _describe(self, sources: Tensor) -> str:
        names = self._objective.sources
        counts = torch.bincount(sources.to(self._engine.device), minlength=len(names)).double()
        found = zip(names, self._engine.sum(counts).tolist(), strict=True)
        return ", ".join(f"{count:.0f} of {name}" for name, count in found if count)


def check_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """Raises DivergedError if a value is not finite: such weights are never saved."""
    broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise DivergedError(f"after step {step} the model is not finite: {broken[0]}{more}")


def train(run: Training, state: TrainState) -> TrainState:
    """Trains from `state` to the last step of a part of the run and returns the last state.

    The record gets, on every rank, a row every `log_every` steps and before each checkpoint (loss of each step,
    mean over ranks; the seconds they took), and one for each evaluation. Raises DivergedError when the loss is not
    finite: seen when losses are read, which is at each row and before anything is saved or scored.
    """
    engine, config, start, end = run.engine, run.config, run.steps.start, run.steps.stop
    losses = _Losses(engine, run.objective)
    is_scored = state.step >= end or state.step == start or state.step % config.evaluate_every == 0
    if state.step > run.scored and is_scored:  # saved, then stopped before its score was on record
        _score(run, state)
    set_training(engine.module, config.freeze_batchnorm)
    started, laps = time.perf_counter(), Laps(engine.device)
    laps.start()
    while state.step < end and not run.record.is_over():
        rate = learning_rate(state.step - start, end - start, config.learning_rate, config.warmup, config.schedule)
        engine.set_learning_rate(rate)
        batch = next(run.batches)
        laps.lap("data")
        losses.add(train_step(engine, batch, run.objective, run.global_batch, laps.lap), batch)
        state.step += 1
        if run.learner and run.learner.after(state.step, batch, rate / config.learning_rate):
            set_training(engine.module, config.freeze_batchnorm)
        last = state.step == end
        intervals = config.log_every, config.save_every, config.evaluate_every
        logging, saving, scoring = (last or state.step % every == 0 for every in intervals)
        saving |= scoring and (config.select == "best" or config.keep_evaluated)
        saving |= logging and run.record.is_asked_to_stop()
        logging |= saving  # or a run that goes on from there would lack these steps
        means = losses.read(state) if logging or saving or scoring else []
        laps.end(len(batch))
        if logging:
            seconds = time.perf_counter() - started
            run.record.report(
                {
                    "step": state.step,
                    "loss": sum(means) / len(means),
                    "losses": means,
                    "learning_rate": rate,
                    "images_per_s": len(means) * run.global_batch / seconds,
                    "seconds": seconds,
                    **(run.learner.told(state.step) if run.learner else {}),
                }
            )
            run.record.prove(losses.links)
            run.record.timed({"step": state.step, **laps.row(), "exchange": engine.exchanged()})
            losses.clear()
            started = time.perf_counter()
        if saving or scoring:
            paused = time.perf_counter()
            _save_and_score(run, state, saving, scoring)
            started += time.perf_counter() - paused
            engine.exchanged()  # of no step
        if logging or scoring:
            laps.start()
    return state


def _save_and_score(run: Training, state: TrainState, saving: bool, scoring: bool) -> None:
    """Saves first, for an evaluation may fail; what is scored is what is saved."""
    run.engine.average_buffers()
    if saving:
        run.record.save(state)
    if scoring:
        _score(run, state)
        set_training(run.engine.module, run.config.freeze_batchnorm)


def _score(run: Training, state: TrainState) -> None:
    started = time.perf_counter()
    scores = run.record.evaluate()
    run.record.report({"step": state.step, **scores, "evaluation_seconds": time.perf_counter() - started})
