"""The work of loader processes: requested places -> decoded, transformed batches.

Workers hold no order and no state: a request names every sample, and the batch depends on the request alone. Damage
is no exception here but is sent with the batch: the sample is replaced by another one of its source, chosen by hash of
(seed, position), so each replay chooses the same; the process that trains counts and decides when it is too much.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from shards.decode import DecodeError
from shards.format.annotations import Annotations, annotations
from shards.format.hashing import key, name_key
from shards.loading.batch import BatchBuilder
from shards.loading.buffers import Buffers
from shards.loading.damage import DamagedSample
from shards.loading.local import LocalRequests
from shards.loading.mix import Mix
from shards.loading.reader import DamagedSampleError, Reader, Sample
from shards.loading.request import Request
from shards.loading.transforms import Pixels, draw

_ATTEMPTS = 16
_AHEAD = 3  # batches of each loader process
_HELD = 3
_READ_TOGETHER = 64  # samples: read and decoded in turn, the two take a tenth longer, for they share a core's caches
Place = tuple[int, int, int]
"""Source, shard, and row of the subset within the shard."""
Found = tuple[Pixels, int, Annotations, int]
"""Pixels and target of a sample, what it says of its image, and its fingerprint."""


class Transform(Protocol):
    """Encoded image and what belongs to it -> what the model sees of it, the image in `out`; picklable. Raises
    DecodeError.
    """

    def __call__(
        self,
        data: bytes,
        *,
        drawn: Sequence[float],
        boxes: np.ndarray | None,
        mask: np.ndarray | None,
        out: torch.Tensor,
    ) -> Pixels: ...


class _Seat(NamedTuple):
    """A position, what chance decides of the look of whatever comes there, and where its image goes."""

    position: int
    drawn: Sequence[float]
    out: torch.Tensor


class Samples(Dataset):
    """A map-style dataset whose "indices" are requests and whose items are finished builders."""

    def __init__(
        self,
        reader: Reader,
        transform: Transform,
        size: int,
        seed: int | None,
        mix: Mix | None = None,
        originals: bool = False,
    ):
        """`seed` decides looks and replacements; None: nothing is drawn, and a damaged sample stays empty. `mix`: what
        is done with neighbours. `originals`: whether batches have them.
        """
        self.reader, self.transform, self.size, self.seed, self.mix = reader, transform, size, seed, mix
        self.originals = originals
        self._names = np.array([name_key(subset.name) for subset in reader.subsets], np.uint64)
        self.buffers: Buffers | None = None

    def __getitems__(self, request: Request) -> BatchBuilder:
        n = len(request.positions)
        size, buffer = n + request.fill, request.buffer if self.buffers else -1
        images = self.buffers.images(buffer, size) if self.buffers and buffer >= 0 else None
        builder = BatchBuilder(size, self.size, images, buffer, self.originals)
        builder.damaged += request.damaged
        builder.sources[:n], builder.positions[:n] = request.source, request.positions
        positions = request.positions.tolist()
        places = list(zip(request.source.tolist(), request.shard.tolist(), request.row.tolist(), strict=True))
        drawn = draw(self.seed, request.positions) if self.seed is not None else [()] * n
        with _one_thread():
            for first in range(0, n, _READ_TOGETHER):
                begun = time.perf_counter()
                ahead = [self._read(place) for place in places[first : first + _READ_TOGETHER]]
                read = time.perf_counter()
                for at, sample in enumerate(ahead, first):
                    seat = _Seat(positions[at], drawn[at], builder.image(at))
                    found = self._find(places[at], seat, sample, builder.damaged)
                    if found is not None:
                        builder.fill(at, *found)
                builder.reading_s += read - begun
                builder.decoding_s += time.perf_counter() - read
            if self.mix and not builder.later and builder.images is not None:
                builder.shares = self.mix(builder.images, builder.targets, builder.positions)
        builder.sign(self._names)
        return builder.finish()

    def _find(self, place: Place, seat: _Seat, sample: Sample | None, damaged: list[DamagedSample]) -> Found | None:
        """The sample that was read at a place, or the first sound replacement."""
        source = place[0]
        for attempt in range(_ATTEMPTS):
            try:
                return self._see(place, seat, sample)
            except (DamagedSampleError, DecodeError) as error:
                shard = self.reader.subsets[source].manifest.shards[place[1]].path
                damaged.append(DamagedSample(source, shard, self.reader.name(*place), str(error)))
            if self.seed is None:
                return None
            place = self._replacement(place, seat.position, attempt)
            sample = self._read(place)
        return None

    def _replacement(self, place: Place, position: int, attempt: int) -> Place:
        """Another place of the same shard, for half of the attempts; then of the same source, anywhere."""
        source, shard, _ = place
        subset, chosen = self.reader.subsets[source], key(self.seed or 0, 3, position, attempt)
        if attempt < _ATTEMPTS // 2:
            return source, shard, chosen % int(subset.shard_samples[shard])
        return source, *self.reader.locate(source, chosen % subset.num_samples)

    def _read(self, place: Place) -> Sample | None:
        """None if it is damaged: it is read once more then, and what is wrong with it is reported."""
        try:
            return self.reader.read(*place)
        except DamagedSampleError:
            return None

    def _see(self, place: Place, seat: _Seat, sample: Sample | None) -> Found:
        """What the model sees of a sample, which is read once more if anything is wrong with it."""
        if sample is not None:
            with suppress(DamagedSampleError, DecodeError):
                return self._see_once(place[0], seat, sample)
        return self._see_once(place[0], seat, self.reader.read(*place))

    def _see_once(self, source: int, seat: _Seat, sample: Sample) -> Found:
        subset = self.reader.subsets[source]
        manifest = subset.manifest
        try:
            said = annotations(sample.fields, manifest.fields, len(manifest.classes))
        except ValueError as error:
            raise DamagedSampleError(str(error)) from None
        if subset.numbering is not None:
            said = said.renumbered(subset.renumber)
        pixels = self.transform(sample.image, drawn=seat.drawn, boxes=said.boxes, mask=said.mask, out=seat.out)
        return pixels, sample.label, said, sample.fingerprint


class BatchLoader:
    """Finished builders in the order of the requests, made by `workers` processes ahead of time (0: here, when asked
    for).

    An iterator; close it to stop the processes.
    """

    def __init__(
        self, samples: Samples, requests: Iterable[Request], workers: int, batch_size: int, pin_memory: bool = False
    ):
        """`batch_size`: of the largest request."""
        self._local = _local(samples, requests)
        start = _start_method()
        buffered = workers and start == "fork"
        self._buffers = samples.buffers = _buffers(samples.size, workers, batch_size, pin_memory) if buffered else None
        requests = self._local or requests
        loader = DataLoader(
            samples,
            # Requests instead of indices.
            batch_sampler=self._buffers.assigned(requests) if self._buffers else requests,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            collate_fn=_as_is,  # pyright: ignore[reportArgumentType]
            pin_memory=pin_memory,
            multiprocessing_context=start if workers else None,
            prefetch_factor=_AHEAD if workers else None,
            # A DataLoader draws a seed when it starts; with its own generator it leaves the global one alone.
            generator=torch.Generator(),
            worker_init_fn=_end_with_parent,
        )
        with _ctrl_c_held():
            self._finished: Iterator[BatchBuilder] | None = iter(loader)

    def __iter__(self) -> "BatchLoader":
        return self

    def __next__(self) -> BatchBuilder:
        if self._finished is None:
            raise ValueError("this loader was closed")
        builder = next(self._finished)
        if self._local:
            self._local.delivered()
        if self._buffers and builder.buffer >= 0:
            builder.images = self._buffers.lend(builder.buffer, len(builder))
        return builder

    def close(self) -> None:
        """Stops loader processes and fetching."""
        self._finished = None
        if self._local:
            self._local.close()


def _end_with_parent(worker: int) -> None:
    """A loader process whose parent was killed ends at once. DataLoader's own watch notices it too, but then waits for
    its last answers to be read, which nobody does any more.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start_method() -> str:
    """How processes start here: as the program chose, or else the platform's way. To ask or to start one without a
    context would choose for the whole program, which could then choose no more.
    """
    return multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]


def _buffers(image_size: int, workers: int, batch_size: int, pin_memory: bool) -> Buffers | None:
    """For all that is on its way, and for what the loop holds. Pages to be pinned are copied on arrival anyway."""
    if pin_memory:
        return None
    return Buffers(workers * _AHEAD + _HELD, batch_size, image_size)


def _local(samples: Samples, requests: Iterable[Request]) -> LocalRequests | None:
    """The requests made local, if a subset is remote."""
    subsets = samples.reader.subsets
    store = next((subset.store for subset in subsets if subset.store), None)
    return LocalRequests(requests, subsets, store, samples.seed) if store else None


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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small images on several threads spend their time waiting for each other: 20 times slower on two busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _as_is(builder: BatchBuilder) -> BatchBuilder:
    return builder
