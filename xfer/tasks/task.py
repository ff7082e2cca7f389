"""What depends on the task of a model, behind one object: loss, scores, what data it takes, and its answers.

The loop, the engines, checkpoints and the verbs know no task by name; they take the object of `xfer/tasks/known.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards.loading.batch import Batch
from shards.loading.frame import Frame, Resize
from shards.loading.open import Splits
from shards.loading.subset import Subset
from xfer.config import Recipe
from xfer.labels import Teacher

MOST = 12  # images that a score names as its worst
Output = Any
"""What a model makes of a batch: a tensor, or tensors by name."""


Answer = Any
"""What a model says of one image; what it is depends on the task alone."""


def nothing(output: Output) -> Tensor:
    """A loss of 0 that every part of an output has a part in."""
    parts = output.values() if isinstance(output, Mapping) else [output]
    return sum((part.float().sum() * 0 for part in parts if part.requires_grad), torch.zeros(()))


class Supervision(NamedTuple):
    """What a loss knows of the labels. masks [S, K] bool: the classes that each of the `sources` annotates, on the
    device of the outputs; smoothing: of the targets; teacher, sets (of classes that a target may be, xfer/labels.py):
    of a classifier only.
    """

    masks: Tensor
    sources: Sequence[str]
    smoothing: float = 0.0
    teacher: Teacher | None = None
    sets: Tensor | None = None


class Loss(Protocol):
    """The training loss of a batch."""

    @property
    def sources(self) -> Sequence[str]: ...

    def __call__(self, output: Output, batch: Batch, /) -> Tensor:
        """The sum over valid samples, a scalar. The gradient on classes that a sample's source does not annotate is
        exactly zero.
        """
        ...


class Score(Protocol):
    """What a model came to on one source. `value`: by the task's measure, 0 to 1; `count`: images that could be scored;
    `interval`: 95 %; `per_class`: for classes that occur; `extras`: what else is shown, by its title.
    """

    @property
    def value(self) -> float: ...
    @property
    def count(self) -> int: ...
    @property
    def interval(self) -> tuple[float, float]: ...
    @property
    def per_class(self) -> Mapping[str, float]: ...
    @property
    def extras(self) -> Mapping[str, float]: ...
    def kept(self) -> dict[str, Any]:
        """As plain values, for evaluation.json."""
        ...


def mean_score(scores: Mapping[str, Score]) -> float:
    """Unweighted mean over sources, so a big source does not hide a small one; NaN if none could be scored."""
    values = [score.value for score in scores.values() if score.count]
    return sum(values) / len(values) if values else math.nan


class Worst(NamedTuple):
    """One of the images that a model did worst on: its place among those of its source, and a score of it alone."""

    place: int
    value: float


class DenseScore(Score, Protocol):
    """Of a detector or a segmenter. `resampled`: float64 [R], its value on each of R resamples of its images, which are
    the same for every model that saw these images; `worst`: at most `MOST`, the worst first.
    """

    @property
    def resampled(self) -> np.ndarray: ...
    @property
    def worst(self) -> Sequence[Worst]: ...


def worst_of(places: np.ndarray, values: np.ndarray) -> tuple[Worst, ...]:
    """The `MOST` lowest of values float [n], NaN where there is nothing to score, with their places int [n]."""
    there = np.flatnonzero(np.isfinite(values))
    order = there[np.lexsort((places[there], values[there]))][:MOST]
    return tuple(Worst(int(places[i]), float(values[i])) for i in order)


class Scores(Protocol):
    """Collects scores over the batches of an evaluation."""

    def add(self, output: Output, batch: Batch) -> None: ...

    def result(
        self, total: Callable[[Tensor], Tensor] = lambda sums: sums, gather: Callable[[Tensor], Tensor] = lambda r: r
    ) -> Mapping[str, Score]:
        """By source. `total` adds up over ranks, `gather` puts the rows of all ranks [n, c] together: collectives."""
        ...


class Task(Protocol):
    """`name`: as manifests have it; `measure`: of `MEASURES`; `sees_whole`: whether it is scored on the pixels of the
    original images, so that batches of an evaluation have `originals`.
    """

    name: str
    measure: str
    sees_whole: bool

    def faults(self, subset: Subset) -> list[str]:
        """Why the samples of a subset cannot be used: what they lack."""
        ...

    def label_faults(self, data: Splits) -> list[str]:
        """Why a model cannot be trained or tested on sources that can be used, a line for each."""
        ...

    def scoring_faults(self, subset: Subset, classes: Sequence[str], where: str) -> list[str]:
        """Why a model of `classes` cannot be scored on a subset, which the user calls `where`."""
        ...

    def recipe_faults(self, recipe: Recipe) -> list[str]:
        """What of a recipe does not go with this task."""
        ...

    def loss(self, told: Supervision) -> Loss:
        """The training loss of this task."""
        ...

    def scores(self, subsets: Sequence[Subset], classes: Sequence[str], resize: Resize, device: torch.device) -> Scores:
        """`classes`: the model's, by which the batches are numbered; `resize`: how images came to their size."""
        ...

    def drawn(self, output: Output, generator: torch.Generator) -> Tensor:
        """The log-likelihood, float32 [B] with its graph, of labels that are drawn from what a model itself says of
        each image: what its sensitivity to rounding is taken from (xfer/quant/sensitivity.py). `generator`: on the CPU.
        """
        ...

    def answers(self, output: Output, frames: Sequence[Frame]) -> list[Answer]:
        """What a model of this task says of each image, in the pixels of the originals; `frames`: how these lie in what
        it saw.
        """
        ...

    def plain(self, answer: Answer, classes: Sequence[str], top: int) -> Any:
        """An answer as plain values, for JSON; `top`: at most so many classes or boxes."""
        ...

    def text(self, plain: Any) -> str:
        """The same in one line."""
        ...

    def draw(self, picture: Image.Image, answer: Answer, classes: Sequence[str]) -> Image.Image:
        """An answer on the upright original."""
        ...
