"""torchvision: `ImageFolder` with `decode_image` as loader, v2 transforms on uint8 tensors, and a `DataLoader`.

Blend: `ConcatDataset` under a `WeightedRandomSampler`, which PyTorch's documents give for it. No state to resume from.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import ConcatDataset, DataLoader, WeightedRandomSampler
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image

from benchmarks.loader.contest import BATCH, Batches, Job, Loader, Source
from benchmarks.loader.dataset import Image
from benchmarks.loader.decoding import crop_and_flip, with_ours


def prepare(images: Sequence[Image], folder: Path) -> None:
    """Reads the images where they are."""


def open_loader(job: Job) -> Loader:
    parts = [_dataset(source, job.decoder) for source in job.sources]
    if len(parts) == 1:
        loader = _loader(parts[0], job.workers, shuffle=True)
    else:
        weights = [w for s in job.sources for w in [s.weight / s.count] * s.count]
        sampler = WeightedRandomSampler(weights, len(weights))
        loader = _loader(ConcatDataset(parts), job.workers, sampler=sampler)
    return Loader(_batches(loader))


def _loader(dataset, workers: int, **order) -> DataLoader:
    return DataLoader(dataset, BATCH, num_workers=workers, drop_last=True, persistent_workers=True, **order)


def _dataset(source: Source, decoder: str) -> ImageFolder:
    first = source.first
    if decoder == "ours":
        return ImageFolder(str(source.folder / "images"), loader=_ours, target_transform=lambda label: first + label)
    return ImageFolder(
        str(source.folder / "images"),
        transform=crop_and_flip,
        loader=lambda path: decode_image(path, mode=ImageReadMode.RGB),
        target_transform=lambda label: first + label,
    )


def _ours(path: str) -> torch.Tensor:
    return with_ours(Path(path).read_bytes(), int(Path(path).parent.name))


def _batches(loader: DataLoader) -> Batches:
    while True:
        yield from loader
