"""The work of loader processes: requested places -> decoded, transformed batches.

Workers hold no order and no state: a request names every sample, and the answer depends on the request alone. Damage
is no exception here but part of the answer: the sample is replaced by another one of its source, chosen by hash of
(seed, position), so each replay chooses the same; the process that trains counts and decides when it is too much.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset

from shards.batch import Batch
from shards.decode import DecodeError, decode
from shards.order import Ints, key
from shards.reader import DamagedSampleError, Reader, Sample

_ATTEMPTS = 16

Transform = Callable[[torch.Tensor, int], torch.Tensor]
"""(uint8 [3, H, W], position) -> uint8 [3, S, S]; must be picklable."""


@dataclass(frozen=True)
class Request:
    """Samples by source, shard and row of the view, with their positions; int64 [n] each. `fill`: rows to pad with."""

    source: Ints
    shard: Ints
    row: Ints
    positions: Ints
    fill: int = 0


@dataclass(frozen=True)
class Loss:
    """A damaged sample that was asked for: source (index into the views), shard's file, key and reason."""

    source: int
    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Delivery:
    """A batch and what was lost on the way; `valid` is False where nothing sound was found."""

    batch: Batch
    losses: tuple[Loss, ...]

    def pin_memory(self) -> "Delivery":
        """Called by the DataLoader."""
        return Delivery(self.batch.pin_memory(), self.losses)


class Samples(Dataset):
    """A map-style dataset whose "indices" are requests and whose items are deliveries."""

    def __init__(self, reader: Reader, transform: Transform, size: int, seed: int | None):
        """`seed` chooses replacements; None: a damaged sample stays empty."""
        self.reader, self.transform, self.size, self.seed = reader, transform, size, seed

    def __getitems__(self, request: Request) -> Delivery:
        n = len(request.positions)
        total = n + request.fill
        images = torch.zeros(total, 3, self.size, self.size, dtype=torch.uint8)
        targets, valid = torch.zeros(total, dtype=torch.int64), torch.zeros(total, dtype=torch.bool)
        sources, positions = torch.zeros(total, dtype=torch.int64), torch.full((total,), -1)
        sources[:n], positions[:n] = torch.from_numpy(request.source), torch.from_numpy(request.positions)
        losses: list[Loss] = []
        places = zip(request.source.tolist(), request.shard.tolist(), request.row.tolist(), strict=True)
        with _one_thread():
            for at, (place, position) in enumerate(zip(places, request.positions.tolist(), strict=True)):
                found = self._find(place, position, losses)
                if found is not None:
                    images[at], targets[at], valid[at] = self.transform(found[0], position), found[1], True
        return Delivery(Batch(images, targets, sources, positions, valid), tuple(losses))

    def _find(self, place: tuple[int, int, int], position: int, losses: list[Loss]) -> tuple[torch.Tensor, int] | None:
        """Decoded image and label of the sample at a place, or of the first sound replacement."""
        source = place[0]
        for attempt in range(_ATTEMPTS):
            try:
                return self._read(*place)
            except (DamagedSampleError, DecodeError) as error:
                shard = self.reader.views[source].manifest.shards[place[1]].path
                losses.append(Loss(source, shard, self.reader.name(*place), str(error)))
            if self.seed is None:
                return None
            chosen = key(self.seed, 3, position, attempt) % self.reader.views[source].num_samples
            place = (source, *self.reader.locate(source, chosen))
        return None

    def _read(self, source: int, shard: int, row: int) -> tuple[torch.Tensor, int]:
        try:
            return _decoded(self.reader.read(source, shard, row))
        except (DamagedSampleError, DecodeError):
            return _decoded(self.reader.read(source, shard, row))


def deliveries(
    samples: Samples, requests: Iterable[Request], workers: int, pin_memory: bool = False
) -> Iterator[Delivery]:
    """Deliveries in the order of the requests, made by `workers` processes ahead of time (0: here, when asked for)."""
    loader = DataLoader(
        samples,
        batch_sampler=requests,  # pyright: ignore[reportArgumentType]  a request instead of indices
        num_workers=workers,
        collate_fn=_as_is,  # pyright: ignore[reportArgumentType]
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        # A DataLoader draws a seed when it starts; with its own generator it leaves the global one alone.
        generator=torch.Generator(),
    )
    with _ctrl_c_held():
        return iter(loader)


@contextmanager
def _ctrl_c_held() -> Iterator[None]:
    """Processes started in here never hear Ctrl-C, from their first moment; this one hears it when it leaves.

    Ctrl-C reaches the whole process group, and the process that trains decides what it means: finish, save, stop.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _decoded(sample: Sample) -> tuple[torch.Tensor, int]:
    return decode(sample.image), sample.label


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small images on several threads spend their time waiting for each other: 20 times slower on two busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _as_is(delivery: Delivery) -> Delivery:
    return delivery
