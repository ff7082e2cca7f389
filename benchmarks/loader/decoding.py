"""Encoded bytes -> the uint8 square [3, 224, 224]: as torchvision's documents say, and ours."""

import io

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from benchmarks.loader.contest import SCALE, SEED, SIZE
from shards.loading.transforms import augment, draw

# "Performance considerations" of torchvision.transforms: v2, tensors instead of PIL images, uint8.
_DRAWN = draw(SEED, np.arange(4096))  # once, as drawing for one sample at a time has a price of its own
_CROP_AND_FLIP = v2.Compose([v2.RandomResizedCrop(SIZE, scale=SCALE, antialias=True), v2.RandomHorizontalFlip()])


def crop_and_flip(image: torch.Tensor) -> torch.Tensor:
    """torchvision's RandomResizedCrop and flip of uint8 [3, H, W]."""
    return _CROP_AND_FLIP(image)


def with_pil(data: bytes) -> torch.Tensor:
    """PIL, then torchvision: what most documents show."""
    return crop_and_flip(v2.functional.pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB")))


def with_ours(data: bytes, position: int) -> torch.Tensor:
    """shards' decode, crop and flip."""
    return augment(data, SIZE, SCALE, 0.5, 0.0, _DRAWN[position % len(_DRAWN)]).image


def chosen(decoder: str, data: bytes, label: int) -> torch.Tensor:
    """By the job's decoder, for loaders that have none of their own."""
    return with_ours(data, label) if decoder == "ours" else with_pil(data)
