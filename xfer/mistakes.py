"""The surest mistakes of a model: the images that it named wrongly with the highest confidence.

They say what accuracy does not: wrong labels, classes that overlap, what the training data lacks. Kept are places, not
pixels: the row of the split's index, which the version of the data pins down.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shards.loading.batch import Batch
from shards.loading.subset import Subset

MOST = 12  # of a source


@dataclass(frozen=True, order=True)
class Mistake:
    """confidence: the model's probability of its answer; row: of the sample in its split's index."""

    confidence: float
    row: int
    truth: str
    answer: str


class Mistakes:
    """Collects the `MOST` surest mistakes of each source from the batches of an evaluation of `subsets`. classes: the
    model's, by which targets are numbered.
    """

    def __init__(self, subsets: Sequence[Subset], classes: Sequence[str]):
        self._subsets, self._classes = tuple(subsets), tuple(classes)
        first = subsets[0].numbered(classes) if subsets else None
        self._truths = first.numbered_names if first else self._classes
        self._sets = None if first is None or first.sets is None else torch.from_numpy(first.sets)
        self._firsts = [sum(subset.num_samples for subset in subsets[:i]) for i in range(len(subsets))]
        self._found: list[list[tuple[float, int, int, int]]] = [[] for _ in subsets]

    def add(self, batch: Batch, logits: Tensor) -> None:
        """logits [B, K], on the device of the batch."""
        confidence, answers = logits.float().softmax(1).max(1)
        right = answers == batch.targets
        if self._sets is not None:
            right = self._sets.to(answers.device)[batch.targets.clamp_min(0), answers]
        wrong = batch.valid & (batch.targets >= 0) & ~right
        wrong &= confidence.isfinite()  # a model that diverged is sure of nothing
        columns = (confidence, batch.positions, batch.targets, answers, batch.sources)
        for *mistake, source in zip(*(column[wrong].tolist() for column in columns), strict=True):
            kept = self._found[source]
            (heapq.heappush if len(kept) < MOST else heapq.heappushpop)(kept, tuple(mistake))

    def result(self) -> dict[str, list[Mistake]]:
        """By source, the surest first."""
        return {subset.name: self._of(i) for i, subset in enumerate(self._subsets)}

    def _of(self, source: int) -> list[Mistake]:
        subset = self._subsets[source]
        return [
            Mistake(
                confidence, index_row(subset, position - self._firsts[source]), self._truths[truth], self._classes[said]
            )
            for confidence, position, truth, said in sorted(self._found[source], reverse=True)
        ]


def index_row(subset: Subset, i: int) -> int:
    """The row of a subset's i-th sample in its split's index."""
    shard, inside = subset.locate(i)
    return int(subset.rows_of(shard, subset.index())[inside])
