"""FFCV with JPEG inside its file (`write_mode="jpg"`, its quality 90: it encodes anew, PNG too): decode, random resized
crop and flip compiled by numba, in threads.

Its pipeline is compiled, so it takes no Python decoder; it has no blend of sources and no state to resume from.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
from ffcv.loader import Loader as FFCVLoader
from ffcv.loader import OrderOption
from ffcv.transforms import RandomHorizontalFlip, ToTensor, ToTorchImage
from ffcv.writer import DatasetWriter
from PIL import Image as PILImage

from benchmarks.loader.contest import BATCH, SCALE, SEED, SIZE, Batches, CannotError, Job, Loader
from benchmarks.loader.dataset import Image


def prepare(images: Sequence[Image], folder: Path, write_mode: str = "jpg") -> None:
    fields = {"image": RGBImageField(write_mode=write_mode), "label": IntField()}
    DatasetWriter(str(folder / f"{write_mode}.beton"), fields, num_workers=1).from_indexed_dataset(_Decoded(images))


class _Decoded:
    def __init__(self, images: Sequence[Image]):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, at: int) -> tuple[np.ndarray, int]:
        image = self.images[at]
        return np.array(PILImage.open(image.path).convert("RGB")), image.label


def open_loader(job: Job, write_mode: str = "jpg") -> Loader:
    if len(job.sources) > 1:
        raise CannotError("it has no blend of sources")
    if job.decoder == "ours":
        raise CannotError("its pipeline is compiled by numba and takes no Python decoder")
    image = [RandomResizedCropRGBImageDecoder((SIZE, SIZE), scale=SCALE), RandomHorizontalFlip()]
    loader = FFCVLoader(
        str(job.only.folder / f"{write_mode}.beton"),
        batch_size=BATCH,
        num_workers=job.workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        seed=SEED,
        pipelines={"image": [*image, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor()]},
    )
    return Loader(_batches(loader, job.only.first))


def _batches(loader: FFCVLoader, first: int) -> Batches:
    while True:
        for images, labels in loader:
            yield images, first + labels.flatten()
