"""Models compared on the same images: which is better, by how much, and whether these images can tell."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from shards.config import DataConfig
from shards.loading.subset import OfClasses, Subset
from shards.settings import ConfigError, replace
from shards.text import table
from xfer.bundle import Trained
from xfer.outcomes import Comparison, Outcomes, joined, mean_outcome, outcomes_on
from xfer.tasks.known import task_of


def compare_models(
    models: Mapping[str, Sequence[Trained]], subsets: Sequence[Subset], config: DataConfig, what: str
) -> str:
    """Every model against the first, for a terminal: tables with the intervals of the differences on the same images,
    and a verdict each. Images of classes that not all models have are left out for all of them. A model is one run or
    bundle, or the runs of a recipe's seeds, equally many for all models and in the same order.

    Raises ConfigError if no images are left. Each model sees images of its own size: a pass over them for each.
    """
    tasks = {name: runs[0].model.task for name, runs in models.items()}
    if len(set(tasks.values())) > 1:
        raise ConfigError("models: " + "; ".join(f"{name} is for {task}" for name, task in tasks.items()))
    task = task_of(next(iter(tasks.values())))
    common = set.intersection(*(set(runs[0].classes) for runs in models.values()))
    if task.sees_whole:  # an image has boxes or pixels of many classes
        kept, left_out = (list(subsets) if all(set(runs[0].classes) == common for runs in models.values()) else []), {}
    else:
        kept, left_out = _of_classes(subsets, common)
    if not kept:
        every = "; ".join(f"{name} has {', '.join(runs[0].classes)}" for name, runs in models.items())
        why = "the models have other classes" if common else "no image is of a class that all of the models know"
        raise ConfigError(f"{what}: {why}: {every}")
    found = {name: _outcomes(name, runs, kept, config, what) for name, runs in models.items()}
    (first, right), *others = found.items()
    texts = [Comparison(what, right, other, (first, name), task.measure).text() for name, other in others]
    if len(others) > 1:
        texts.insert(0, "\n".join([f"{task.measure} on {what}:", *table(_overview(found))]))
    notes = [f"  {name}: {count:,} images of other classes are not compared" for name, count in left_out.items()]
    return "\n".join([*"\n\n".join(texts).splitlines(), *notes])


def _of_classes(subsets: Sequence[Subset], names: set[str]) -> tuple[list[Subset], dict[str, int]]:
    """The samples of these classes; and how many others there are, by source, where there are any."""
    kept, left_out = [], {}
    for subset in subsets:
        known = subset.known_in(tuple(names))
        labels = tuple(i for i, name in enumerate(subset.class_names) if name in known)
        part = subset.where(OfClasses(labels))
        if part.num_samples:
            kept.append(part)
        if part.num_samples < subset.num_samples:
            left_out[subset.name] = subset.num_samples - part.num_samples
    return kept, left_out


def _outcomes(name: str, runs: Sequence[Trained], subsets: Sequence[Subset], config: DataConfig, what: str) -> Outcomes:
    """By source, of one run or of the runs of a recipe's seeds."""
    seen = replace(config, {"image_size": runs[0].image_size, "resize": runs[0].resize})
    classes = runs[0].classes
    models = {str(place): run.model for place, run in enumerate(runs)}
    return joined(list(outcomes_on(models, subsets, seen, classes, f"{what}: {name}").values()))


def _overview(found: Mapping[str, Outcomes]) -> list[list[str]]:
    sources = list(next(iter(found.values())))
    rows = [["model", *sources, "mean of sources"]]
    for name, outcomes in found.items():
        values = [mean_outcome(outcomes[source]) for source in sources]
        rows.append([name, *(f"{100 * value:.1f} %" for value in (*values, sum(values) / len(values)))])
    return rows


def model_names(paths: Sequence[Path]) -> list[str]:
    """What to call models: the shortest ends of their paths that tell them apart. Raises ConfigError for a model that
    is given twice.
    """
    whole = [path.absolute().parts for path in paths]
    if len(set(whole)) < len(whole):
        raise ConfigError(f"a model is given twice: {', '.join(map(str, paths))}")
    for length in range(1, max(map(len, whole))):
        names = ["/".join(parts[-length:]) for parts in whole]
        if len(set(names)) == len(names):
            return names
    return list(map(str, paths))
