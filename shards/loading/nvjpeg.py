"""JPEGs decoded on the GPU that uses them: their bytes travel there, a tenth of what pixels weigh, and nvJPEG decodes.

Loader processes do all the rest as ever: read, check, draw the crop, move boxes and masks, and decode what is not a
plain JPEG. Pixels differ a little from the CPU's: nvJPEG rounds in other places, no JPEG is decoded smaller, and
resizing is done in float32. That is why `decode` is part of a stream's plan. Evaluation decodes on the CPU always, so
that a score does not depend on the machine.

On a CPU device the same way is gone with libjpeg, which is how it is tested where there is no GPU. torchvision brings
nvJPEG and announces its removal in favour of TorchCodec: `_decoded` is the place to change.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate

from shards.decode import decode
from shards.loading.transforms import Later, jitter


def decode_into(images: torch.Tensor, later: Mapping[int, Later]) -> None:
    """Decodes and shows each JPEG at its place of a batch, uint8 [B, 3, S, S] on any device. Raises DecodeError."""
    size = images.shape[-2:]
    upright = _decoded(list(later.values()), images.device)
    for (at, job), image in zip(later.items(), upright, strict=True):
        left, top, width, height = (int(value) for value in job.look.region)
        part = image[None, :, top : top + height, left : left + width]
        if job.look.mirrored:
            part = part.flip(-1)
        # On a GPU it resizes floating-point numbers only.
        seen = interpolate(part.float(), size, mode="bilinear", antialias=True)[0].round_().clamp_(0, 255)
        seen = seen.to(torch.uint8)
        images[at] = jitter(seen, *job.look.factors) if job.look.factors else seen


def _decoded(jobs: Sequence[Later], device: torch.device) -> list[torch.Tensor]:
    """uint8 [3, H, W] of each, upright. What nvJPEG refuses is decoded by the CPU."""
    from torchvision.io import ImageReadMode, decode_jpeg  # takes a second: not for those who do not need it

    encoded = [torch.from_numpy(np.frombuffer(job.data, np.uint8).copy()) for job in jobs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            images = decode_jpeg(encoded, ImageReadMode.RGB, device)
        except RuntimeError:  # it does not say which of them it was
            return [torch.from_numpy(decode(job.data)).permute(2, 0, 1).to(device) for job in jobs]
    return [_upright(image, job.turn) for image, job in zip(images, jobs, strict=True)]


def _upright(image: torch.Tensor, turn: tuple[bool, bool, bool]) -> torch.Tensor:
    exchanged, upside_down, mirrored = turn
    if exchanged:
        image = image.transpose(1, 2)
    axes = [axis for axis, turned in ((1, upside_down), (2, mirrored)) if turned]
    return image.flip(axes) if axes else image
