"""The search space in three forms: distributions by dotted path, the flat parameters a sampler draws, values for a job.

An option of a choice is drawn by its number, so that options may be of any type and `true` is not 1. A simplex of n
names is n - 1 numbers `path#i`, broken off a stick.
"""

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any

from cluster.config import Job
from shards.settings import ConfigError, full_path, get
from tuning.config import Distribution

AFTER_TRAINING = ("recipe.model.fusion.weights", "recipe.quantize")

Space = Mapping[str, Distribution]


def needs_training(space: Space) -> bool:
    """Whether any path changes what was trained, so that each trial has to train for itself."""
    paths = (full_path(Job, path) for path in space)
    return not all(f"{path}.".startswith(tuple(f"{head}." for head in AFTER_TRAINING)) for path in paths)


def tune_space(space: Space) -> dict[str, Any]:
    """Ray Tune's form: one parameter for each path, n - 1 for a simplex of n names."""
    from ray import tune

    result: dict[str, Any] = {}
    for path, d in space.items():
        if d.choice is not None:
            result[path] = tune.choice(list(range(len(d.choice))))
        elif d.uniform is not None:
            result[path] = tune.uniform(*d.uniform)
        elif d.log_uniform is not None:
            result[path] = tune.loguniform(*d.log_uniform)
        elif d.integer is not None:
            result[path] = tune.randint(d.integer[0], d.integer[1] + 1)
        elif d.simplex is not None:
            result |= {f"{path}#{i}": tune.uniform(0.0, 1.0) for i in range(len(d.simplex) - 1)}
    return result


def to_values(space: Space, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """What was sampled as {dotted path: value}, ready for `replace`."""
    result: dict[str, Any] = {}
    for path, d in space.items():
        if d.simplex is not None:
            cuts = [sampled[f"{path}#{i}"] for i in range(len(d.simplex) - 1)]
            result[path] = dict(zip(d.simplex, simplex(cuts), strict=True))
        else:
            result[path] = sampled[path] if d.choice is None else d.choice[sampled[path]]
    return result


def to_sampled(space: Space, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parameters that `values` came from; None if they do not lie in the space."""
    result: dict[str, Any] = {}
    for path, d in space.items():
        value = values.get(path)
        if d.choice is not None:
            options = [key_of(option) for option in d.choice]
            if key_of(value) not in options:
                return None
            result[path] = options.index(key_of(value))
        elif d.simplex is not None:
            if not isinstance(value, dict) or set(value) != set(d.simplex) or sum(value.values()) <= 0:
                return None
            result |= {f"{path}#{i}": cut for i, cut in enumerate(cuts_of([value[name] for name in d.simplex]))}
        else:
            assert d.ends
            whole = d.integer is None or isinstance(value, int)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not whole:
                return None
            if not d.ends[0] <= value <= d.ends[1]:
                return None
            result[path] = value
    return result


def values_in(job: Job, space: Space) -> dict[str, Any]:
    """The values that `job` has at the paths of the space; a path it has no value at is left out."""
    found = {}
    for path in space:
        try:
            found[path] = get(job, path)
        except ConfigError:  # a group of bits that the job does not name, say
            continue
    return found


def key_of(value: Any) -> str:
    """Text that is equal for equal values, and tells true from 1."""
    return json.dumps(value, sort_keys=True, default=str)


def size(space: Space) -> int | None:
    """How many combinations of values there are; None if they cannot be counted."""
    counts = [_count(d) for d in space.values()]
    return math.prod(counts) if all(counts) else None


def _count(d: Distribution) -> int:
    if d.choice is not None:
        return len(d.choice)
    return len(_whole(d)) if d.integer is not None else 0


def _whole(d: Distribution) -> range:
    assert d.integer
    return range(d.integer[0], d.integer[1] + 1)


def combinations(space: Space) -> Iterator[dict[str, Any]]:
    """Every combination of a space that can be counted, as values by path."""
    options = [d.choice or _whole(d) for d in space.values()]
    for combination in itertools.product(*options):
        yield dict(zip(space, combination, strict=True))


def draw(d: Distribution, numbers: random.Random) -> Any:
    """One value, evenly."""
    if d.choice is not None:
        return numbers.choice(d.choice)
    if d.integer is not None:
        return numbers.randint(*d.integer)
    if d.simplex is not None:
        return dict(zip(d.simplex, simplex([numbers.random() for _ in d.simplex[1:]]), strict=True))
    assert d.ends
    return numbers.uniform(*d.ends) if d.uniform else math.exp(numbers.uniform(*map(math.log, d.ends)))


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


def cuts_of(weights: list[float]) -> list[float]:
    """The inverse of `simplex`, of n weights that need not sum to 1."""
    rest, cuts = sum(weights), []
    for i, weight in enumerate(weights[:-1]):
        share = weight / rest if rest > 0 else 0.0
        cuts.append(min(1.0, max(0.0, 1 - (1 - min(share, 1.0)) ** (len(weights) - 1 - i))))
        rest -= weight
    return cuts
