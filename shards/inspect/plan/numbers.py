"""What a run will do with its data, as numbers: blend, repeats, download volume, disk, shuffle and first samples.

From manifests alone and the order itself. Blend, counts and the first samples are exact; what nodes fetch is an
expectation (`downloads.py`) with who gets what measured on some batches (`survey.py`), within a few percent of a full
simulation. Samples that a filter leaves are expected shares (`expected.py`). Seconds for 10^5 shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from shards.config import DataConfig
from shards.inspect.plan.downloads import Fetches, fetches, without_lanes
from shards.inspect.plan.expected import Expected, open_expected
from shards.inspect.plan.section import read_section
from shards.inspect.plan.survey import Run, Survey, World, choose, survey
from shards.loading.state import build_order
from shards.order.order import Order
from shards.progress import progress
from shards.settings import ConfigError

_FIRST, _RANKS_A_NODE, _MOST = 8, 8, 10**12


@dataclass(frozen=True)
class SourcePlan:
    """One source. `wanted`: its share in each stage; `given`: its samples in the whole run; `in_batch`: the fewest, the
    mean and the most in a batch; `first_epoch`: the step that ends its first epoch, None: not in this run.

    Of the shuffle, and of a perfect one: `apart`, batches between two samples that are neighbours on disk, on average;
    `batch_shards`, distinct shards in a batch that has any of it. `window_shards`: how many shards a lane shuffles
    together.
    """

    expected: Expected
    wanted: tuple[float, ...]
    given: int
    in_batch: tuple[int, float, int]
    first_epoch: int | None
    apart: tuple[float, float]
    batch_shards: tuple[float, float]
    window_shards: float
    fetches: Fetches
    without_lanes: float

    @property
    def name(self) -> str:
        """Name in the recipe."""
        return self.expected.subset.name

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return self.expected.subset.num_samples

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return int(self.expected.shape.bytes.sum())

    @property
    def epochs(self) -> float:
        """How often its samples come in the run."""
        return self.given / self.samples


@dataclass(frozen=True)
class First:
    """A position and what comes there."""

    position: int
    source: str
    shard: str
    row: int


@dataclass(frozen=True)
class DataPlan:
    """All of it. `stages`: the step at which each set of weights begins to hold. `evaluate_every`: steps, if known.
    `balance`: of classes, which the numbers leave out, for only an index says where classes lie.
    """

    config: DataConfig
    world: World
    run: Run
    order: Order
    survey: Survey
    stages: tuple[int, ...]
    sources: tuple[SourcePlan, ...]
    first: tuple[First, ...]
    evaluate_every: int | None = None
    balance: float = 0.0

    @cached_property
    def counted(self) -> tuple[SourcePlan, ...]:
        """The sources that are fetched; if none is, all: what they would cost in a store."""
        return tuple(source for source in self.sources if source.expected.is_remote) or self.sources

    @property
    def is_fetched(self) -> bool:
        """Whether any source is fetched."""
        return self.counted[0].expected.is_remote

    @property
    def is_exact(self) -> bool:
        """Whether samples and rows are exact."""
        return all(source.expected.share == 1 for source in self.sources)

    @property
    def size(self) -> int:
        """Bytes of all shards that are counted."""
        return sum(source.size for source in self.counted)

    @property
    def index_size(self) -> int:
        """Bytes of the indexes, which every node keeps."""
        return sum(source.expected.whole.manifest.index.bytes for source in self.counted)

    def fetched(self, what: str) -> np.ndarray:
        """Bytes for each node of all counted sources together, float64 [nodes]; `what`: a field of `Fetches`."""
        return sum((getattr(source.fetches, what) for source in self.counted), np.zeros(self.world.nodes))

    @property
    def copies(self) -> float:
        """How many times the data set all nodes together fetch in one epoch of every source."""
        return float(self.fetched("once").sum()) / self.size

    @property
    def disk(self) -> float:
        """Bytes that a node needs so that it fetches nothing twice in an epoch: indexes, windows in use and next."""
        return min(float(self.fetched("disk").max()) + self.index_size, self.whole_disk)

    @property
    def whole_disk(self) -> float:
        """Bytes that a node needs so that it never fetches anything twice."""
        return float(self.fetched("ever").max()) + self.index_size

    @property
    def evaluation(self) -> float:
        """Bytes that all nodes fetch for one evaluation on the validation samples, if nothing is on their disks."""
        return sum(_validated(source.expected, self.run.batch_size, self.world.nodes) for source in self.counted)

    @property
    def step_bytes(self) -> float:
        """Bytes of the samples of one step, all ranks together."""
        return sum(source.in_batch[1] * source.size / source.expected.whole.num_samples for source in self.sources)


@dataclass(frozen=True)
class Wish:
    """What a user asks for; None: as the document says, else 1 rank, nodes of 8 ranks, one pass of all data."""

    ranks: int | None = None
    nodes: int | None = None
    steps: int | None = None


def plan_file(path: str | Path, overrides: Sequence[str], wish: Wish, faults: Sequence[str] = ()) -> DataPlan:
    """The plan of a recipe, a job, a study or a data section. Raises ConfigError with every fault, and `faults`."""
    found = [
        *faults,
        *(
            f"--{name}: {n}; expected 1 to {_MOST:,}"
            for name, n in vars(wish).items()
            if n is not None and not 0 < n <= _MOST
        ),
    ]
    try:
        section = read_section(path, overrides)
    except ConfigError as error:
        raise (ConfigError([*found, *error.faults], error.origin or path) if found else error) from None
    config = section.data
    ranks = wish.ranks or section.ranks or 1
    nodes = wish.nodes or -(-ranks // _RANKS_A_NODE)
    if min(ranks, nodes) > 0 and ranks % nodes:
        found.append(f"--nodes: {ranks} ranks do not divide among {nodes} nodes; give a number that they do")
    if config.batch_size < ranks:
        found.append(f"data.batch_size: {config.batch_size} samples for {ranks} ranks; each needs at least one")
    try:
        sources, _ = open_expected(config)
    except ConfigError as error:
        raise ConfigError([*found, *error.faults], path) from None
    if found:
        raise ConfigError(found, path)
    one_pass = -(-sum(source.subset.num_samples for source in sources) // config.batch_size)
    run = Run(config.batch_size, wish.steps or section.steps or one_pass)
    return replace(plan_data(sources, config, run, World(ranks, nodes)), evaluate_every=section.evaluate_every)


def plan_data(sources: Sequence[Expected], config: DataConfig, run: Run, world: World) -> DataPlan:
    """The data plan of a run from position 0; shows progress."""
    balance, config = config.balance, config.model_copy(update={"balance": 0.0})
    order = build_order([source.subset for source in sources], config)
    chosen = choose(order, run)
    with progress("plan", chosen.num_steps, "batches") as advance:
        seen = survey(order, run, world, chosen, advance)
    stages = tuple(start for start in (-(-order.blend.starts // run.batch_size)).tolist() if start < run.steps)
    described = tuple(_describe(order, run, seen, source) for source in sources)
    first = _first(order, sources, min(_FIRST, run.samples))
    return DataPlan(config, world, run, order, seen, stages, described, first, balance=balance)


def _describe(order: Order, run: Run, seen: Survey, source: Expected) -> SourcePlan:
    i, samples = order.names.index(source.subset.name), source.subset.num_samples
    rows = source.shape.rows
    given = int(seen.chances.counts[-1, i])
    mean = given / run.steps
    window = min(order.window, -(-samples // order.lanes))
    # Two places drawn at random from n in a row are n / 3 apart.
    apart = (window * order.lanes / 3 / mean, samples / 3 / mean) if given else (0.0, 0.0)
    with np.errstate(divide="ignore"):
        missed = np.exp(seen.samples[i] * np.log1p(-rows / samples))
    return SourcePlan(
        source,
        tuple(weights[i] / sum(weights) for weights in order.blend.weights),
        given,
        (int(seen.least[i]), mean, int(seen.chances.most[i])),
        _first_epoch(order, run, i, samples) if given >= samples else None,
        apart,
        (float(seen.shards[i]), float((1 - missed).sum())),
        window / (samples / np.count_nonzero(rows)),
        fetches(order, source.shape, seen.chances),
        without_lanes(source.shape, seen.chances.num_nodes),
    )


def _first_epoch(order: Order, run: Run, source: int, samples: int) -> int:
    """The step in which a source gives its last sample for the first time, counted from 1."""
    low, high = 0, run.steps
    while high - low > 1:
        middle = (low + high) // 2
        if order.blend.counts(middle * run.batch_size)[source] >= samples:
            high = middle
        else:
            low = middle
    return high


def _first(order: Order, sources: Sequence[Expected], count: int) -> tuple[First, ...]:
    at = order.locate(np.arange(count))
    places = zip(at.source.tolist(), at.shard.tolist(), at.row.tolist(), strict=True)
    return tuple(
        First(position, order.names[source], sources[source].subset.manifest.shards[shard].path, row)
        for position, (source, shard, row) in enumerate(places)
    )


def _validated(source: Expected, batch_size: int, nodes: int) -> float:
    """Bytes that all nodes fetch to read the validation samples of a source once, front to back."""
    rows = np.diff(source.whole.shard_starts) * source.validated
    # A node's part of a batch meets a run of rows: the two are placed at random within a batch.
    meets = np.where(rows >= 1, np.minimum(1, (rows - 1 + batch_size / nodes) / batch_size), rows / nodes)
    return float(meets @ source.shape.bytes) * nodes
