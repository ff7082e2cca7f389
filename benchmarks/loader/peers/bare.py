"""The bare loop: one process a core, encoded bytes in its memory, nothing but decode, crop and flip. No loader.

Decoder "ours": what our loader could reach if loading cost nothing. "own": the fastest decode known, the far limit.
"""

import multiprocessing
import random
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.loader.contest import BATCH, SCALE, SEED, SIZE, Batches, Job, Loader
from benchmarks.loader.dataset import Image, images_of
from shards.loading.transforms import augment, draw


def prepare(images: Sequence[Image], folder: Path) -> None:
    """Reads the images where they are."""


def open_loader(job: Job) -> Loader:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    images = _mixed(job)
    workers = [
        context.Process(target=_work, args=(images[at :: job.workers], job.decoder, queue), daemon=True)
        for at in range(job.workers)
    ]
    for worker in workers:
        worker.start()
    return Loader(_batches(queue), close=lambda: _end(workers))


def _mixed(job: Job) -> list[tuple[bytes, int]]:
    """Bytes and labels, each source by its weight, shuffled: some images take longer to decode than others."""
    total, images = sum(source.weight for source in job.sources), []
    for source in job.sources:
        own = [(image.path.read_bytes(), source.first + image.label) for image in images_of(source.folder)]
        images += islice(cycle(own), round(job.num_samples * source.weight / total))
    random.Random(SEED).shuffle(images)
    return images


def _end(workers: list) -> None:
    for worker in workers:
        worker.kill()
        worker.join()


def _work(images: list[tuple[bytes, int]], decoder: str, queue) -> None:
    torch.set_num_threads(1)
    # One batch of memory, written over and over: its pixels stay here, only the labels are told.
    batch = torch.zeros(BATCH, SIZE, SIZE, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
    if decoder == "ours":

        def put(data: bytes, drawn: Sequence[float], place: torch.Tensor) -> None:
            augment(data, SIZE, SCALE, 0.5, 0.0, drawn, out=place)
    else:
        from benchmarks.loader.fastest import fastest

        def put(data: bytes, drawn: Sequence[float], place: torch.Tensor) -> None:
            place.copy_(fastest(data))

    while True:
        for start in range(0, len(images) - BATCH + 1, BATCH):
            labels = [label for _, label in images[start : start + BATCH]]
            drawn = draw(SEED, np.array(labels))
            for at, (data, _) in enumerate(images[start : start + BATCH]):
                put(data, drawn[at], batch[at])
            queue.put(labels)


def _batches(queue) -> Batches:
    pixels = torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8)
    while True:
        yield pixels, torch.tensor(queue.get())
