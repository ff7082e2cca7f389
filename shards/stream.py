"""Batches for training: the order, the loaders and the budget for damage put together.

Training is infinite and counts positions, so ranks never disagree about the end of an epoch. All that a resume needs
is `position`, and `fingerprint()` to see that it still means the same samples. Losses are counted by the distinct
sample: one damaged image is one loss however often it comes up.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from shards import decode, order
from shards.batch import Batch, Slot
from shards.config import AugmentConfig, DataConfig
from shards.damage import DamagedDataError, damage_table
from shards.loading import Delivery, Loss, Request, Samples, Transform, deliveries
from shards.manifest import canonical
from shards.order import Order
from shards.reader import Reader
from shards.settings import ConfigError
from shards.transforms import augment
from shards.views import View

_HANDFUL = 8


class TrainStream:
    """An endless iterator of this rank's batches. Close it (or use `with`) to stop its loader processes."""

    def __init__(
        self,
        views: Sequence[View],
        law: Order,
        samples: Samples,
        plan: dict,
        slot: Slot,
        batch_size: int,
        position: int = 0,
        workers: int = 0,
        max_replaced: float = 0.001,
        strict: bool = False,
        pin_memory: bool = False,
    ):
        self.position = position
        """Global position of the next batch: of what was delivered, not of what is being prepared."""
        self.losses: list[Loss] = []
        """Distinct damaged samples this rank came upon."""
        self._views, self._plan, self._batch_size = views, plan, batch_size
        self._budget = (
            {} if strict else {i: max(_HANDFUL, int(max_replaced * v.num_samples)) for i, v in enumerate(views)}
        )
        requests = _Endless(law, position, batch_size, slot)
        self._deliveries: Iterator[Delivery] | None = deliveries(samples, requests, workers, pin_memory)

    def __iter__(self) -> "TrainStream":
        return self

    def __next__(self) -> Batch:
        if self._deliveries is None:
            raise ValueError("this stream was closed")
        delivery = next(self._deliveries)
        if delivery.losses:
            self._count(delivery)
        self.position += self._batch_size
        return delivery.batch

    def __enter__(self) -> "TrainStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the loader processes; the stream cannot be read any more."""
        self._deliveries = None

    def plan(self) -> dict:
        """What decides the samples at every position, readable: two plans that differ show where."""
        return self._plan

    def fingerprint(self) -> str:
        """sha256 of the plan. Paths, world size, workers and batch size (unless it is the block) are not in it."""
        return fingerprint(self._plan)

    def _count(self, delivery: Delivery) -> None:
        self.losses += [loss for loss in dict.fromkeys(delivery.losses) if loss not in self.losses]
        lost: dict[int, int] = defaultdict(int)
        for loss in self.losses:
            lost[loss.source] += 1
        over = [source for source, count in lost.items() if count > self._budget.get(source, 0)]
        if over or not delivery.batch.valid.all():
            raise DamagedDataError(damage_table(self._views, self.losses, self._budget))


def train_stream(
    views: Sequence[View], config: DataConfig, slot: Slot, position: int = 0, pin_memory: bool = False
) -> TrainStream:
    """The training stream of a configuration from a global position on. `views` as in `open_data(config).train`.

    Raises ConfigError.
    """
    if config.batch_size < slot.world_size:
        raise ConfigError(
            f"data.batch_size: {config.batch_size} samples for {slot.world_size} ranks; each needs at least one"
        )
    if position < 0:
        raise ConfigError(f"position {position}: expected at least 0")
    weights = [config.sources[view.name].weight or view.num_samples for view in views]
    block = config.block or config.batch_size
    shapes = [(view.name, view.shard_samples, weight) for view, weight in zip(views, weights, strict=True)]
    law = Order(shapes, config.seed, block, config.lanes, config.window)
    assert law.names == tuple(view.name for view in views), "views must be sorted by name"
    samples = Samples(Reader(views), _augmentation(config), config.image_size, config.seed)
    return TrainStream(
        views,
        law,
        samples,
        make_plan(views, law, config),
        slot,
        config.batch_size,
        position,
        config.workers,
        config.max_replaced,
        config.strict,
        pin_memory,
    )


def make_plan(views: Sequence[View], law: Order, config: DataConfig) -> dict:
    """What decides the training samples at every position and how they look, apart from their size in pixels."""
    return {
        "order": order.VERSION,
        "decoder": decode.VERSION,
        "seed": config.seed,
        "block": law.block,
        "lanes": config.lanes,
        "window": config.window,
        "validation": config.validation,
        "augment": config.augment.model_dump(mode="json"),
        "sources": {v.name: {**v.identity(), "weight": w} for v, w in zip(views, law.weights, strict=True)},
    }


def fingerprint(plan: dict) -> str:
    """sha256 of a plan's canonical JSON."""
    return "sha256:" + hashlib.sha256(canonical(plan)).hexdigest()


class _Endless:
    """The requests of one rank, from a position on, without end."""

    def __init__(self, law: Order, position: int, batch_size: int, slot: Slot):
        self.law, self.position, self.batch_size, self.slot = law, position, batch_size, slot

    def __iter__(self) -> Iterator[Request]:
        start = self.position
        while True:
            positions, at = self.law.batch(start, self.batch_size, self.slot.rank, self.slot.world_size)
            yield Request(at.source, at.shard, at.row, positions)
            start += self.batch_size


def _augmentation(config: DataConfig) -> Transform:
    look: AugmentConfig = config.augment
    return partial(_augmented, config.image_size, look.scale, look.flip, look.color, config.seed)


def _augmented(
    size: int, scale, flip: float, color: float, seed: int, image: torch.Tensor, position: int
) -> torch.Tensor:
    return augment(image, size, scale, flip, color, seed, position)
