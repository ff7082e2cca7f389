"""What to change in a data section where a data plan shows something off, and what the change would bring.

Silent where all is well: advice that always comes is not read. Other numbers of lanes are tried, each for a second at
most; everything else is known.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shards.inspect.plan.downloads import one_epoch
from shards.inspect.plan.numbers import DataPlan, SourcePlan
from shards.inspect.plan.survey import SAMPLES, choose, survey
from shards.loading.state import build_order
from shards.text import size

_GOOD_COPIES = 1.1  # of the data that all nodes may fetch in an epoch
_TRIALS, _MOST_LANES = 7, 4096
_MANY_EPOCHS = 20
_NEAR = 0.1  # of the distance between neighbours in a perfect shuffle
_WORTH = 0.7  # of what is fetched twice or more: a change that leaves more is not worth it
_MB_LEAST = 0.01
_WINDOW_SHARDS = 8


def advice_lines(found: DataPlan) -> list[str]:
    """Each thing to change, the costliest first."""
    parts = (_blend, _repeats, _window, _ranks)
    if found.is_fetched:
        parts = (_lanes, _few_shards, _cache, _evaluation, _shared, *parts)
    lines = [line for part in parts for line in part(found)]
    return ["what to change", *(f"  - {line}" for line in lines)] if lines else ["what to change: nothing stands out"]


@dataclass(frozen=True)
class _Trial:
    """Another number of lanes: bytes that all nodes fetch of one epoch of every source, and the disk a node needs."""

    lanes: int
    once: float
    disk: float


def _lanes(found: DataPlan) -> Iterator[str]:
    if found.copies <= _GOOD_COPIES:
        return
    trials = _try_lanes(found)
    good = [trial for trial in trials if trial.once <= _GOOD_COPIES * found.size]
    best = min(good, key=lambda trial: trial.disk) if good else min(trials, key=lambda trial: trial.once)
    if best.once / found.size - 1 > _WORTH * (found.copies - 1):
        return
    why = "some lanes are read by two nodes"
    if found.order.lanes < found.world.nodes:
        why = f"{found.order.lanes} lanes are fewer than {found.world.nodes} nodes"
    elif found.order.lanes % found.world.nodes:
        why = f"{found.order.lanes} lanes do not divide among {found.world.nodes} nodes"
    yield (
        f"lanes: {why}, so all nodes together fetch {found.copies:.2f} x the data an epoch; lanes={best.lanes} would "
        f"make it {best.once / found.size:.2f} x, with {size(best.disk)} of disk a node instead of {size(found.disk)}"
    )


def _try_lanes(found: DataPlan) -> tuple[_Trial, ...]:
    """What other numbers of lanes would do: multiples of the nodes."""
    subsets = [source.expected.subset for source in found.sources]
    nodes, trials = found.world.nodes, []
    for lanes in (nodes << shift for shift in range(_TRIALS)):
        if lanes == found.order.lanes or lanes > _MOST_LANES:
            continue
        order = build_order(subsets, found.config.model_copy(update={"lanes": lanes}))
        seen = survey(order, found.run, found.world, choose(order, found.run, SAMPLES // 4))
        needed = [one_epoch(order, source.expected.shape, seen.chances) for source in found.counted]
        once = float(sum(each.once.sum() for each in needed))
        disk = float(np.sum([each.disk for each in needed], axis=0).max()) + found.index_size
        trials.append(_Trial(lanes, once, disk))
    return tuple(trials)


def _few_shards(found: DataPlan) -> Iterator[str]:
    """A border between two nodes' lanes lies inside a shard, and both fetch it."""
    borders, extra = found.world.nodes - 1, _GOOD_COPIES - 1
    few = [s for s in found.counted if borders > extra * _shards(s) and s.fetches.once.sum() > _GOOD_COPIES * s.size]
    if few:
        wanted = math.ceil(borders / extra)
        mb = max(_MB_LEAST, min(source.size for source in few) / wanted / 1e6)
        named = ", ".join(f"{_shards(source)} of {source.name}" for source in few[:5]) + (
            ", ..." if len(few) > 5 else ""
        )
        yield (
            f"shards are few for {found.world.nodes} nodes ({named}): what lies in two nodes' lanes is fetched by "
            f"both; `xfer shards build --shard-mb {mb:.2g}` would make at least {wanted}"
        )


def _shards(source: SourcePlan) -> int:
    return len(source.expected.shape.rows)


def _cache(found: DataPlan) -> Iterator[str]:
    limit = found.config.cache.gb * 1e9
    again = found.fetched("windows").sum() - found.fetched("ever").sum()
    if limit < found.disk:
        yield (
            f"cache.gb: {found.config.cache.gb:g} holds less than the windows in use and the next, so shards are "
            f"fetched again and again; cache.gb={_gb(found.disk)} would do, or a smaller window needs less"
        )
    elif limit < found.whole_disk and again > found.size * (_GOOD_COPIES - 1):
        yield (
            f"cache.gb: with {found.config.cache.gb:g} up to {size(again)} are fetched again in later epochs; "
            f"cache.gb={_gb(found.whole_disk)} would keep every shard"
        )


def _gb(num_bytes: float) -> str:
    """Rounded up to 2 digits."""
    gb = num_bytes / 1e9
    step = 10.0 ** (math.floor(math.log10(gb)) - 1)
    return f"{math.ceil(gb / step) * step:.10g}"


def _evaluation(found: DataPlan) -> Iterator[str]:
    every = found.evaluate_every
    if not found.config.held_fraction or not every or found.config.cache.gb * 1e9 >= found.whole_disk:
        return
    times = math.ceil(found.run.steps / every)
    whole, training = times * found.evaluation, float(found.fetched("windows").sum())
    if whole > training / 2:
        yield (
            f"train.evaluate_every: the validation samples lie in all shards, so {times:,} evaluations fetch up to "
            f"{size(whole)}, training {size(training)}; evaluate less often, keep every shard "
            f"(cache.gb={_gb(found.whole_disk)}), or build a split for validation and set validation=0"
        )


def _shared(found: DataPlan) -> Iterator[str]:
    """Sources over the same tars are counted as if they were not."""
    of: dict[str, list[str]] = {}
    for source in found.counted:
        of.setdefault(source.expected.whole.manifest.version, []).append(source.name)
    for names in of.values():
        if len(names) > 1:
            yield f"{', '.join(names)}: the same shards; downloads and disk are counted for each, and will be less"


def _blend(found: DataPlan) -> Iterator[str]:
    blend = found.order.blend
    units = blend.block // blend.unit
    rare = [
        source
        for source in found.sources
        if source.wanted[0] and source.wanted[0] * units < 1 and len(found.sources) > 1
    ]
    if rare:
        least = min(rare, key=lambda source: source.wanted[0])
        needed = math.ceil(1 / least.wanted[0]) * blend.unit
        block = -(-needed // found.run.batch_size) * found.run.batch_size
        what = "batches" if blend.unit > 1 else "samples"
        yield (
            f"block: of the {units:,} {what} in a block {least.name} gets {least.wanted[0] * units:.2g}, so some "
            f"blocks have none of it; block={block} would give each block its share"
        )


def _repeats(found: DataPlan) -> Iterator[str]:
    often = sorted((s for s in found.sources if s.epochs > _MANY_EPOCHS), key=lambda source: -source.epochs)
    if not often:
        return
    reported = ", ".join(f"{source.name} {source.epochs:.0f} times" for source in often[:5])
    if len(often) == len(found.sources) and often[0].epochs < 1.1 * often[-1].epochs:
        reported = f"all of its data {often[0].epochs:.0f} times"
    more = f", and {len(often) - 5} others more than {_MANY_EPOCHS} times" if len(often) > 5 else ""
    lower = "" if len(often) == len(found.sources) else f", lower weights of {'it' if len(often) == 1 else 'these'}"
    yield f"weights: the run repeats {reported}{more}; fewer steps{lower} or more data, unless that is wanted"


def _window(found: DataPlan) -> Iterator[str]:
    near = [source for source in found.sources if source.given and source.apart[0] < _NEAR * source.apart[1]]
    small = [s for s in near if s.window_shards < (_WINDOW_SHARDS if s.expected.is_indexed else 1)]
    if not small:
        return
    worst = min(small, key=lambda source: source.window_shards)
    names = ", ".join(source.name for source in small[:5]) + (", ..." if len(small) > 5 else "")
    order = "; tars of others are in their maker's order" if any(s.expected.is_indexed for s in small) else ""
    window = math.ceil(found.order.window * _WINDOW_SHARDS / worst.window_shards)
    yield (
        f"window: {found.order.window} shuffles {worst.window_shards:.2g} shards at a time, so that neighbours on disk "
        f"come {worst.apart[0]:.2g} steps apart ({names}{order}); window={window} shuffles {_WINDOW_SHARDS}, on more "
        "disk"
    )


def _ranks(found: DataPlan) -> Iterator[str]:
    rest = found.run.batch_size % found.world.ranks
    if rest:
        batch = found.run.batch_size + found.world.ranks - rest
        yield (
            f"batch_size: {found.run.batch_size} does not divide among {found.world.ranks} ranks; some wait for others "
            f"that have one sample more; batch_size={batch} would not"
        )
