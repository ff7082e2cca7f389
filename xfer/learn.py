"""Fusion weights that are learned while the model is trained: after every fourth step one step of alpha alone.

Trained on the training loss, w rewards the branch that memorises: it lowers that loss most and helps no other image. So
alpha has data of its own, which nothing else is trained on (`learn: held_out`; `data.set_apart`). A source that is held
out by name gives it, else a part of each source; sources take turns, so each counts alike. `learn: train` takes the
same steps on the training batches instead.

A step is one of the exponentiated gradient (Kivinen & Warmuth, Exponentiated Gradient versus Gradient Descent for
Linear Predictors, Information and Computation 1997, sec. 4), w_b <- w_b exp(-rate dL/dw_b) / sum, which has no state
beside w: a run goes on at any step from w and the step's number. As dL/dalpha_b = w_b (dL/dw_b - a constant), it is
alpha - rate x dL/dalpha / w. The rate rises and falls with that of the model; no weight falls so far that it could not
come back. The model is in evaluation mode meanwhile, so nothing but alpha moves, not even BatchNorm's statistics.

A mixture of branches has to earn its cost. After the last step w is compared with each branch alone on what is set
apart, and stays only if its loss is lower by more than the standard error of the difference (the one-standard-error
rule: Breiman et al., Classification and Regression Trees, 1984, sec. 3.4.3).

Cost: a forward pass every fourth step, and back to alpha; a few passes over at most `SETTLED` images at the end.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.format.whole import read_json, write_json
from shards.loading.apart import apart_batches, num_batches
from shards.loading.batch import Batch, Slot
from shards.loading.open import Splits
from shards.progress import progress
from xfer.config import Recipe
from xfer.engine import Engine
from xfer.fusion import WeightedSum
from xfer.labels import annotated, sets_of
from xfer.model import FusionModel
from xfer.model_config import ModelConfig
from xfer.side import inputs
from xfer.tasks.known import task_of
from xfer.tasks.task import Loss, Supervision, nothing

EVERY = 4  # steps of the model for one of alpha
RATE = 1.0  # of alpha, where the model's rate is at its peak
LEAST = 1e-3  # a weight, of the largest one
SETTLED = 2048  # images that w is compared with single branches on
FILE = "fusion-learned.json"  # of a run folder: what its runs without a source learned
WEIGHTS, LEARNED = "fusion_weights", "fusion_learned"  # keys of rows of metrics.jsonl: w by branch, and before `KEPT`
LOSSES, KEPT = "fusion_losses", "fusion_kept"  # of the mixture and of each branch alone; which of them was kept
MIXTURE = "the mixture"  # no name that a branch can have


class Learner:
    """Learns alpha of the model that `engine` trains."""

    def __init__(
        self,
        engine: Engine,
        objective: Loss,
        global_batch: int,
        batches: Iterator[Batch] | None = None,
        finals: Callable[[], Iterable[Batch]] = lambda: (),
        end: int = 0,
    ):
        """`batches`: this rank's shares of batches of `global_batch` samples, from the next step of alpha on; None:
        those that are trained on. `objective`: of their sources. `finals`: shares of the batches on which w is compared
        with single branches after step `end`; none: it is not.
        """
        self._engine, self._objective, self._global_batch = engine, objective, global_batch
        self._batches, self._finals, self._end = batches, finals, end

    @property
    def _model(self) -> FusionModel:
        assert isinstance(self._engine.module, FusionModel)
        return self._engine.module

    @property
    def _fusion(self) -> WeightedSum:
        assert isinstance(self._model.fusion, WeightedSum)
        return self._model.fusion

    def after(self, step: int, trained: Batch, share: float) -> bool:
        """What follows a step of the model: a step of alpha, after every fourth. `trained`: the batch of that step;
        `share`: the model's learning rate, of its peak. Whether there was one, which leaves the model in evaluation
        mode. A collective.
        """
        if step % EVERY:
            return False
        batch = trained if self._batches is None else next(self._batches)
        gradient = self._engine.sum(self._gradient(batch.to(self._engine.device)))
        moved = self._fusion.alpha - RATE * share * gradient / self._fusion.weights.clamp_min(LEAST)
        self._fusion.alpha.copy_((moved - moved.amax()).clamp_min(math.log(LEAST)))
        return True

    def _gradient(self, batch: Batch) -> Tensor:
        """This rank's part of dL/dalpha [N]. Every rank takes part in each forward pass, which is the module's own, as
        in an evaluation: DeepSpeed scales the gradients of its engine's.
        """
        engine, alpha = self._engine, self._fusion.alpha
        engine.module.eval()
        total = torch.zeros_like(alpha)
        alpha.requires_grad_()
        for micro in batch.split(engine.accumulation):
            if len(micro):
                loss = self._objective(engine.module(*inputs(engine.module, micro)), micro) / self._global_batch
            else:
                loss = nothing(engine.module(*inputs(engine.module, next(batch.split(len(batch))))))
            total += torch.autograd.grad(loss, alpha)[0]
        alpha.requires_grad_(False)
        return total

    def told(self, step: int) -> dict[str, Any]:
        """For the log: w by branch. After the last step w is first compared with each branch alone, and the better one
        kept: then also what was `learned`, the loss of each, and which was `kept`. A collective.
        """
        compared = self._settle() if step == self._end else {}
        return {WEIGHTS: self._model.fusion_weights, **compared}

    @torch.no_grad()
    def _settle(self) -> dict[str, Any]:
        fusion, learned = self._fusion, self._fusion.alpha.clone()
        names = list(self._model.branches)
        weights = self._model.fusion_weights
        candidates = {name: [float(name == one) for one in names] for name in names}
        sums: dict[str, list[Tensor]] = {name: [] for name in (MIXTURE, *names)}
        self._engine.module.eval()
        for batch in self._finals():
            batch = batch.to(self._engine.device)
            for name, losses in sums.items():
                fusion.set_weights(candidates[name]) if name in candidates else fusion.alpha.copy_(learned)
                output = self._engine.module(*inputs(self._engine.module, batch))
                losses.append(self._objective(output, batch) / self._global_batch)
        fusion.alpha.copy_(learned)
        if not sums[MIXTURE]:
            return {}
        found = {name: self._engine.sum(torch.stack(losses)).tolist() for name, losses in sums.items()}
        kept = choose(found)
        if kept in candidates:
            fusion.set_weights(candidates[kept])
        means = {name: statistics.fmean(losses) for name, losses in found.items()}
        return {LEARNED: weights, LOSSES: means, KEPT: kept}


def choose(losses: Mapping[str, Sequence[float]]) -> str:
    """Which w is kept, by the losses of the same batches with the `MIXTURE` and with each branch alone: the branch of
    the lowest mean among those whose mean is not above the mixture's by more than the standard error of the difference.
    """
    kept, least = MIXTURE, math.inf
    for name, found in losses.items():
        more = [one - other for one, other in zip(found, losses[MIXTURE], strict=True)]
        error = statistics.stdev(more) / len(more) ** 0.5 if len(more) > 1 else 0.0
        if name != MIXTURE and statistics.fmean(more) <= error and statistics.fmean(found) < least:
            kept, least = name, statistics.fmean(found)
    return kept


def build_learner(
    recipe: Recipe, engine: Engine, data: Splits, classes: int, slot: Slot, objective: Loss, step: int
) -> Learner | None:
    """Of a run that goes on after `step`, with the `objective` that it is trained on; None: w is not learned in it."""
    size = recipe.data.batch_size
    if recipe.model.fusion.learn is None or recipe.learns_by_folds:
        return None
    if recipe.model.fusion.learn == "train":
        return Learner(engine, objective, size)
    masks, names = annotated(data.apart, classes), [subset.name for subset in data.apart]
    told = Supervision(masks.to(engine.device), names, sets=sets_of(data.apart))
    own = task_of(recipe.model.task).loss(told)
    batches = apart_batches(data.apart, recipe.data, slot, step // EVERY)
    count = min(num_batches(data.apart, size), max(len(data.apart), SETTLED // size))

    def finals() -> Iterator[Batch]:
        with progress("fusion weights", count, "batches") as advance:
            for batch in apart_batches(data.apart, recipe.data, slot, 0, count):
                yield batch
                advance()

    return Learner(engine, own, size, batches, finals, recipe.steps)


def learn_faults(recipe: Recipe, data: Splits) -> list[str]:
    """Why fusion weights cannot be learned as the recipe says."""
    learn, faults, apart = recipe.model.fusion.learn, [], recipe.data.set_apart
    key = f"model.fusion.learn: {learn}"
    if learn and recipe.steps < EVERY:
        faults.append(f"{key} takes a step after every {EVERY} of training, and this run has {recipe.steps}")
    if learn == "held_out" and not apart:
        faults.append(f"{key} learns on what data.set_apart holds back, and it is 0")
    if learn != "held_out" and apart:
        faults.append(
            f"data.set_apart: must be 0, got {apart:g}: nothing chooses by what is set apart; model.fusion.learn: "
            "held_out does"
        )
    known = [name for name in data.classes if any(name in subset.classes for subset in data.train)]
    for subset in data.apart if learn == "held_out" else ():
        if not subset.known_in(known):
            faults.append(f"{key}: {subset.name}, which is held out, shares no class with the sources trained on")
    return faults


def learn_notes(recipe: Recipe) -> list[str]:
    """What the user should know of how fusion weights are learned."""
    if recipe.model.fusion.learn != "train":
        return []
    return [
        "model.fusion.learn: train rewards the branch that memorises the training images; held_out learns on images "
        "that nothing else is trained on"
    ]


def keep_learned(run: Path, folds: Mapping[str, Mapping[str, float]]) -> None:
    """Into a run folder: w by branch, the mean of what its runs without a source learned; `folds`: by that source."""
    names = next(iter(folds.values()))
    mean = {name: statistics.fmean(weights[name] for weights in folds.values()) for name in names}
    write_json(run / FILE, {"weights": mean, "without": folds})


def learned_by_folds(recipe: Recipe) -> dict[str, float] | None:
    """w by branch, of a run whose weights its runs without a source learned; None: it is another one, or they have not
    yet.
    """
    return read_json(recipe.folder / FILE).get("weights") if recipe.learns_by_folds else None


def weighed(recipe: Recipe) -> ModelConfig:
    """The model of a recipe, with the fusion weights that its runs without a source learned, if it goes by them."""
    found, fusion = learned_by_folds(recipe), recipe.model.fusion
    if not found:
        return recipe.model
    return recipe.model.model_copy(update={"fusion": fusion.model_copy(update={"weights": found})})


def learned_text(recipe: Recipe, rows: Sequence[Mapping[str, Any]]) -> str:
    """How the fusion weights were learned and what came of it, in words; empty if they were not. `rows`: of the run's
    metrics.jsonl.
    """
    if found := learned_by_folds(recipe):
        each = read_json(recipe.folder / FILE)["without"]
        listed = "; ".join(f"without {source} {shown(weights)}" for source, weights in each.items())
        return f"fusion weights {shown(found)}, the mean of what each run learned on the source it leaves out: {listed}"
    last = next((row for row in reversed(rows) if WEIGHTS in row), None)
    if last is None:
        return ""
    if KEPT not in last:
        on = "what is set apart" if recipe.model.fusion.learn == "held_out" else "the training loss"
        return f"fusion weights learned on {on}: {shown(last[WEIGHTS])}"
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in last[LOSSES].items())
    kept = "the mixture stays" if last[KEPT] == MIXTURE else f"{last[KEPT]} alone is no worse and is the model"
    return f"fusion weights learned on what is set apart: {shown(last[LEARNED])}; loss there: {losses}; {kept}"


def shown(weights: Mapping[str, float]) -> str:
    """`fine 0.82, coarse 0.18`."""
    return ", ".join(f"{name} {w:.2f}" for name, w in weights.items())
