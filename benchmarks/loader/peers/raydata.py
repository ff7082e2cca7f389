"""Ray Data: `read_images` (with our decoder `read_binary_files`), `map`, `iter_torch_batches` with a shuffle buffer,
its files shuffled.

Blend: `Dataset.mix`. No state to resume from within an epoch.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import ray
import torch

from benchmarks.loader.contest import BATCH, Batches, Job, Loader, Source
from benchmarks.loader.dataset import Image
from benchmarks.loader.decoding import crop_and_flip, with_ours


def prepare(images: Sequence[Image], folder: Path) -> None:
    """Reads the images where they are."""


def open_loader(job: Job) -> Loader:
    if not ray.is_initialized():
        ray.init(num_cpus=job.workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    return Loader(_batches(job), close=ray.shutdown)


def _dataset(source: Source, decoder: str) -> "ray.data.Dataset":
    folder = str(source.folder / "images")
    if decoder == "ours":
        data = ray.data.read_binary_files(folder, include_paths=True, shuffle="files")
        return data.map(partial(_ours, first=source.first))
    data = ray.data.read_images(folder, mode="RGB", include_paths=True, shuffle="files")
    return data.map(partial(_own, first=source.first))


def _label(path: str, first: int) -> int:
    return first + int(Path(path).parent.name)


def _own(row: dict, first: int) -> dict:
    torch.set_num_threads(1)
    image = torch.from_numpy(np.array(row["image"])).permute(2, 0, 1)
    return {"image": crop_and_flip(image).numpy(), "label": _label(row["path"], first)}


def _ours(row: dict, first: int) -> dict:
    torch.set_num_threads(1)
    label = _label(row["path"], 0)
    return {"image": with_ours(row["bytes"], label).numpy(), "label": first + label}


def _batches(job: Job) -> Batches:
    while True:
        data = [_dataset(source, job.decoder) for source in job.sources]
        mixed = data[0].mix(*data[1:], weights=[s.weight for s in job.sources]) if len(data) > 1 else data[0]
        for batch in mixed.iter_torch_batches(batch_size=BATCH, drop_last=True, local_shuffle_buffer_size=1000):
            yield batch["image"], batch["label"]
