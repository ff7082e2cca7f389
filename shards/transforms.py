"""Decoded image -> the square the model sees, from plain numbers; uint8 in, uint8 out.

Randomness is a hash of (seed, position): the sample at a position looks the same on every rank, worker and replay,
and no generator has state to save. The random crop is drawn in one go and clipped to the image, where torchvision
draws up to ten times. Arithmetic is torchvision's antialiased bilinear resize on uint8, about 0.1 ms for a 128-pixel
image.
"""

import math

import torch
from torch.nn.functional import interpolate

from shards.order import uniforms

_ASPECT = math.log(4 / 3)
_GREY = (0.299, 0.587, 0.114)


def augment(
    image: torch.Tensor, size: int, scale: tuple[float, float], flip: float, color: float, seed: int, position: int
) -> torch.Tensor:
    """Random crop, flip, color jitter of uint8 [3, H, W], as uint8 [3, size, size]; a function of (seed, position)."""
    area, aspect, x, y, mirrored, *factors = uniforms(8, seed, 2, position)
    height, width = image.shape[-2:]
    pixels = height * width * (scale[0] + area * (scale[1] - scale[0]))
    stretch = math.exp((2 * aspect - 1) * _ASPECT / 2)
    crop_w = min(width, max(1, round(math.sqrt(pixels) * stretch)))
    crop_h = min(height, max(1, round(math.sqrt(pixels) / stretch)))
    left, top = int(x * (width - crop_w + 1)), int(y * (height - crop_h + 1))
    out = resize(image[:, top : top + crop_h, left : left + crop_w], size, size)
    if mirrored < flip:
        out = out.flip(-1)
    return jitter(out, *(1 + color * (2 * f - 1) for f in factors)) if color else out


def centre(image: torch.Tensor, size: int) -> torch.Tensor:
    """The largest centred square of uint8 [3, H, W], as uint8 [3, size, size]: what evaluation sees."""
    height, width = image.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return resize(image[:, top : top + side, left : left + side], size, size)


def resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Antialiased bilinear resize of uint8 [3, H, W] to uint8 [3, height, width]."""
    if image.shape[-2:] == (height, width):
        return image
    return interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def jitter(image: torch.Tensor, brightness: float, contrast: float, saturation: float) -> torch.Tensor:
    """Brightness, contrast and saturation of uint8 [3, H, W] multiplied by these factors; 1 changes nothing."""
    out = image.float() * brightness
    grey = (out * out.new_tensor(_GREY)[:, None, None]).sum(0, keepdim=True)
    out = grey.mean() + (out - grey.mean()) * contrast
    grey = (out * out.new_tensor(_GREY)[:, None, None]).sum(0, keepdim=True)
    out = grey + (out - grey) * saturation
    return out.round().clamp(0, 255).to(torch.uint8)
