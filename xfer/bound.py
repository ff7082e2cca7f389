"""What bounded the speed of a run: data, compute, communication or one slow rank; and what to change.

From the timing of its ranks (xfer/timing.py), since the newest start, without the first row of each rank, in which
caches fill and kernels are chosen. The rule, in this order:

1. **A slow rank**: its own time of a step, without the exchange, is more than `SLOW` times the median of the other
   ranks', a step and an image, in three rows of four, and of at least `ROWS` rows. The others' wait for it stands
   in their exchange, so nothing else can be told before it is as fast.
2. **Data**: ranks wait for images for `DATA` of a step or more. Nothing is to be waited for where loader processes are
   ahead.
3. **Communication**: the exchange takes `EXCHANGE` of a step or more, on the rank where it takes least, for elsewhere
   it contains waiting. If 2 holds as well, the larger one.
4. Else **compute**.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.text import counted, size
from xfer.timing import Row, read_timing

SLOW, ROWS = 1.25, 4
DATA, EXCHANGE = 0.1, 0.2
IDLE = 0.7  # of their time that loader processes work, below which they are not what is waited for
MOST = 16  # ranks that are shown


@dataclass(frozen=True)
class RankTime:
    """Seconds of a mean step of one rank. `reading`, `decoding`: of all its loader processes together; `own`: by row,
    of a step and of an image, what is not the exchange.
    """

    rank: int
    node: str
    step: float
    data: float
    compute: float
    exchange: float
    rest: float
    longest: float
    reading: float
    decoding: float
    images_per_s: float
    workers: int
    cpus: int
    replaced: int
    memory_mb: float
    own: Mapping[int, tuple[float, float]]


def rank_times(folder: Path) -> list[RankTime]:
    """By rank, of a run's newest start; empty if there is no timing."""
    rows = read_timing(folder)
    since = max((row["since"] for row in rows), default=0)
    by_rank: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        if row["since"] == since:
            by_rank[row["rank"]].append(row)
    return [_rank_time(of) for _, of in sorted(by_rank.items())]


def _rank_time(rows: Sequence[Row]) -> RankTime:
    last, rows = rows[-1], rows[1:] or rows
    steps = sum(row["steps"] for row in rows)

    def mean(part: str) -> float:
        return sum(row["mean"][part] * row["steps"] for row in rows) / steps

    exchange, reading, decoding = (
        sum(row[name] for row in rows) / steps for name in ("exchange", "reading", "decoding")
    )
    seconds = mean("step")
    compute = max(0.0, sum(map(mean, ("copy", "forward", "backward", "update"))) - exchange)
    own = {row["step"]: (one := _own(row), one * row["steps"] / max(1, row["images"])) for row in rows}
    return RankTime(
        last["rank"],
        last["node"],
        seconds,
        mean("data"),
        compute,
        exchange,
        max(0.0, seconds - mean("data") - compute - exchange),
        max(row["max"]["step"] for row in rows),
        reading,
        decoding,
        sum(row["images"] for row in rows) / max(1e-9, seconds * steps),
        last["workers"],
        last["cpus"],
        sum(row["replaced"] for row in rows),
        last["memory_mb"],
        own,
    )


def _own(row: Row) -> float:
    return row["mean"]["step"] - row["mean"]["rest"] - row["exchange"] / row["steps"]


def bound_text(ranks: Sequence[RankTime]) -> str:
    """What bounded the run and what to change, in a sentence or two, or that there is too little to tell."""
    if not ranks or min(len(one.own) for one in ranks) < ROWS:
        return (
            f"Too few rows of losses since its newest start to tell what bounded it: that takes {ROWS + 1}, one every "
            "train.log_every steps"
        )
    if slow := slow_rank(ranks):
        return _slow_text(slow, ranks)
    step = statistics.fmean(one.step for one in ranks)
    data = statistics.fmean(one.data for one in ranks) / step
    exchange = min(one.exchange for one in ranks) / step
    if data >= DATA and data >= exchange:
        return f"Bound by data: {_share(data)} of a step waits for images. {_data_advice(ranks)}"
    if exchange >= EXCHANGE:
        return (
            f"Bound by communication: {_share(exchange)} of a step exchanges gradients and weights. A larger "
            "data.batch_size exchanges less often for an image; so do fewer workers; a lower cluster.zero_stage "
            "exchanges less"
        )
    rest = f"{_share(data)} of a step waits for images" + (
        f", {_share(exchange)} for other ranks" if len(ranks) > 1 else ""
    )
    return (
        f"Bound by compute: {rest}. More workers or faster devices, train.precision: bf16 where they have it, a "
        "smaller data.image_size or fewer branches make a step shorter; more loader processes do not"
    )


def slow_rank(ranks: Sequence[RankTime]) -> RankTime | None:
    """The slowest rank, if it is slower than the others by the rule."""
    if len(ranks) < 2 or min(len(one.own) for one in ranks) < ROWS:
        return None
    slowest = max(ranks, key=lambda one: statistics.median(step for step, _ in one.own.values()))
    others = [one for one in ranks if one is not slowest]
    rows = [at for at in slowest.own if all(at in other.own for other in others)]
    slow = [
        all(
            slowest.own[at][which] > SLOW * statistics.median(other.own[at][which] for other in others)
            for which in (0, 1)
        )
        for at in rows
    ]
    return slowest if len(rows) >= ROWS and sum(slow) >= 0.75 * len(rows) else None


def _slow_text(slow: RankTime, ranks: Sequence[RankTime]) -> str:
    others = [one for one in ranks if one is not slow]
    mine, theirs = (
        statistics.median(step for one in some for step, _ in one.own.values()) for some in ([slow], others)
    )
    more = {part: getattr(slow, part) - statistics.median(getattr(one, part) for one in others) for part in _CAUSES}
    cause = max(more, key=lambda part: more[part])
    return (
        f"Bound by rank {slow.rank} on node {slow.node}: {_ms(mine)} of its own a step against {_ms(theirs)} of the "
        f"others, who wait for it; most of it is {_CAUSES[cause]}"
    )


_CAUSES = {
    "data": "waiting for images: look at that node's storage, network and other programs",
    "compute": "computing: look for other programs on that node, a slower device, heat",
}


def _data_advice(ranks: Sequence[RankTime]) -> str:
    worst = max(ranks, key=lambda one: one.data)
    making, busy = worst.reading + worst.decoding, worst.step - worst.data
    if worst.workers and making < IDLE * worst.workers * worst.step:
        at_work = _share(making / worst.workers / worst.step)
        return (
            f"Its loader processes work for {at_work} of the time only: shards come too slowly. Keep them nearer, or "
            "larger (xfer shards build --shard-mb), or give data.cache more room"
        )
    needed = max(1, math.ceil(making / max(busy, 1e-9)))
    per_node = Counter(one.node for one in ranks)[worst.node]
    took = f"Images of a step take {_ms(making)} to read and decode, the rest of it {_ms(busy)}"
    if worst.reading > worst.decoding:
        return f"{took}; most is reading: keep the shards on faster storage, or larger (xfer shards build --shard-mb)"
    if needed * per_node < worst.cpus:
        return f"{took}: data.workers={needed} would keep up, now {worst.workers}"
    return (
        f"{took}: to keep up takes data.workers={needed} on each of {counted(per_node, 'rank')} of "
        f"node {worst.node}, which has {counted(worst.cpus, 'CPU')}. Build shards of "
        "smaller images, train on more nodes, or decode on GPUs (data.decode: gpu)"
    )


def _share(part: float) -> str:
    return f"{100 * part:.0f} %"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


def rank_rows(ranks: Sequence[RankTime]) -> list[list[str]]:
    """A table for people, its header first: the `MOST` slowest ranks, in order."""
    shown = sorted(sorted(ranks, key=lambda one: -(one.data + one.compute))[:MOST], key=lambda one: one.rank)
    head = [
        "rank",
        "node",
        "images/s",
        "step",
        "data",
        "compute",
        "exchange",
        "rest",
        "longest step",
        "replaced",
        "memory",
    ]
    rows = [
        [
            str(one.rank),
            one.node,
            f"{one.images_per_s:,.1f}",
            *(_ms(value) for value in (one.step, one.data, one.compute, one.exchange, one.rest, one.longest)),
            str(one.replaced),
            size(1e6 * one.memory_mb),
        ]
        for one in shown
    ]
    return [head, *rows]
