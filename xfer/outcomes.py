"""What each of several models makes of the same images, and how sure the difference of two of them is.

Each image is read once and shown to every model, so outcomes are paired image by image. What two models both get right
or both get wrong says nothing about their difference: the interval of the difference comes from the images on which
they differ, and is much narrower than the two intervals of their accuracies. Detectors and segmenters have no image
right or wrong: their scores were drawn from the same resamples of images, so these are paired too.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shards.config import DataConfig
from shards.loading.batch import Batch, Slot
from shards.loading.evaluate import eval_stream
from shards.loading.frame import Resize
from shards.loading.subset import Subset
from shards.progress import progress
from shards.text import markdown, table
from xfer.engine import default_device
from xfer.labels import as_sets, is_right, sets_of
from xfer.measure import heading
from xfer.metrics import Estimate, mean_of, paired_difference
from xfer.repeated import difference_over_seeds, mean_over_seeds
from xfer.tasks.known import task_of
from xfer.tasks.task import DenseScore, Scores, Task

Outcome = np.ndarray | tuple[DenseScore, ...]
Outcomes = dict[str, Any]
"""By source its `Outcome`: bool [n], whether each of its images was named rightly, in the order the batches have them;
bool [R, n] of R runs that differ in their seeds only. Of detectors and segmenters the score of each run.
"""


def outcomes(
    models: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    sources: Sequence[str],
    device: torch.device,
    after_batch: Callable[[int], None] = lambda count: None,
    sets: Tensor | None = None,
) -> dict[str, Outcomes]:
    """What each of `models` gets right, by its name, on the same images. `sources`: their names, in the order of the
    batches' source indices; targets are numbered by the classes of the models, which are the same; sets: as by
    `sets_of`.

    Images whose class the models do not have, and damaged ones, are left out for all of them. The models are left in
    evaluation mode, where they were.
    """
    homes = {name: next(model.parameters()).device for name, model in models.items()}
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in models}
    ready = {name: model.to(device).eval() for name, model in models.items()}
    with torch.inference_mode():
        for batch in batches:
            batch = batch.to(device)
            counted = batch.valid & (batch.targets >= 0)
            source = batch.sources[counted].cpu().numpy()
            for name, model in ready.items():
                right = is_right(model(batch.images).argmax(1), as_sets(batch.targets.clamp_min(0), sets))
                found[name].append((source, right[counted].cpu().numpy()))
            after_batch(int(batch.valid.sum()))
    for name, model in models.items():
        model.to(homes[name])
    return {name: _by_source(parts, sources) for name, parts in found.items()}


def outcomes_on(
    models: Mapping[str, nn.Module], subsets: Sequence[Subset], config: DataConfig, classes: Sequence[str], what: str
) -> dict[str, Outcomes]:
    """As `outcomes`, on all images of `subsets` in the order they are stored in, with progress."""
    numbered = [subset.numbered(classes) for subset in subsets]
    batches = eval_stream(numbered, config, Slot(), originals=_task(models).sees_whole)
    with progress(what, batches.num_samples, "images") as advance:
        found = outcomes_of(models, batches, numbered, classes, config.resize, default_device(), advance)
    if batches.damaged:
        print(f"left out of {what}: {batches.damage.table()}", file=sys.stderr)
    return found


def outcomes_of(
    models: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    subsets: Sequence[Subset],
    classes: Sequence[str],
    resize: Resize,
    device: torch.device,
    after_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, Outcomes]:
    """As `outcomes`, for models of any task; `subsets` are numbered by `classes`, batches of a detector or a segmenter
    have the originals, which came to their size by `resize`.
    """
    task = _task(models)
    if not task.sees_whole:
        return outcomes(models, batches, [subset.name for subset in subsets], device, after_batch, sets_of(subsets))
    collected = {name: task.scores(subsets, classes, resize, device) for name in models}
    return _scored(models, batches, collected, device, after_batch)


def _task(models: Mapping[str, nn.Module]) -> Task:
    return task_of(next(getattr(model, "task", "classification") for model in models.values()))


def _scored(
    models: Mapping[str, nn.Module],
    batches: Iterable[Batch],
    collected: Mapping[str, Scores],
    device: torch.device,
    after_batch: Callable[[int], None],
) -> dict[str, Outcomes]:
    """Of detectors and segmenters, as `outcomes`."""
    homes = {name: next(model.parameters()).device for name, model in models.items()}
    ready = {name: model.to(device).eval() for name, model in models.items()}
    with torch.inference_mode():
        for batch in batches:
            batch = batch.to(device)
            for name, model in ready.items():
                collected[name].add(model(batch.images), batch)
            after_batch(int(batch.valid.sum()))
    for name, model in models.items():
        model.to(homes[name])
    return {name: {source: (one,) for source, one in scores.result().items()} for name, scores in collected.items()}


def joined(runs: Sequence[Outcomes]) -> Outcomes:
    """The outcomes of several runs, one a seed, as those of one model."""
    if len(runs) == 1:
        return runs[0]
    first = runs[0]
    return {
        source: sum((run[source] for run in runs), ())
        if isinstance(one, tuple)
        else np.stack([r[source] for r in runs])
        for source, one in first.items()
    }


def mean_outcome(one: Outcome) -> float:
    """Accuracy, or the score; over runs their mean."""
    return float(np.mean([score.value for score in one])) if isinstance(one, tuple) else float(one.mean())


def _count(one: Outcome) -> int:
    return one[0].count if isinstance(one, tuple) else one.shape[-1]


def _difference_of_scores(first: Sequence[DenseScore], second: Sequence[DenseScore]) -> Estimate:
    """Over the same resamples of images, or over seeds where there are several runs."""
    gains = [b.value - a.value for a, b in zip(first, second, strict=True)]
    if len(gains) > 1:
        return mean_over_seeds(gains)
    differences = second[0].resampled - first[0].resampled
    if not np.isfinite(differences).all():  # so few images that some resamples have nothing to score
        return Estimate(gains[0], -1.0, 1.0)
    low, high = np.percentile(differences, (2.5, 97.5))
    return Estimate(gains[0], min(float(low), gains[0]), max(float(high), gains[0]))


def _by_source(parts: Sequence[tuple[np.ndarray, np.ndarray]], names: Sequence[str]) -> Outcomes:
    sources = np.concatenate([source for source, _ in parts]) if parts else np.zeros(0, np.int64)
    right = np.concatenate([right for _, right in parts]) if parts else np.zeros(0, bool)
    return {name: right[sources == index] for index, name in enumerate(names)}


@dataclass(frozen=True)
class Comparison:
    """Two models on the same images: a run and what was packed of it, or two others by their `names`, each of them one
    run or one a seed. what: which images these are, in words.
    """

    what: str
    first: Outcomes
    second: Outcomes
    names: tuple[str, str] = ("float32", "packed")
    measure: str = "accuracy"

    @property
    def differences(self) -> dict[str, Estimate]:
        """By source: the accuracy, or other measure, of the second model less that of the first; sources without images
        have none.
        """
        return {name: self._difference([name]) for name in self._sources}

    @property
    def mean_difference(self) -> Estimate:
        """Unweighted over sources."""
        return self._difference(self._sources)

    @property
    def _sources(self) -> list[str]:
        return [name for name, right in self.first.items() if _count(right)]

    @property
    def _scored(self) -> bool:
        return any(isinstance(one, tuple) for one in self.first.values())

    @property
    def _over_seeds(self) -> bool:
        return any(len(one) > 1 if isinstance(one, tuple) else one.ndim == 2 for one in self.first.values())

    def _difference(self, sources: Sequence[str]) -> Estimate:
        pairs = [(self.first[name], self.second[name]) for name in sources]
        if self._scored:
            return mean_of([_difference_of_scores(*pair) for pair in pairs])
        if self._over_seeds and pairs:
            return difference_over_seeds(pairs)
        return mean_of([paired_difference(*pair) for pair in pairs])

    @property
    def within_noise(self) -> bool:
        """Whether the interval holds 0: these images cannot tell which of the two is better."""
        mean = self.mean_difference
        return mean.low <= 0 <= mean.high

    @property
    def image_worth(self) -> float:
        """What one more right image is worth in the mean accuracy, in the source where it is worth most."""
        counts = [_count(self.first[name]) for name in self._sources]
        return 1 / (min(counts) * len(counts)) if counts else 0.0

    def rows(self) -> list[list[str]]:
        """A table for people, its header first."""
        found = self.differences
        rows = [["source", "images", *self.names, "difference", "95 % interval"]]
        for name, difference in found.items():
            a, b = self.first[name], self.second[name]
            rows.append([name, f"{_count(a):,}", *_percents(mean_outcome(a), mean_outcome(b)), *_points(difference)])
        if len(found) > 1:
            rows.append(["mean of sources", "", *_percents(*self.means), *_points(self.mean_difference)])
        return rows

    def mean_row(self) -> list[str]:
        """Of the second model: mean over sources, difference to the first and its interval, for a table."""
        return [*_percents(self.means[1]), *_points(self.mean_difference)]

    @property
    def means(self) -> tuple[float, float]:
        """Of each model the mean over sources."""
        first, second = (
            float(np.mean([mean_outcome(one[name]) for name in self._sources])) for one in (self.first, self.second)
        )
        return first, second

    @property
    def num_images(self) -> int:
        """Of all sources together."""
        return sum(_count(self.first[name]) for name in self._sources)

    def verdict(self) -> str:
        """What the numbers come to, in one sentence."""
        worth = "" if self._scored else f"; one image is worth up to {100 * self.image_worth:.2f} points"
        of = "seeds and images" if self._over_seeds else "images"
        if _says_nothing(self.mean_difference):
            return f"there are too few of these {of} to tell which is better"
        if self.within_noise:
            return f"the difference is within the noise of these {of}: they do not tell which is better{worth}"
        mean = self.mean_difference
        ends = sorted((abs(mean.low), abs(mean.high)))
        verb = "loses" if mean.value < 0 else "gains"
        who = "the packed model" if self.names[1] == "packed" else self.names[1]
        return f"{who} {verb} {100 * ends[0]:.1f} to {100 * ends[1]:.1f} points{worth}"

    def text(self) -> str:
        """For a terminal."""
        return "\n".join([f"{self.measure} on {self.what}:", *table(self.rows()), f"  {self.verdict()}"])

    def markdown(self) -> str:
        """For a model card."""
        lines = [f"{heading(self.measure)} on {self.what}:", "", *markdown(self.rows())]
        return "\n".join([*lines, "", self.verdict().capitalize() + "."])


def _percents(*values: float) -> list[str]:
    return [f"{100 * value:.1f} %" for value in values]


def _says_nothing(difference: Estimate) -> bool:
    """Whether the interval is all there can be: there were too few images, or seeds, for one."""
    return difference.low <= -1 and difference.high >= 1


def _points(difference: Estimate) -> list[str]:
    value, low, high = (round(100 * number, 1) + 0.0 for number in difference)  # + 0.0: no -0.0
    return [f"{value:+.1f}", "too few to tell" if _says_nothing(difference) else f"{low:+.1f} to {high:+.1f}"]
