"""Ours: `open_data`, `train_stream`, everything by default but what the contest fixes."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.loader.contest import BATCH, SCALE, SEED, SIZE, Batches, Job, Loader
from benchmarks.loader.dataset import Image
from shards.config import DataConfig
from shards.ingest.build import build
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.train import TrainStream, train_stream


def prepare(images: Sequence[Image], folder: Path) -> None:
    build(folder / "images", folder / "shards", shard_mb=4)


def open_loader(job: Job) -> Loader:
    config = DataConfig.model_validate(
        {
            "sources": {
                source.name: {"path": str(source.folder / "shards"), "weight": source.weight} for source in job.sources
            },
            "validation": 0,
            "image_size": SIZE,
            "batch_size": BATCH,
            "workers": job.workers,
            "seed": SEED,
            "augment": {"scale": SCALE},
        }
    )
    data = open_data(config)
    stream = train_stream(data.train, config, Slot(), job.state)
    # Classes are numbers counted within a source; here a target is a class of all sources together.
    numbers = torch.tensor([int(name) for name in data.classes])
    firsts = torch.tensor([source.first for source in sorted(job.sources, key=lambda source: source.name)])
    return Loader(_batches(stream, numbers, firsts), stream.state, stream.close)


def _batches(stream: TrainStream, numbers: torch.Tensor, firsts: torch.Tensor) -> Batches:
    for batch in stream:
        yield batch.images, numbers[batch.targets] + firsts[batch.sources]
