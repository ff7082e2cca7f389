"""A data plan in words: a table for each question. What to change is `advice.py`."""

from shards.config import LEAVE_ONE_OUT
from shards.inspect.plan.numbers import DataPlan, SourcePlan
from shards.text import counted, size, table

_SHOWN = 20
_STAGES_SHOWN = 8
_SIDES = (112, 128, 160, 224)


def plan_lines(found: DataPlan) -> list[str]:
    """The whole report."""
    parts = [
        _head(found),
        _sources(found),
        _images(found),
        _stages(found),
        _downloads(found),
        _disk(found),
        _shuffle(found),
        _first(found),
    ]
    return [line for part in parts if part for line in [*part, ""]]


def _head(found: DataPlan) -> list[str]:
    run, world = found.run, found.world
    steps = f"{counted(run.steps, 'step')} of {counted(run.batch_size, 'sample')}"
    ranks = f"{counted(world.ranks, 'rank')} on {counted(world.nodes, 'node')}"
    lines = [f"{steps}, {run.samples:,} in all, by {ranks}"]
    if found.config.validation == LEAVE_ONE_OUT:
        folds = len(found.sources)
        lines.append(f"leave one source out: {folds + 1} runs, {folds} of them without a source; this is the last")
    if found.balance:
        power = f"n^{1 - found.balance:.3g}"
        lines += [
            f"data.balance {found.balance:g}: a class of n samples has the share {power} of its source;",
            "classes go through the shards at paces of their own, so epochs, first positions and downloads are those "
            "without it,",
            "and a remote source is fetched once only if the disk keeps every shard",
        ]
    return lines


def _sources(found: DataPlan) -> list[str]:
    about = "" if found.is_exact else "; samples are about, as only an index says who passes `validation` and `where`"
    share = "share at first" if len(found.stages) > 1 else "share"
    head = ["", "samples", "shards", "size", share, "in a batch", "in this run", "epochs", "epoch 1 ends"]
    shown = sorted(found.sources, key=lambda source: -source.given)[:_SHOWN]
    rows = [_source(found, source) for source in shown]
    if len(found.sources) > 1:
        samples, shards = (sum(each) for each in zip(*((s.samples, _shards(s)) for s in found.sources), strict=True))
        total = size(sum(source.size for source in found.sources))
        batch, run = f"{found.run.batch_size:,}", f"{found.run.samples:,}"
        more = len(found.sources) - len(shown)
        name = f"all, {more} more not shown" if more else "all"
        rows.append(
            [name, f"{samples:,}", f"{shards:,}", total, "", batch, run, f"{found.run.samples / samples:.2f}", ""]
        )
    return [f"sources{about}", *table([head, *rows])]


def _source(found: DataPlan, source: SourcePlan) -> list[str]:
    least, mean, most = source.in_batch
    spread = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    ends = f"step {source.first_epoch:,}" if source.first_epoch else "not in this run"
    return [
        source.name,
        f"{source.samples:,}",
        f"{_shards(source):,}",
        size(source.size),
        f"{source.wanted[0]:.1%}",
        spread if found.survey.is_complete or least == most else f"{spread}, mean {mean:.3g}",
        f"{source.given:,}",
        f"{source.epochs:.2f}",
        ends,
    ]


def _shards(source: SourcePlan) -> int:
    return len(source.expected.shape.rows)


def _images(found: DataPlan) -> list[str]:
    """How large images are as stored and as seen, and what that costs."""
    rows = []
    for source in found.sources[:_SHOWN]:
        stats = source.expected.whole.manifest.stats
        rows.append([source.name, f"{_span(stats.width)} x {_span(stats.height)} px"])
    if "image_size" in found.config.model_fields_set:
        seen = found.config.image_size
        head = f"images are seen at {seen} px (data.image_size); as stored they have"
        others = ", ".join(f"{side} px {(side / seen) ** 2:.2g}" for side in _SIDES if side != seen)
        cost = f"  a step's time grows with the pixels seen, about, times that of {seen} px: {others}"
    else:
        head = (
            "images are seen at the size that the model's weights were made at, or at 112 px without weights, for "
            "data.image_size is not given; as stored they have"
        )
        cost = "  a step's time grows with the pixels seen: half the size, about a quarter of the time"
    return [head, *table(rows, left=2), cost]


def _span(bounds: tuple[int, int]) -> str:
    least, most = bounds
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _stages(found: DataPlan) -> list[str]:
    if len(found.stages) < 2:
        return []
    shown = sorted(found.sources, key=lambda source: -max(source.wanted))[:_STAGES_SHOWN]
    head = ["from step", "position", *(source.name for source in shown)]
    rows = [
        [f"{step:,}", f"{int(start):,}", *(f"{source.wanted[i]:.1%}" for source in shown)]
        for i, (step, start) in enumerate(zip(found.stages, found.order.blend.starts, strict=False))
    ]
    return ["stages, share of each source", *table([head, *rows], left=0)]


def _downloads(found: DataPlan) -> list[str]:
    nodes = found.world.nodes
    if found.is_fetched:
        title = "download volume (egress), what the nodes fetch"
    else:
        title = "download volume (egress): none, all sources are local and read in place; from a store it would be"
    index = found.index_size * nodes
    anew, kept = float(found.fetched("windows").sum()) + index, float(found.fetched("ever").sum()) + index
    naive = sum(source.without_lanes for source in found.counted) / found.size
    lanes = f" ({naive:.2f} x if samples went to any node)" if nodes > 1 else ""
    rows = [
        ["", "a node", "all nodes", ""],
        _row("one epoch of every source", found.copies * found.size, nodes, f"{found.copies:.2f} x the data{lanes}"),
        _row("this run", anew, nodes, "if each epoch is fetched anew"),
        _row("", kept, nodes, "if the disk keeps every shard"),
    ]
    if found.config.held_fraction:
        rows.append(_row("one evaluation", found.evaluation, nodes, "if nothing is on the disk yet"))
    step = anew / found.run.steps / nodes
    speed = f"a step reads {size(found.step_bytes)} of samples; 10 steps/s fetch {size(10 * step)}/s at each node"
    return [title, *table(rows, text=1), f"  {speed}"]


def _row(what: str, num_bytes: float, nodes: int, reported: str) -> list[str]:
    return [what, size(num_bytes / nodes), size(num_bytes), reported]


def _disk(found: DataPlan) -> list[str]:
    limit = found.config.cache.gb * 1e9
    given = f"cache.gb is {found.config.cache.gb:g}"
    rows = [
        [size(need), reported, "enough" if need <= limit else "more than there is"]
        for need, reported in (
            (found.disk, "for the windows in use and the next: an epoch fetches nothing twice"),
            (found.whole_disk, "for every shard it ever reads: nothing is ever fetched twice"),
        )
    ]
    return [f"disk that a node needs ({given})", *table(rows, left=0, text=2)]


def _shuffle(found: DataPlan) -> list[str]:
    head = ["", "a batch draws from", "perfect", "neighbours on disk come", "perfect", "a window is"]
    shown = sorted(found.sources, key=lambda source: -source.given)[:_SHOWN]
    rows = [
        [
            source.name,
            f"{_three(source.batch_shards[0])} shards",
            _three(source.batch_shards[1]),
            f"{_count(source.apart[0])} steps apart",
            _count(source.apart[1]),
            f"{source.window_shards:.2g} shards",
        ]
        for source in shown
        if source.given
    ]
    order, ranks = found.order, found.world.ranks
    title = (
        f"shuffle by {order.lanes} lanes and windows of {order.window:,} samples; perfect: a source shuffled as a whole"
    )
    reported = [f"  a rank reads from {_three(found.survey.open_shards)} shards in a step"] if ranks > 1 else []
    if not all(source.expected.is_indexed for source in found.sources):
        reported.append(
            "  (`xfer shards build` mixes samples before it lays them on disk: neighbours there are not alike)"
        )
    return [title, *table([head, *rows]), *reported]


def _count(steps: float) -> str:
    return f"{steps:,.0f}" if steps >= 10 else f"{steps:.2g}"


def _three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _first(found: DataPlan) -> list[str]:
    rows = [[f"{first.position}", first.source, first.shard, f"{first.row}"] for first in found.first]
    about = "" if found.is_exact else " (about: rows that validation or `where` cut are not known)"
    lines = table([["position", "source", "shard", "row"], *rows], left=3)
    return [f"order, the first positions{about}", *lines]
