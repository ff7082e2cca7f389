"""Search space: distributions by dotted path, checked against the job's schema before the first trial."""

from collections.abc import Mapping
from typing import Any

from cluster.config import Job
from shards.settings import ConfigError, full_path, replace
from tuning.config import Distribution

WITHOUT_EFFECT = ("cluster", "recipe.name", "recipe.output", "recipe.data.workers", "recipe.quantize.calibration")
AFTER_TRAINING = ("model.fusion.weights", "quantize")


def check_space(job: Job, space: Mapping[str, Distribution]) -> None:
    """Tries every option and both ends of every range in the job. Raises ConfigError with every fault."""
    faults = []
    for path, distribution in space.items():
        for value in _extremes(distribution):
            try:
                replace(job, {path: value})
            except ConfigError as error:
                faults += [f"space.{path}: {value!r} is not accepted: {fault}" for fault in error.faults]
        if full_path(Job, path).startswith(WITHOUT_EFFECT):
            faults.append(
                f"space.{path}: changes nothing about the model; search model..., train..., data... or quantize..."
            )
    if job.recipe.data.validation == 0:
        faults.append("data.validation: 0 leaves no images to compare trials on; hold out a part, such as 0.1")
    if full_path(Job, "model.fusion.weights") in {full_path(Job, path) for path in space}:
        kind = job.recipe.model.fusion.kind
        if kind == "concat":
            faults.append("space.model.fusion.weights: concat has no weight vector; use wsum or gate")
    if faults:
        raise ConfigError(list(dict.fromkeys(faults)))


def _extremes(distribution: Distribution) -> list[Any]:
    d = distribution
    if d.choice is not None:
        return d.choice
    if d.simplex is not None:
        return [{name: float(name == one) for name in d.simplex} for one in d.simplex]
    low_high = d.uniform or d.log_uniform or d.integer
    assert low_high
    return list(low_high)


def needs_training(space: Mapping[str, Distribution]) -> bool:
    """Whether any path changes what was trained, so that each trial has to train for itself."""
    short = (full_path(Job, path).removeprefix("recipe.") for path in space)
    return not all(path.startswith(AFTER_TRAINING) for path in short)


def tune_space(space: Mapping[str, Distribution]) -> dict[str, Any]:
    """Ray Tune's form. A simplex of n names becomes n - 1 uniform parameters `path#i`."""
    from ray import tune

    result: dict[str, Any] = {}
    for path, d in space.items():
        if d.choice is not None:
            result[path] = tune.choice(d.choice)
        elif d.uniform is not None:
            result[path] = tune.uniform(*d.uniform)
        elif d.log_uniform is not None:
            result[path] = tune.loguniform(*d.log_uniform)
        elif d.integer is not None:
            result[path] = tune.randint(d.integer[0], d.integer[1] + 1)
        elif d.simplex is not None:
            result |= {f"{path}#{i}": tune.uniform(0.0, 1.0) for i in range(len(d.simplex) - 1)}
    return result


def values(space: Mapping[str, Distribution], sampled: Mapping[str, Any]) -> dict[str, Any]:
    """What was sampled as {dotted path: value}, ready for `replace`."""
    result = {path: value for path, value in sampled.items() if "#" not in path}
    for path, d in space.items():
        if d.simplex is not None:
            cuts = [sampled[f"{path}#{i}"] for i in range(len(d.simplex) - 1)]
            result[path] = dict(zip(d.simplex, simplex(cuts), strict=True))
    return result


def simplex(cuts: list[float]) -> list[float]:
    """n - 1 numbers in [0, 1] -> n weights >= 0 that sum to 1; uniform numbers give a flat Dirichlet.

    Stick breaking: Devroye, Non-Uniform Random Variate Generation, 1986, ch. XI, sec. 4.
    """
    rest, weights = 1.0, []
    for i, cut in enumerate(cuts):
        share = 1 - (1 - cut) ** (1 / (len(cuts) - i))
        weights.append(rest * share)
        rest *= 1 - share
    return [*weights, rest]
