"""NVIDIA DALI on the CPU alone, reading our shards: fused decode and random crop, resize, flip, in threads.

With our decoder: an external source with worker processes, its way to take samples made in Python. It has no weighted
blend of sources. Resume: `pipeline.checkpoint()`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from benchmarks.loader.contest import BATCH, SCALE, SEED, SIZE, Batches, CannotError, Job, Loader
from benchmarks.loader.dataset import Image, images_of
from benchmarks.loader.decoding import with_ours
from benchmarks.loader.peers import ours


def prepare(images: Sequence[Image], folder: Path) -> None:
    if not (folder / "shards").exists():
        ours.prepare(images, folder)


@pipeline_def(enable_checkpointing=True)
def _own(files: list[str], labels: list[int]):
    encoded, label = fn.readers.file(files=files, labels=labels, random_shuffle=True, initial_fill=1000, name="reader")
    image = fn.decoders.image_random_crop(
        encoded, device="cpu", random_area=SCALE, random_aspect_ratio=(3 / 4, 4 / 3), num_attempts=10
    )
    image = fn.resize(image, size=[SIZE, SIZE], interp_type=types.INTERP_LINEAR, antialias=True)
    image = fn.crop_mirror_normalize(
        image, dtype=types.UINT8, output_layout="CHW", mirror=fn.random.coin_flip(), mean=[0.0], std=[1.0]
    )
    return image, label


class _Sampler:
    """One sample at a time for an external source: our decoder, in its worker processes."""

    def __init__(self, folder: Path):
        self.images = images_of(folder)
        self.epoch, self.order = -1, np.arange(0)

    def __call__(self, sample):
        if self.epoch != sample.epoch_idx:
            self.epoch = sample.epoch_idx
            self.order = np.random.default_rng(SEED + self.epoch).permutation(len(self.images))
        if sample.iteration >= len(self.images) // BATCH:
            raise StopIteration
        torch.set_num_threads(1)
        image = self.images[self.order[sample.idx_in_epoch]]
        return with_ours(image.path.read_bytes(), image.label).numpy(), np.array([image.label], np.int32)


@pipeline_def(py_start_method="spawn")
def _ours(folder: Path, workers: int):
    return tuple(
        fn.external_source(
            _Sampler(folder), num_outputs=2, parallel=True, batch=False, dtype=[types.UINT8, types.INT32]
        )
    )


def open_loader(job: Job) -> Loader:
    if len(job.sources) > 1:
        raise CannotError("it has no weighted blend of sources")
    common = {"batch_size": BATCH, "num_threads": job.workers, "device_id": None, "seed": SEED}
    if job.decoder == "own":
        images = images_of(job.only.folder)
        files, labels = [str(image.path) for image in images], [image.label for image in images]
        pipeline = _own(files, labels, checkpoint=job.state, **common)
        size = {"reader_name": "reader"}
    else:
        pipeline = _ours(job.only.folder, job.workers, py_num_workers=job.workers, **common)
        size = {"size": -1}
    pipeline.build()
    iterator = DALIGenericIterator(pipeline, ["image", "label"], auto_reset=True, **size)
    save = (lambda: iterator.checkpoints()[0]) if job.decoder == "own" else None
    return Loader(_batches(iterator, job.only.first), save)


def _batches(iterator: DALIGenericIterator, first: int) -> Batches:
    while True:
        for ((batch),) in iterator:
            if len(batch["image"]) == BATCH:
                yield batch["image"], first + batch["label"].flatten()
