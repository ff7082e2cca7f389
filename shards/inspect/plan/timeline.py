"""Which node reads which part of a source when: samples of a plan's first epoch, as dots of a picture.

Real positions of the order, from whole batches spread evenly over the time that the epoch takes; where lanes belong to
nodes, the dots form bands of one colour. Costs a second at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.format.hashing import Ints, permutation
from shards.inspect.plan.downloads import Floats
from shards.inspect.plan.numbers import DataPlan, SourcePlan
from shards.inspect.plan.survey import ranks_of
from shards.order.order import shuffled_shards

_SOURCES, _SAMPLES, _DOTS = 3, 1 << 18, 6000


@dataclass(frozen=True)
class Timeline:
    """A source's first epoch: for each dot its step, its place in the epoch's list, in shards, and its node."""

    name: str
    num_steps: int
    num_shards: int
    is_whole: bool
    step: Ints
    place: Floats
    node: Ints


def timelines(found: DataPlan) -> Sequence[Timeline]:
    """Of the sources that give most samples, at most 3."""
    largest = sorted((s for s in found.sources if s.given), key=lambda source: -source.given)[:_SOURCES]
    return [_timeline(found, source) for source in largest]


def _timeline(found: DataPlan, source: SourcePlan) -> Timeline:
    order, run, world = found.order, found.run, found.world
    end = source.first_epoch or run.steps
    steps = np.unique(np.linspace(0, end - 1, max(1, _SAMPLES // run.batch_size)).astype(np.int64))
    at = order.locate((steps[:, None] * run.batch_size + np.arange(run.batch_size)).ravel())
    rank = ranks_of(at.lane.reshape(len(steps), -1), world.ranks).ravel()
    of = np.flatnonzero((at.source == order.names.index(source.name)) & (at.epoch == 0))
    of = of[permutation(len(of), end)[:_DOTS]]  # in no order: where dots lie on each other, none is always above
    shape = source.expected.shape
    listed = shuffled_shards(len(shape.rows), order.seed, shape.name, 0)
    turn = np.empty(len(listed), np.int64)
    turn[listed] = np.arange(len(listed))
    inside = at.row[of] / np.maximum(1, shape.rows[at.shard[of]])
    return Timeline(
        source.name,
        end,
        len(listed),
        source.first_epoch is not None,
        steps[of // run.batch_size],
        turn[at.shard[of]] + inside,
        rank[of] * world.nodes // world.ranks,
    )
