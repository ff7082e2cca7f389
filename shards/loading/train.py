"""Batches for training: the order, the loaders and the budget for damage put together.

Training is infinite and counts positions, so ranks never disagree about the end of an epoch. All that a resume needs
is `state()`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from shards.config import DataConfig
from shards.loading.batch import Batch, Slot
from shards.loading.damage import DamagedDataError, DamagedSample, DamageLog, budget
from shards.loading.dataset import BatchLoader, Samples
from shards.loading.mix import Mix, with_neighbours
from shards.loading.nvjpeg import decode_into
from shards.loading.reader import Reader
from shards.loading.request import Request
from shards.loading.state import StreamState, build_order, resume
from shards.loading.subset import Subset
from shards.loading.transforms import augment
from shards.order.order import Order
from shards.settings import ConfigError

_LOCATED_TOGETHER = 1024  # samples: 2 ms, then nothing for some batches


class TrainStream:
    """An endless iterator of this rank's batches. Close it (or use `with`) to stop its loader processes."""

    def __init__(
        self,
        order: Order,
        samples: Samples,
        damaged: DamageLog,
        state: StreamState,
        slot: Slot,
        batch_size: int,
        workers: int = 0,
        pin_memory: bool = False,
        device: torch.device | None = None,
    ):
        """`device`: where images are decoded that loader processes leave to it."""
        self.position = state.position
        """Global position of the next batch: of what was delivered, not of what is being prepared."""
        self.reading_s = self.decoding_s = 0.0
        """What loader processes took for all that was delivered, added up."""
        self.replaced = 0  # damaged samples of it
        self._order, self._damage, self._state, self._batch_size = order, damaged, state, batch_size
        self._device, self._mix = device, samples.mix
        ahead = 1 if samples.mix else 0
        requests = Requests(order, state.position, batch_size, slot, ahead)
        self._loader = BatchLoader(samples, requests, workers, -(-batch_size // slot.world_size) + ahead, pin_memory)

    def __iter__(self) -> "TrainStream":
        return self

    def __next__(self) -> Batch:
        builder = next(self._loader)
        self._damage.add(builder.damaged)
        self.reading_s += builder.reading_s
        self.decoding_s += builder.decoding_s
        self.replaced += len(builder.damaged)
        if not builder.valid.all():  # no sound sample was found in place of a damaged one
            raise DamagedDataError(self._damage.table())
        self.position += self._batch_size
        batch = builder.batch()
        if self._device is not None:
            batch = batch.to(self._device)
            if builder.later:
                decode_into(batch.images, builder.later)
        if self._mix is None:
            return batch
        shares = builder.shares
        if shares is None:  # decoded only now
            shares = self._mix(batch.images, builder.targets, builder.positions)
        return with_neighbours(batch, shares)

    def __enter__(self) -> "TrainStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the loader processes; the stream cannot be read any more."""
        self._loader.close()

    def state(self) -> StreamState:
        """All that a resume needs, on any number of ranks and, if `block` is set, with any batch size."""
        counts = dict(zip(self._order.names, self._order.blend.counts(self.position).tolist(), strict=True))
        return replace(self._state, position=self.position, counts=counts)

    @property
    def damaged(self) -> list[DamagedSample]:
        """Distinct damaged samples so far: with a `damage_log` those of all ranks, restarts included."""
        return self._damage.all()


def train_stream(
    subsets: Sequence[Subset],
    config: DataConfig,
    slot: Slot,
    state: StreamState | None = None,
    pin_memory: bool = False,
    damage_log: Path | None = None,
    device: torch.device | None = None,
) -> TrainStream:
    """The training stream of a configuration from a state on. `subsets` as in `open_data(config).train`; `damage_log`:
    a folder that all ranks of the run write to, so that its damaged are counted together; `device`: where batches go
    with `decode: gpu`.

    Raises ConfigError, with every difference if the state is of other data.
    """
    state = state or StreamState()
    if config.batch_size < slot.world_size:
        raise ConfigError(
            f"data.batch_size: {config.batch_size} samples for {slot.world_size} ranks; each needs at least one"
        )
    later, chance = config.decode == "gpu", config.augment
    if later and device is None:
        raise ConfigError("data.decode: gpu, and this process has none; give it a GPU, or say `decode: cpu`")
    if state.position < 0:
        raise ConfigError(f"position {state.position}: expected at least 0")
    state = resume(subsets, config, state)
    if faults := augment_faults(subsets, config):
        raise ConfigError(faults)
    order = build_order(subsets, config, state.origin)
    assert order.names == tuple(subset.name for subset in subsets), "subsets must be sorted by name"
    size = config.train_size or config.image_size
    mix = Mix(config.seed, chance.mixup, chance.cutmix) if chance.mixup or chance.cutmix else None
    transform = partial(
        augment,
        size=size,
        scale=chance.scale,
        flip=chance.flip,
        color=chance.color,
        policy=chance.policy,
        later=later,
        letterbox=config.resize == "letterbox",
    )
    return TrainStream(
        order,
        Samples(Reader(subsets), transform, size, config.seed, mix),
        DamageLog(subsets, {} if config.strict else budget(subsets, config.max_replaced), damage_log, slot.rank),
        state,
        slot,
        config.batch_size,
        config.workers,
        pin_memory,
        device if later else None,
    )


def augment_faults(subsets: Sequence[Subset], config: DataConfig) -> list[str]:
    """Why training images cannot be changed as the configuration says."""
    chance, faults = config.augment, []
    if chance.policy and config.decode == "gpu":
        faults.append(
            "data.augment.policy: works on images that loader processes decoded; use data.decode: cpu, or no policy"
        )
    if config.resize == "letterbox" and config.decode == "gpu":
        faults.append(
            "data.resize: letterbox lays out images that loader processes decoded; use data.decode: cpu, or another "
            "data.resize"
        )
    drawn = [subset.name for subset in subsets if {"boxes", "mask"} & set(subset.manifest.fields)]
    for name in ("policy", "mixup", "cutmix"):
        if drawn and getattr(chance, name):
            faults.append(
                f"data.augment.{name}: moves pixels, and not the boxes or masks that {', '.join(drawn)} has beside them"
            )
    return faults


class Requests:
    """The requests of one rank, from a position on, without end."""

    def __init__(self, order: Order, position: int, batch_size: int, slot: Slot, ahead: int = 0):
        """`ahead`: how many samples of the next rank each request ends with."""
        self.order, self.position, self.batch_size, self.slot, self.ahead = order, position, batch_size, slot, ahead

    def __iter__(self) -> Iterator[Request]:
        start, count = self.position, max(1, _LOCATED_TOGETHER // self.batch_size)
        while True:
            rank, world_size = self.slot.rank, self.slot.world_size
            shares = self.order.batches(start, self.batch_size, count, rank, world_size, self.ahead)
            for positions, at in shares:
                yield Request(at.source, at.shard, at.row, positions)
            start += count * self.batch_size
