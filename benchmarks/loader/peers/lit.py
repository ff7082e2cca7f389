"""litData: chunks made by `optimize`, `StreamingDataset` and `StreamingDataLoader`; decoded by torchvision, as its JPEG
serializer does.

Blend: `CombinedStreamingDataset` with weights. Resume: `state_dict` / `load_state_dict` of the loader.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import litdata
import torch
from torchvision.io import ImageReadMode, decode_image

from benchmarks.loader.contest import BATCH, SEED, Batches, Job, Loader, Source
from benchmarks.loader.dataset import Image
from benchmarks.loader.decoding import crop_and_flip, with_ours


def prepare(images: Sequence[Image], folder: Path) -> None:
    litdata.optimize(
        _stored, list(images), str(folder / "litdata"), chunk_bytes="4MB", num_workers=1, reorder_files=False
    )


def _stored(image: Image) -> dict:
    return {"image": image.path.read_bytes(), "label": image.label}


def open_loader(job: Job) -> Loader:
    parts = [_dataset(source, job.decoder) for source in job.sources]
    if len(parts) == 1:
        data = parts[0]
    else:
        weights = [source.weight for source in job.sources]
        data = litdata.CombinedStreamingDataset(parts, seed=SEED, weights=weights, iterate_over_all=False)
    loader = litdata.StreamingDataLoader(
        data, batch_size=BATCH, num_workers=job.workers, drop_last=True, persistent_workers=True
    )
    if job.state is not None:
        loader.load_state_dict(job.state)
    return Loader(_batches(loader), loader.state_dict)


def _dataset(source: Source, decoder: str) -> litdata.StreamingDataset:
    return litdata.StreamingDataset(
        str(source.folder / "litdata"),
        shuffle=True,
        drop_last=True,
        seed=SEED,
        transform=partial(_finished, decoder=decoder, first=source.first),
    )


def _finished(sample: dict, decoder: str, first: int) -> tuple:
    data, label = sample["image"], sample["label"]
    if decoder == "ours":
        return with_ours(data, label), first + label
    encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    return crop_and_flip(decode_image(encoded, mode=ImageReadMode.RGB)), first + label


def _batches(loader) -> Batches:
    while True:  # a worker whose part of the epoch is read gives a short batch, in spite of drop_last
        yield from (batch for batch in loader if len(batch[1]) == BATCH)
