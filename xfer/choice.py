"""Which step of a run is its model, where sources that runs never saw choose it.

Every run that leaves a source out is scored on that source along its way, the linear probe at step 0 included. The
chosen step is the one with the highest mean over these sources, the first of equals. The run on all sources then ends
there, at the learning rates and stages of all its steps: so it is the model that the curve speaks of. A part held out
of each training source would choose what memorises those. Cost: none beside the runs without a source, which keep a
checkpoint of each evaluation until the step is chosen.

The scores that chose a step are a little too good. So each source also gets a step that the others alone chose, and the
mean over these is told beside.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from shards.format.whole import read_json
from shards.settings import ConfigError
from xfer.checkpoint import checkpoint_name, choose, latest_checkpoint, prune
from xfer.config import Recipe
from xfer.history import LEFT_OUT, best_step, evaluated, read_metrics, scores


@dataclass(frozen=True)
class Choice:
    """step: of `steps`; curves: by the source that was left out, accuracy on it by step."""

    step: int
    steps: int
    curves: Mapping[str, Mapping[int, float]]

    @property
    def means(self) -> dict[int, float]:
        """Over sources, by step."""
        return _means(self.curves)

    @property
    def by_the_others(self) -> float:
        """Mean over sources, each at the step that the others chose."""
        found = []
        for source, curve in self.curves.items():
            others = _means({name: other for name, other in self.curves.items() if name != source})
            step = best_step({at: mean for at, mean in others.items() if at in curve})
            assert step is not None, "a choice has a step that all were scored at"
            found.append(curve[step])
        return fmean(found)

    def text(self, begun_as: str = "the linear probe") -> str:
        """For people, in sentences. `begun_as`: what step 0 is."""
        means, count = self.means, len(self.curves)
        which = f"step {self.step} of {self.steps}{f', {begun_as},' if self.step == 0 else ''}"
        above = [step for step, mean in means.items() if mean > means[self.step]]
        gone = f" (step {', '.join(map(str, above))} scored higher, without a checkpoint left)" if above else ""
        return (
            f"{which} is the model: the highest mean over left-out sources, {100 * means[self.step]:.1f} %, of "
            f"{len(means)} evaluated steps{gone}; cost: {count} more runs of {self.steps} steps. These scores chose "
            f"it; with the step of each source chosen by the others alone, the mean is {100 * self.by_the_others:.1f} %"
        )

    def to_json(self) -> dict[str, Any]:
        """What `read_choice` reads."""
        curves = {source: [[step, value] for step, value in curve.items()] for source, curve in self.curves.items()}
        return {"step": self.step, "steps": self.steps, "curves": curves}


def read_choice(run: Path) -> Choice | None:
    """What was chosen in a run folder; None: nothing was."""
    found = read_json(run / LEFT_OUT).get("chosen")
    if found is None:
        return None
    curves = {source: dict(curve) for source, curve in found["curves"].items()}
    return Choice(found["step"], found["steps"], curves)


def choose_step(recipe: Recipe, runs: Mapping[str, Path]) -> Choice:
    """Chooses a step by `runs`, the folders of the trained runs by the source that each leaves out: of the steps whose
    checkpoint all of them have. It becomes the model of each, and of the run on all sources if that was trained
    further before; checkpoints kept for the choice are removed. Raises ConfigError, and changes nothing, if no step was
    scored by all, or that run cannot be handed over at it any more.
    """
    curves = {source: scores(read_metrics(folder)) for source, folder in runs.items()}
    there = {step: mean for step, mean in _means(curves).items() if _all_have(runs, step)}
    step = best_step(there)
    if step is None:
        raise ConfigError(
            f"{recipe.folder}: no step was scored by the runs without each source: "
            f"{', '.join(source for source, curve in curves.items() if not curve) or 'their checkpoints differ'}"
        )
    hand_over(recipe, step)
    for folder in runs.values():
        choose(folder / "checkpoints", step)
        steps = evaluated(read_metrics(folder)) if recipe.train.keep_evaluated else ()
        prune(folder / "checkpoints", recipe.train.keep, steps)
    return Choice(step, recipe.steps, curves)


def hand_over(recipe: Recipe, step: int | None) -> None:
    """Makes the chosen step the model of the run on all sources, if it was trained further before; None: the newest.
    Raises ConfigError if it cannot be had any more.
    """
    folder = recipe.folder / "checkpoints"
    newest = latest_checkpoint(folder)
    if newest is None:
        return
    if step is None or newest.state.step <= step:
        choose(folder, None)
        return
    if not (folder / checkpoint_name(step)).is_dir():
        raise ConfigError(
            f"{recipe.folder}: left-out sources chose step {step}, and this run is at step {newest.state.step} without "
            f"a checkpoint of that; remove {folder} to train it to step {step}, or use train.select: last"
        )
    choose(folder, step)


def _all_have(runs: Mapping[str, Path], step: int) -> bool:
    return all((folder / "checkpoints" / checkpoint_name(step)).is_dir() for folder in runs.values())


def _means(curves: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """Of the steps that all of them have."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    return {step: fmean(curve[step] for curve in curves.values()) for step in steps}
