"""Is the space one that this job can be searched over? Everything that is wrong with it, before the first trial.

Types come from the schema, by dotted path, so a range is refused for what it can draw and not only for its ends. Ranges
are tried inside too, and paths together, since what a job accepts need not be an interval.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from functools import reduce
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cluster.config import Job
from shards.settings import ConfigError, Strict, full_path, replace
from tuning.config import Distribution
from tuning.space import draw, needs_training

TRIED = 65  # values of one range, and draws of all paths together; 0.2 ms each

WITHOUT_EFFECT = (
    "cluster",
    "recipe.name",
    "recipe.output",
    "recipe.data.workers",
    "recipe.data.decode",
    "recipe.data.cache",
    "recipe.data.on_change",
    "recipe.data.max_replaced",
    "recipe.data.strict",
    "recipe.data.test",
    "recipe.train.evaluate_every",
    "recipe.train.save_every",
    "recipe.train.log_every",
    "recipe.train.keep",
    "recipe.track",
)
COMPARED = (
    "recipe.data.root",
    "recipe.data.validation",
    "recipe.data.sources.*.path",
    "recipe.data.sources.*.split",
    "recipe.data.sources.*.where",
)
NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def space_faults(job: Job, space: Mapping[str, Distribution]) -> list[str]:
    """Paths that are not there or change nothing, distributions that do not fit the type of the value, values that the
    job does not accept.
    """
    faults = [fault for path, distribution in space.items() for fault in _faults(job, path, distribution)]
    faults += _overlaps(space)
    if not needs_training(space) and "recipe.quantize.calibration" in {full_path(Job, path) for path in space}:
        faults.append(
            "space.quantize.calibration: changes nothing, since all trials share the calibration images of the one "
            "trained run; set it in the job"
        )
    if job.recipe.quantize.max_drop is not None or "recipe.quantize.max_drop" in {
        full_path(Job, path) for path in space
    }:
        faults.append(
            "quantize.max_drop: must be left out in a study, whose trials are compared by accuracy and size; search "
            "quantize.budget or quantize.bits"
        )
    if job.recipe.quantize.finish or "recipe.quantize.finish" in {full_path(Job, path) for path in space}:
        faults.append(
            "quantize.finish: must be 0 in a study, whose trials are not finished; finish what it chose: xfer quantize "
            "RUN quantize.finish=200"
        )
    if job.recipe.model.fusion.prune:
        faults.append(
            "model.fusion.prune: must be left out for a study, whose trials weigh and pack all branches, got "
            f"{job.recipe.model.fusion.prune:g}"
        )
    if job.recipe.transfer.mode == "quant":
        faults.append(
            "transfer.mode: quant keeps the bits of branches and projections, which a study chooses; use feature, or "
            "xfer fit and xfer quantize"
        )
    if job.recipe.data.validation == 0:
        faults.append(
            "data.validation: 0 leaves no images that all trials can be compared on; hold out a part of each source, "
            "such as 0.1, whole sources by name, or leave_one_source_out"
        )
    return list(dict.fromkeys(faults or _together(job, space)))


def annotation_at(kind: type[Strict], path: str) -> Any:
    """The type of the value at a full dotted path, with its constraints; None if the schema has no such value."""
    return reduce(_inside, path.split("."), kind)


def _inside(annotation: Any, name: str) -> Any:
    bare = _bare(annotation)
    if isinstance(bare, type) and issubclass(bare, Strict):
        info = bare.model_fields.get(name)
        return Annotated[(info.annotation, *info.metadata)] if info and info.metadata else info and info.annotation
    return get_args(bare)[1] if get_origin(bare) is dict else None


def _bare(annotation: Any) -> Any:
    """Without constraints, without "or none", and without words in place of what is not a word."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        kept = [inner for inner in get_args(annotation) if inner is not NoneType]
        kept = [inner for inner in kept if get_origin(_bare(inner)) is not Literal] or kept
        return _bare(kept[0]) if len(kept) == 1 else annotation
    return annotation


def _expected(annotation: Any) -> str:
    bare = _bare(annotation)
    if get_origin(bare) is Literal:
        return f"one of {', '.join(map(str, get_args(bare)))}"
    if get_origin(bare) is dict:
        return "a mapping"
    if isinstance(bare, type) and issubclass(bare, Strict):
        return "a section of keys and values"
    return NAMES.get(bare, "a list")


def _faults(job: Job, path: str, distribution: Distribution) -> Iterator[str]:
    full = full_path(Job, path)
    if _below(full, WITHOUT_EFFECT):
        yield f"space.{path}: changes nothing about the model; search model..., train..., data... or quantize..."
        return
    if _below(full, COMPARED) or any(part.startswith(f"{full}.") for part in COMPARED):
        yield f"space.{path}: changes the images that trials are compared on; search other keys"
        return
    annotation = annotation_at(Job, full)
    if annotation is not None and (misfit := _misfit(path, distribution, annotation)):
        yield misfit
        return
    if full == "recipe.model.fusion.weights" and job.recipe.model.fusion.kind == "concat":
        yield f"space.{path}: concat has no weight vector; use wsum or gate"
        return
    for value in _tried(distribution):
        fault = _refusal(job, path, value)
        if fault:
            yield f"space.{path}: {fault}"
            if distribution.choice is None:
                return  # one value of a range says it


def _below(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(path, pattern) or fnmatch(path, f"{pattern}.*") for pattern in patterns)


def _misfit(path: str, d: Distribution, annotation: Any) -> str | None:
    """What is wrong if the distribution cannot draw values of this type."""
    bare, expected = _bare(annotation), _expected(annotation)
    is_mapping = get_origin(bare) is dict and _bare(get_args(bare)[1]) is float
    if d.simplex is not None:
        return None if is_mapping else f"space.{path}: simplex draws a weight for each name, and this is {expected}"
    if d.ends is None:
        return None
    if d.integer is not None:
        options = get_args(bare) if get_origin(bare) is Literal else ()
        numbers = bare in (int, float) or (options and all(type(option) is int for option in options))
        return None if numbers else f"space.{path}: integer draws whole numbers, and this is {expected}; use choice"
    if bare is float:
        return None
    kind = "uniform" if d.uniform else "log_uniform"
    use = f"integer: [{d.ends[0]:g}, {d.ends[1]:g}]" if bare is int else "choice: [...]"
    return f"space.{path}: {kind} draws fractions, and this is {expected}; use {use}"


def _refusal(job: Job, path: str, value: Any) -> str | None:
    try:
        replace(job, {path: value})
    except ConfigError as error:
        own, faults = f"{full_path(Job, path)}: must", error.faults
        if len(faults) == 1 and faults[0].startswith(own):
            return f"must{faults[0].removeprefix(own)}"
        return f"{value!r} is not accepted: {'; '.join(faults)}"
    return None


def _tried(d: Distribution) -> list[Any]:
    """Every option of a choice, each corner and the middle of a simplex, both ends of a range and values inside."""
    if d.choice is not None:
        return d.choice
    if d.simplex is not None:
        corners = [{name: float(name == one) for name in d.simplex} for one in d.simplex]
        return [*corners, dict.fromkeys(d.simplex, 1 / len(d.simplex))]
    assert d.ends
    low, high = d.ends
    if d.integer is not None:
        low, high = d.integer
        step = max(1, (high - low) // TRIED)
        return [*range(low, high, step), high]
    return [low, high, *(low + (high - low) * i / TRIED for i in range(1, TRIED))]


def _overlaps(space: Mapping[str, Distribution]) -> Iterator[str]:
    full = {path: full_path(Job, path) for path in space}
    for path, own in full.items():
        for other, another in full.items():
            if path != other and (another.startswith(f"{own}.") or (own == another and path < other)):
                yield f"space.{other}: is set by space.{path} already; give one of the two"


def _together(job: Job, space: Mapping[str, Distribution]) -> Iterator[str]:
    """Values that are accepted one by one and not together."""
    random_numbers = random.Random(0)
    for _ in range(TRIED):
        values = {path: draw(d, random_numbers) for path, d in space.items()}
        try:
            replace(job, values)
        except ConfigError as error:
            yield f"space: {values} together are not accepted: {'; '.join(error.faults)}"
            return
