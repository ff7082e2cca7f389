"""All that a resume needs: how far the stream was read, and by which plan.

The plan is everything that decides the samples at every position and how they look; paths, cache, world size, workers
and batch size are not in it. Moving the data does not break a resume; changing it does, and the difference is named.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shards import decode
from shards.config import DataConfig
from shards.format.manifest import canonical
from shards.loading.balance import balanced
from shards.loading.subset import Subset
from shards.order import order
from shards.order.blend import Stage, tempered
from shards.order.order import Order
from shards.settings import ConfigError

_BATCHES_OF_A_BLOCK = 32


@dataclass(frozen=True)
class StreamState:
    """A place in a stream; equal on every rank, JSON by `asdict`, under 1 KB for a handful of sources.

    position: samples delivered, of all ranks together. plan: by which they were chosen. counts: how many of them came
    from each source. origin: (position, counts) at which a change of the plan was last accepted (`on_change`).
    """

    position: int = 0
    plan: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    origin: tuple[int, dict[str, int]] = (0, {})

    @property
    def fingerprint(self) -> str:
        """sha256 of the plan."""
        return "sha256:" + hashlib.sha256(canonical(self.plan)).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """What `StreamState(**json)` reads back."""
        return asdict(self)


def make_plan(subsets: Sequence[Subset], config: DataConfig) -> dict[str, Any]:
    """The plan of a configuration over these subsets, as JSON-able values."""
    first, *later = _stages(subsets, config)
    return {
        "order": order.VERSION,
        "decoder": decode.VERSION if config.decode == "cpu" else f"{decode.VERSION} gpu",
        "seed": config.seed,
        "block": _block(config),
        "unit": _unit(config),
        "lanes": config.lanes,
        "window": config.window,
        "augment": config.augment.model_dump(mode="json", exclude_none=True),
        "sources": {subset.name: {**subset.identity(), "weight": first.weights[subset.name]} for subset in subsets},
        "stages": [[stage.start, dict(stage.weights)] for stage in later],
        **({"balance": config.balance} if config.balance else {}),
        # The others differ in evaluation alone.
        **({"resize": config.resize} if config.resize == "letterbox" else {}),
    }


def resume(subsets: Sequence[Subset], config: DataConfig, state: StreamState) -> StreamState:
    """Where a stream of this configuration goes on from `state`. Raises ConfigError if the plan is another one and
    the configuration does not say `on_change: continue`.
    """
    plan = make_plan(subsets, config)
    changes = differences(state.plan, plan, state.position) if state.plan else []
    if not changes:
        return StreamState(state.position, plan, state.counts, (state.origin[0], dict(state.origin[1])))
    if config.on_change == "stop":
        raise ConfigError(changes, "the data is not what it was; `data.on_change: continue` would go on all the same")
    return StreamState(state.position, plan, state.counts, (state.position, state.counts))


def differences(old: Mapping[str, Any], new: Mapping[str, Any], position: int) -> list[str]:
    """A line for each value in which two plans differ that matters up to `position` or for what comes next.

    Stages still to come are no difference: weights may change mid-run.
    """
    return _compare("data", _until(old, position), _until(new, position))


def build_order(
    subsets: Sequence[Subset], config: DataConfig, origin: tuple[int, Mapping[str, int]] = (0, {})
) -> Order:
    """The order of a configuration. From the origin on it counts on from the origin's counts. Raises ConfigError for
    classes that cannot be balanced.
    """
    start, base = origin
    stages = _stages(subsets, config)
    if start:
        current = [stage for stage in stages if stage.start <= start][-1]
        later = [stage for stage in stages if stage.start > start]
        stages = [Stage(start, current.weights, base), *later]
    shapes = {subset.name: subset.shard_samples for subset in subsets}
    classes = balanced(subsets, config.balance)
    return Order(shapes, stages, config.seed, _block(config), config.lanes, config.window, _unit(config), classes)


def shares(subsets: Sequence[Subset], config: DataConfig) -> list[float]:
    """How much each subset, named like a source, counts in the blend that training begins with."""
    first = _stages(subsets, config)[0].weights
    return [float(first[subset.name]) for subset in subsets]


def _stages(subsets: Sequence[Subset], config: DataConfig) -> list[Stage]:
    given = {name: source.weight for name, source in config.sources.items()}
    names = [subset.name for subset in subsets]
    sizes = [subset.num_samples for subset in subsets]
    if all(given[name] is None for name in names):
        if config.temperature == 1 and not config.tilt:
            weights: Sequence[float] = sizes
        else:
            weights = tempered(sizes, config.temperature, config.tilt, [config.sources[n].score for n in names])
        given = dict(zip(names, weights, strict=True))
    first = {name: given[name] or 0 for name in names}
    # A stage may name a source that is held out: it gives no samples.
    later = [Stage(s.start, {name: w for name, w in s.weights.items() if name in first}) for s in config.stages]
    return [Stage(0, first), *later]


def _unit(config: DataConfig) -> int:
    return config.batch_size if config.unit == "batch" else 1


def _block(config: DataConfig) -> int:
    return config.block or config.batch_size * (_BATCHES_OF_A_BLOCK if config.unit == "batch" else 1)


def _until(plan: Mapping[str, Any], position: int) -> dict[str, Any]:
    return {**plan, "stages": [stage for stage in plan.get("stages", []) if stage[0] < position]}


def _compare(path: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines = []
        for key in sorted({*old, *new}, key=str):
            where = f"{path}.{key}"
            if key not in old:
                lines.append(f"{where}: is new")
            elif key not in new:
                lines.append(f"{where}: is no longer there")
            else:
                lines += _compare(where, old[key], new[key])
        return lines
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)) and list(old) == list(new):
        return []
    return [] if old == new else [f"{path}: was {old}, is now {new}"]
