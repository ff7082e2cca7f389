"""One recipe with several seeds: how well it does, and how much of that is the luck of one run.

Seed k is the recipe with `train.seed + k` and `data.seed + k`: other initial weights, another order and augmentation,
the same images held out, for those are cut by their keys. One run says how well that run did; a mean over seeds and its
interval say it of the recipe. Cost: n runs, trained one after the other; those that are done are not run again.

    runs/<name>/seeds/<k>/     a run folder each: evaluate, quantize or report it like any other
                seeds.json     what each came to, and the means over seeds by source
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from shards.format.whole import read_json, write_json
from shards.loading.open import Splits
from shards.settings import ConfigError, replace
from shards.text import table
from xfer.bundle import Trained, open_model
from xfer.config import Recipe
from xfer.folds import prepare_folds
from xfer.history import probe_and_model
from xfer.measure import measure_of, measured
from xfer.metrics import Estimate
from xfer.prepare import open_labelled, prepare
from xfer.repeated import mean_over_seeds
from xfer.run import run_lock
from xfer.tasks.known import task_of
from xfer.transfer.head import kept_classes

RESULT = "seeds.json"
Failure = TypeVar("Failure")
Rows = Mapping[str, Mapping[str, Any]]
"""By seed: train.seed, data.seed, steps; the task's measure and probe by source; data: what was trained on and
what held out."""


def seed_folder(folder: Path, seed: int | str) -> Path:
    """Where the run of a seed lies."""
    return folder / "seeds" / str(seed)


def seeded(recipe: Recipe, count: int) -> list[Recipe]:
    """The recipes of seeds 0 to count - 1. Raises ConfigError for fewer than two, and where nothing would be scored."""
    faults = [] if count >= 2 else [f"seeds: must be at least 2 to tell how much they differ, got {count}"]
    if recipe.data.validation == 0:
        faults.append("data.validation: is 0, so there is nothing to sum up over seeds; hold out a part or a source")
    if (recipe.folder / "recipe.yaml").exists():
        faults.append(f"{recipe.folder}: holds one run of a recipe; choose another name=... for runs of several seeds")
    if faults:
        raise ConfigError(faults)
    return [
        replace(
            recipe,
            {
                "name": str(k),
                "output": str(seed_folder(recipe.folder, k).parent),
                "train.seed": recipe.train.seed + k,
                "data.seed": recipe.data.seed + k,
            },
        )
        for k in range(count)
    ]


def check_not_seeded(folder: Path) -> None:
    """Raises ConfigError if a folder holds runs of several seeds, beside which no single run has a place."""
    if (folder / RESULT).is_file():
        raise ConfigError(f"{folder}: holds runs of several seeds; add more with --seeds, or choose another name=")


def prepare_seeds(recipes: Sequence[Recipe], world_size: int = 1) -> None:
    """Raises ConfigError with every fault of all of them, each once, before the first is trained."""
    faults: dict[str, None] = {}
    for place, recipe in enumerate(recipes):
        try:
            prepare(recipe, world_size, say=not place)
            prepare_folds(recipe, world_size, say=not place)
        except ConfigError as error:
            faults |= dict.fromkeys(error.faults)
    if faults:
        raise ConfigError(list(faults))


def train_seeds(
    recipe: Recipe, count: int, train: Callable[[Recipe, str], Failure | None], world_size: int = 1
) -> Failure | None:
    """Trains the recipe with `count` seeds, and sums up after each of them. train: trains a recipe in its run folder,
    or sees that it is done; gets what to call it. The first failure it returns ends it all, and is returned.
    """
    recipes = seeded(recipe, count)
    with run_lock(recipe.folder):
        prepare_seeds(recipes, world_size)
        print(f"{recipe.name}: {count} runs of {recipe.steps} steps, a seed each", file=sys.stderr)
        rows: dict[str, Mapping[str, Any]] = {}
        for k, one in enumerate(recipes):
            try:
                failure = train(one, f"{recipe.name}, seed {k + 1} of {count}")
            finally:
                with suppress(OSError):
                    one.folder.parent.rmdir()  # if nothing came of it
            if failure:
                return failure
            rows[str(k)] = _row(one, open_labelled(one.data, kept_classes(one), task_of(one.model.task)))
            write_json(recipe.folder / RESULT, {"seeds": rows, "sources": _sources(rows)})
    return None


def _row(recipe: Recipe, data: Splits) -> dict[str, Any]:
    """What a trained run came to: on what its recipe holds out, or on each source, by the run that never saw it."""
    probe, values = probe_and_model(recipe.folder)
    return {
        "train.seed": recipe.train.seed,
        "data.seed": recipe.data.seed,
        "steps": recipe.steps,
        task_of(recipe.model.task).measure: values,
        "probe": probe,
        "data": [{subset.name: subset.identity() for subset in part} for part in (data.train, data.validation)],
    }


def _sources(rows: Rows) -> dict[str, dict[str, list[float]]]:
    """By source, and for the mean of sources: measure, probe and gain over seeds, each [mean, low, high]."""
    runs = list(rows.values())
    if len(runs) < 2:
        return {}
    names = [name for name in measured(runs[0]) if all(name in measured(run) for run in runs)]
    groups = {name: [name] for name in names} | ({"mean of sources": names} if len(names) > 1 else {})
    return {name: _means(runs, members) for name, members in groups.items()}


def _means(runs: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, list[float]]:
    values = [fmean(measured(run)[name] for name in names) for run in runs]
    found = {measure_of(runs[0]) or "accuracy": _clipped(mean_over_seeds(values))}
    if all(name in run["probe"] for run in runs for name in names):
        probe = [fmean(run["probe"][name] for name in names) for run in runs]
        gains = [after - before for before, after in zip(probe, values, strict=True)]
        found |= {"probe": _clipped(mean_over_seeds(probe)), "gain": mean_over_seeds(gains)}
    return {what: list(estimate) for what, estimate in found.items()}


def _clipped(estimate: Estimate) -> Estimate:
    return Estimate(estimate.value, max(0.0, estimate.low), min(1.0, estimate.high))


def is_seeded(folder: Path) -> bool:
    """Whether a folder holds the runs of several seeds."""
    return (folder / RESULT).is_file() and not (folder / "recipe.yaml").exists()


def read_seeds(folder: Path) -> dict[str, Any]:
    """seeds: what each run came to, `Rows`; sources: by source, and for their mean, [mean, low, high] over seeds of
    measure, probe and gain. Empty if there is nothing yet.
    """
    return read_json(folder / RESULT)


def seed_rows(folder: Path) -> list[list[str]]:
    """The means over seeds as a table for people, its header first; empty with fewer than two seeds."""
    return _shown(read_seeds(folder).get("sources", {}), "source")


def _shown(sources: Mapping[str, Mapping[str, Sequence[float]]], what: str) -> list[list[str]]:
    with_probe = all("gain" in means for means in sources.values())
    probe = ["its linear probe", "95 % interval", "gain", "95 % interval"] if with_probe else []
    rows = [[what, next(map(measure_of, sources.values()), None) or "", "95 % interval", *probe]]
    for name, means in sources.items():
        cells = [*_percents(measured(means))]
        if with_probe:
            value, low, high = (round(100 * number, 1) + 0.0 for number in means["gain"])  # + 0.0: no -0.0
            cells += [*_percents(means["probe"]), f"{value:+.1f}", f"{low:+.1f} to {high:+.1f}"]
        rows.append([name, *cells])
    return rows if sources else []


def _percents(mean: Sequence[float]) -> list[str]:
    value, low, high = (100 * number for number in mean)
    return [f"{value:.1f} %", f"{low:.1f} - {high:.1f}"]


def seeds_text(folder: Path) -> str:
    """The means over seeds for a terminal; empty with fewer than two seeds."""
    return _text(seed_rows(folder), len(read_seeds(folder).get("seeds", ())))


def mean_text(values: Sequence[Mapping[str, float]], what: str, measure: str = "accuracy") -> str:
    """The same of values by source, one of each seed; what: which images they are of."""
    runs = {str(k): {measure: one, "probe": {}} for k, one in enumerate(values)}
    return _text(_shown(_sources(runs), what), len(runs))


def _text(rows: Sequence[Sequence[str]], seeds: int) -> str:
    return "\n".join([f"{rows[0][1]}, mean of {seeds} seeds:", *table(rows)]) if rows else ""


def open_seeds(folders: Sequence[Path]) -> list[list[Trained]]:
    """The models of the seeds of each folder, to be compared seed by seed. Raises ConfigError unless all have the same
    seeds and were made from the same data.
    """
    first, *others = (read_seeds(folder)["seeds"] for folder in folders)
    faults = []
    for folder, rows in zip(folders[1:], others, strict=True):
        for key in ("train.seed", "data.seed"):
            one, other = (", ".join(str(row[key]) for row in each.values()) for each in (first, rows))
            faults += [f"{folder}: has {key} {other}, {folders[0]} has {one}"] if one != other else []
        if any(row["data"] != first["0"]["data"] for row in (*first.values(), *rows.values())):
            faults.append(
                f"{folder}: its runs and those of {folders[0]} were not trained and scored on the same images"
            )
    if faults:
        raise ConfigError(faults, "seeds cannot be paired")
    return [[open_model(seed_folder(folder, k)) for k in first] for folder in folders]
