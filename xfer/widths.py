"""Widths by what layers can bear: the sensitivities of a folded model, and all allocations of bits that none beats.

Sensitivities come from training images alone, in one pass; the front of allocations is exact, so a budget in bytes has
one answer. The size of a file is known before anything is rounded.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from shards.progress import progress
from shards.settings import ConfigError
from xfer.backbone import Branch
from xfer.config import QuantizeConfig
from xfer.model import FusionModel
from xfer.outcomes import Comparison
from xfer.quant.allocate import Allocation, Table, front
from xfer.quant.bits import FLOAT, WIDTHS, groups, layers
from xfer.quant.cost import CodedSizes, layer_bytes, predicted_bytes
from xfer.quant.sensitivity import sensitivity
from xfer.quant.stream import num_bytes
from xfer.tasks.known import task_of

_BATCH = 32  # images of a pass: fewer are few values for the correction, more take memory for their graph
_SIZES = 64  # that bisection chooses among: from 2 to 8 bits, each is about 2 % larger than the one before
_STATES = 20_000  # sizes are compared by parts of the largest, so many of them


def sensitivities(model: FusionModel, calibration: Sequence[Tensor], seed: int = 0) -> Table:
    """Nats an image by layer and width, of a folded model in float; with progress. calibration: uint8 [B, 3, S, S]
    batches. Raises ConfigError if a layer has no part in the answer.
    """
    images = torch.cat(list(calibration)).split(_BATCH)
    with progress("sensitivity of layers", sum(map(len, images)), "images") as advance, _graph_everywhere(model):

        def shown() -> Iterator[Tensor]:
            for batch in images:
                yield batch
                advance(len(batch))

        generator, task = torch.Generator().manual_seed(seed), task_of(model.task)
        try:
            return sensitivity(model, shown(), generator, WIDTHS, likelihood=task.drawn)
        except ValueError as error:
            raise ConfigError(f"quantize: no bits can be chosen for this model, give quantize.bits: {error}") from None


@contextmanager
def _graph_everywhere(model: FusionModel) -> Iterator[None]:
    """Parts of branches that were not trained would run without a graph."""
    found = [branch for branch in model.branches.values() if isinstance(branch, Branch)]
    before = [branch.num_frozen for branch in found]
    try:
        for branch in found:
            branch.num_frozen = -1
        yield
    finally:
        for branch, num_frozen in zip(found, before, strict=True):
            branch.num_frozen = num_frozen


@dataclass(frozen=True)
class Front:
    """Allocations of a model, each larger and better than the one before, from 2 to 8 bits everywhere. file_bytes: of
    the file of one.
    """

    points: Sequence[Allocation]
    file_bytes: Callable[[Allocation], int]

    def within(self, budget: int) -> Allocation:
        """The best whose file has at most `budget` bytes. Raises ConfigError if there is none."""
        at = bisect_right(self.points, budget, key=self.file_bytes)
        if not at:
            raise ConfigError(_too_small(budget, self.file_bytes(self.points[0])))
        return self.points[at - 1]

    def spread(self, count: int) -> list[Allocation]:
        """At most `count` points, smallest and largest among them, each larger than the last by about one factor."""
        sizes = [point.size_bytes for point in self.points]
        wanted = [sizes[0] * (sizes[-1] / sizes[0]) ** (step / max(1, count - 1)) for step in range(1, count - 1)]
        places = {0, len(sizes) - 1, *(bisect_right(sizes, one) - 1 for one in wanted)}
        return [self.points[place] for place in sorted(places)]


def front_of(model: nn.Module, losses: Table, metadata: Mapping[str, Any], coded: CodedSizes | None = None) -> Front:
    """The front of a folded model; metadata: what its file says beside the weights; coded: as for `predicted_bytes`.
    The smallest and the largest allocation are always in it: losses are measured, and may not fall from width to width.
    """
    sizes = layer_bytes(model, WIDTHS, coded)
    smallest, largest = (_everywhere(sizes, losses, width) for width in (min(WIDTHS), max(WIDTHS)))
    found = front(losses, sizes, max(1, largest.size_bytes // _STATES))
    points = [smallest]
    for point in sorted(found, key=lambda one: (one.size_bytes, one.loss)):  # it compared rounded sizes
        if point.loss < points[-1].loss:
            points.append(point)
    if points[-1].size_bytes < largest.size_bytes:
        points.append(largest)
    return Front(points, lambda point: predicted_bytes(model, point.bits, metadata, coded))


def check_choosable(kept: Mapping[str, Any]) -> None:
    """Raises ConfigError if layers keep the codes that they have."""
    if kept:
        raise ConfigError(
            "quantize: branches and projections keep the bits they have (transfer.mode: quant); only those of the head "
            "can be chosen, by quantize.bits"
        )


def check_budget(model: nn.Module, budget: int, metadata: Mapping[str, Any], coded: CodedSizes | None = None) -> None:
    """Raises ConfigError if no widths of a folded model fit: before anything is measured."""
    smallest = predicted_bytes(model, dict.fromkeys(layers(model), min(WIDTHS)), metadata, coded)
    if budget < smallest:
        raise ConfigError(_too_small(budget, smallest))


def _everywhere(sizes: Mapping[str, Mapping[int, int]], losses: Table, width: int) -> Allocation:
    loss = sum(row.get(width, inf) for row in losses.values())
    return Allocation(dict.fromkeys(sizes, width), sum(row[width] for row in sizes.values()), loss)


def _too_small(budget: int, smallest: int) -> str:
    return f"quantize.budget: must be at least {smallest:,} bytes, {min(WIDTHS)} bits in every layer, got {budget:,}"


@dataclass(frozen=True)
class Tried:
    """An allocation that was packed, read back and measured: bytes of its file, and how it compares with the run."""

    bits: Mapping[str, int]
    size_bytes: int
    compared: Comparison

    @property
    def drop(self) -> float:
        """Points of the measure that it lost, of 100, on the mean of the sources."""
        return -100 * self.compared.mean_difference.value


@dataclass(frozen=True)
class Widths:
    """The storage bits of every layer, 32 for float. said: how they came about; losses: nats an image by layer and
    width, where they were measured; tried: what was measured to choose, smallest first; coded: bytes of the codes that
    are written shorter, by layer and width; None: none were to be.
    """

    bits: Mapping[str, int]
    said: str
    losses: Table | None = None
    tried: Sequence[Tried] = ()
    coded: CodedSizes | None = None

    def coded_text(self, model: nn.Module) -> str:
        """What coding came to, in words; empty if nothing was to be coded."""
        if self.coded is None:
            return ""
        shorter = {name: row[self.bits[name]] for name, row in self.coded.items() if self.bits[name] in row}
        found = layers(model)
        plain = sum(num_bytes(found[name].weight.numel(), bits) for name, bits in self.bits.items() if bits != FLOAT)
        saved = sum(num_bytes(found[name].weight.numel(), self.bits[name]) - size for name, size in shorter.items())
        count = sum(bits != FLOAT for bits in self.bits.values())
        share = 100 * saved / plain if plain else 0.0
        return f"coded without loss in {len(shorter)} of {count} layers: codes take {saved:,} bytes less, {share:.1f} %"

    def rows(self, model: nn.Module, by_layer: bool) -> list[list[str]]:
        """A table for people of the layers of a folded model, or of their groups, its header first."""
        sizes, found = layer_bytes(model, coded=self.coded), layers(model)
        parts = {name: [name] for name in found} if by_layer else groups(model)
        head = ["layer", "weights", "bits", "bytes"] if by_layer else ["group", "weights", "bits", "bytes"]
        rows = [[*head, *(["sensitivity"] if self.losses else [])]]
        for part, names in parts.items():
            widths = sorted({self.bits[name] for name in names})
            weights = sum(found[name].weight.numel() for name in names)
            packed = sum(sizes[name][self.bits[name]] for name in names)
            shown = f"{widths[0]} to {widths[-1]}" if len(widths) > 1 else f"{widths[0]}"
            rows.append([part, f"{weights:,}", shown, f"{packed:,}"])
            if self.losses:
                rows[-1].append(f"{sum(self.losses[name][self.bits[name]] for name in names):.2g}")
        return rows


def plainly(config: QuantizeConfig) -> str:
    """Bits by group, in words."""
    return f"{config.bits}" + "".join(f", {group} {width}" for group, width in config.groups.items())


def span(bits: Mapping[str, int]) -> str:
    """`3 to 8`, of the layers that are not in float, if there are any."""
    packed = [width for width in bits.values() if width != FLOAT] or [FLOAT]
    low, high = min(packed), max(packed)
    return f"{low} to {high}" if high > low else str(low)


def smallest_within(front: Front, max_drop: float, measure: Callable[[Allocation, str], Tried]) -> list[Tried]:
    """What was tried to find the smallest file that loses at most `max_drop` points, that one first: by bisection over
    sizes that grow by one factor, which takes a drop to shrink with the size. measure: gets what to call it, too.
    Raises ConfigError if 8 bits everywhere lose more.
    """
    points, tried = front.spread(_SIZES), {}

    def is_within(at: int) -> bool:
        tried[at] = measure(points[at], f"search, size {len(tried) + 1} of about {len(points).bit_length() + 1}")
        return tried[at].drop <= max_drop

    low, high = -1, len(points) - 1
    if not is_within(high):
        raise ConfigError(
            f"quantize.max_drop: {max_drop:g} points: {max(WIDTHS)} bits in every layer lose {tried[high].drop:.2f} on "
            "the search images; give more points, or more quantize.calibration images"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_within(middle) else (middle, high)
    return [tried.pop(high), *tried.values()]


def tried_rows(tried: Sequence[Tried]) -> list[list[str]]:
    """A table for people, its header first, smallest file first."""
    rows = [["bytes", tried[0].compared.measure, "difference", "95 % interval"]]
    for one in sorted(tried, key=lambda each: each.size_bytes):
        rows.append([f"{one.size_bytes:,}", *one.compared.mean_row()])
    return rows
