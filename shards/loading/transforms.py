"""Encoded image -> the square that the model sees, with its boxes and its mask, from plain numbers; uint8 throughout.

Randomness is a hash of (seed, position), drawn for a batch at a time: the sample at a position looks the same on every
rank, worker and replay, and no generator has state to save. The random crop is drawn from the size in the header, in
one go and clipped to the image, where torchvision draws up to ten times; only then is the image decoded, by 1/2, 1/4 or
1/8 if the crop is still at least as large as the output. Against decoding in full, the same crop then differs by at
most half an output pixel in place and by about 1 level of 255 on average (a test holds both); boxes and masks are moved
by what was really cropped. Where all of an image is shown and boxes have to find the way back, a JPEG is decoded small
only if that moves no edge by more than a tenth of an output pixel.

Images are resized in the memory order of decoders, pixel by pixel (`torch.channels_last`): bilinear with antialiasing,
in a third of the time that plane by plane takes, and straight into the batch if it has the same order. A photo of 128
pixels becomes 224 in about 0.25 ms on one core, of which 0.1 are decoding.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from shards.decode import SHRINKS, DecodeError, Encoded, open_image, pixels
from shards.format.annotations import VOID
from shards.format.hashing import Ints, fold, key, uniforms
from shards.loading.frame import PADDING, Region, Resize, fitted, frame_of

_ASPECT = math.log(4 / 3)
_GREY = torch.tensor((0.299, 0.587, 0.114))
_LEAST_SIDE, _LEAST_SHARE = 1.0, 0.1
_HALF, _TENTH = 0.5, 0.1


class Look(NamedTuple):
    """How an image is seen: which part, how many rows and columns it fills at the top left of the square, mirrored or
    not, and brightness, contrast and saturation by which factors.
    """

    region: Region
    content: tuple[int, int]
    mirrored: bool = False
    factors: tuple[float, float, float] | None = None


class Later(NamedTuple):
    """A JPEG that is to be decoded elsewhere, what makes it upright (`shards.decode`), and how it is seen then."""

    data: bytes
    turn: tuple[bool, bool, bool]
    look: Look


@dataclass(frozen=True)
class Pixels:
    """What the model sees of a sample.

    image uint8 [3, S, S], not filled yet if it is made `later`; boxes float32 [n, 6]: x0, y0, x1, y1 in the image's
    pixels, class index, ignored (0 or 1); mask uint8 [S, S]; original: width and height of the upright image.
    """

    image: torch.Tensor
    boxes: np.ndarray | None = None
    mask: np.ndarray | None = None
    later: Later | None = None
    original: tuple[int, int] = (0, 0)


def draw(seed: int, positions: Ints) -> list[list[float]]:
    """What chance decides of the look of the sample at each position: 9 numbers in [0, 1)."""
    return uniforms(9, fold(np.full(len(positions), key(seed, 2), np.uint64), positions)).tolist()


def augment(
    data: bytes,
    size: int,
    scale: tuple[float, float],
    flip: float,
    color: float,
    drawn: Sequence[float],
    boxes: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    out: torch.Tensor | None = None,
    later: bool = False,
    policy: str | None = None,
    letterbox: bool = False,
) -> Pixels:
    """Crop, flip, color jitter and a policy of an encoded image, as far as chance decides as `drawn`. Raises
    DecodeError.

    `out`: uint8 [3, size, size] that the image is written into, `channels_last` for speed; None: new memory. `later`: a
    JPEG that any decoder understands is not decoded here. `letterbox`: the crop keeps its ratio (`frame.py`).
    boxes float32 [n, 6] in pixels of the upright image, mask uint8 [H, W]: moved with it. Boxes are cut at the crop's
    edge; those of which less than a tenth or less than a pixel a side is left are dropped.
    """
    assert not (later and letterbox), "a GPU fills the whole square"
    area, aspect, x, y, mirrored, *factors, chance = drawn
    encoded = open_image(data)
    region = draw_region(encoded.width, encoded.height, scale, area, aspect, x, y)
    brightness, contrast, saturation = (1 + color * (2 * f - 1) for f in factors)
    content = fitted(region.width, region.height, size) if letterbox else (size, size)
    look = Look(region, content, mirrored < flip, (brightness, contrast, saturation) if color else None)
    out = _place(size) if out is None else out
    if later and encoded.plain:
        return replace(_with(out, encoded, look, boxes, mask), later=Later(data, encoded.turn, look))
    seen = _see(encoded, look, boxes, mask, out)
    if policy:
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
            torch.manual_seed(int(chance * 2**53))
            part = out[:, : content[0], : content[1]]
            part.copy_(_policy(policy)(part))
    return seen


@cache
def _policy(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """TrivialAugment Wide (Mueller & Hutter, TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation, ICCV
    2021) or RandAugment (Cubuk et al., NeurIPS 2020) as torchvision has them; imported here, for it takes seconds.
    """
    from torchvision.transforms import v2

    return {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}[name]()


def centre(
    data: bytes,
    size: int,
    boxes: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    out: torch.Tensor | None = None,
) -> Pixels:
    """The largest centred square of an encoded image. The rest as in `augment`."""
    return whole(data, size, "centre", boxes, mask, out)


def whole(
    data: bytes,
    size: int,
    resize: Resize,
    boxes: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    out: torch.Tensor | None = None,
) -> Pixels:
    """An encoded image as evaluation and prediction see it: `frame_of` its size says where it lies. The rest as in
    `augment`.
    """
    encoded = open_image(data)
    frame = frame_of(encoded.width, encoded.height, size, resize)
    look, slack = Look(frame.seen, (frame.rows, frame.columns)), _HALF if resize == "centre" else _TENTH
    return _see(encoded, look, boxes, mask, _place(size) if out is None else out, slack)


def squared(array: np.ndarray, size: int, resize: Resize) -> torch.Tensor:
    """What `whole` makes of an image that is decoded: uint8 [H, W, 3] -> uint8 [3, size, size]."""
    frame = frame_of(array.shape[1], array.shape[0], size, resize)
    left, top, width, height = (int(value) for value in frame.seen)
    part, out = array[top : top + height, left : left + width].copy(), _place(size)
    _lay(torch.from_numpy(part), Look(frame.seen, (frame.rows, frame.columns)), out)
    return out


def _place(rows: int, columns: int | None = None) -> torch.Tensor:
    """Memory for an image, in the order of decoders."""
    return torch.empty((rows, columns or rows, 3), dtype=torch.uint8).permute(2, 0, 1)


def draw_region(
    width: int, height: int, scale: tuple[float, float], area: float, aspect: float, x: float, y: float
) -> Region:
    """The random crop of an image of this size, in whole pixels, from four numbers in [0, 1)."""
    target = height * width * (scale[0] + area * (scale[1] - scale[0]))
    stretch = math.exp((2 * aspect - 1) * _ASPECT / 2)
    crop_w = min(width, max(1, round(math.sqrt(target) * stretch)))
    crop_h = min(height, max(1, round(math.sqrt(target) / stretch)))
    return Region(int(x * (width - crop_w + 1)), int(y * (height - crop_h + 1)), crop_w, crop_h)


def _see(
    encoded: Encoded,
    look: Look,
    boxes: np.ndarray | None,
    mask: np.ndarray | None,
    out: torch.Tensor,
    slack: float = _HALF,
) -> Pixels:
    array, region = _crop(encoded, look.region, look.content, slack)
    _lay(torch.from_numpy(array), look, out)
    return _with(out, encoded, look._replace(region=region), boxes, mask)


def _lay(image: torch.Tensor, look: Look, out: torch.Tensor) -> None:
    """Resizes what is seen, uint8 [h, w, 3], into its place of the square, uint8 [3, S, S]."""
    filled = look.content == out.shape[1:]
    part = out if filled else _place(*look.content)
    if look.mirrored:  # here and not after resizing, which gives the same: now it costs a tenth
        image = image.flip(1)
    # A batch of one made before the axes change places: made after, torch no longer sees its memory order.
    resize(image[None].permute(0, 3, 1, 2), part[None])
    if look.factors:
        part.copy_(jitter(part, *look.factors))
    if not filled:
        out.copy_(torch.tensor(PADDING, dtype=torch.uint8)[:, None, None])
        out[:, : look.content[0], : look.content[1]] = part


def _with(
    image: torch.Tensor, encoded: Encoded, look: Look, boxes: np.ndarray | None, mask: np.ndarray | None
) -> Pixels:
    """The image with boxes and mask as they lie in it."""
    if mask is not None and mask.shape != (encoded.height, encoded.width):
        raise DecodeError(f"its mask is {mask.shape[1]} x {mask.shape[0]}, not {encoded.width} x {encoded.height}")
    return Pixels(
        image,
        None if boxes is None else move_boxes(boxes, look.region, look.content, look.mirrored),
        None if mask is None else _padded(move_mask(mask, look.region, look.content, look.mirrored), image.shape[-1]),
        original=(encoded.width, encoded.height),
    )


def _padded(mask: np.ndarray, size: int) -> np.ndarray:
    """uint8 [h, w] -> uint8 [size, size], VOID right of it and below."""
    rows, columns = mask.shape
    return np.pad(mask, ((0, size - rows), (0, size - columns)), constant_values=VOID) if mask.size < size**2 else mask


def _crop(encoded: Encoded, wanted: Region, content: tuple[int, int], slack: float) -> tuple[np.ndarray, Region]:
    """uint8 [h, w, 3], and the region it shows: up to half a decoded pixel beside the one wanted, and up to `slack`
    output pixels smaller or larger.
    """
    raster = pixels(encoded, _shrink(wanted, content, slack))
    by, (rows, columns) = raster.shrink, raster.array.shape[:2]
    left, right = _span(wanted.left - raster.left, wanted.width, by, columns)
    top, bottom = _span(wanted.top - raster.top, wanted.height, by, rows)
    region = Region(raster.left + left * by, raster.top + top * by, (right - left) * by, (bottom - top) * by)
    return np.ascontiguousarray(raster.array[top:bottom, left:right]), region


def _shrink(wanted: Region, content: tuple[int, int], slack: float) -> int:
    """By how much a JPEG may be made smaller while it is decoded."""
    sides = (wanted.height, wanted.height / content[0]), (wanted.width, wanted.width / content[1])
    for by in SHRINKS:
        if all(by <= room and abs(round(side / by) * by - side) <= slack * room for side, room in sides):
            return by
    return 1


def _span(start: float, length: float, by: int, count: int) -> tuple[int, int]:
    """First and last (exclusive) of `count` decoded pixels, each `by` pixels long."""
    first = min(round(start / by), count - 1)
    return first, min(max(round((start + length) / by), first + 1), count)


def resize(image: torch.Tensor, out: torch.Tensor) -> None:
    """Antialiased bilinear resize of uint8 [1, 3, H, W] into uint8 [1, 3, h, w].

    The same as `torch.nn.functional.interpolate`, which gives it in new memory only: a copy from there costs a third.
    """
    size = out.shape[-2:]
    if image.shape[-2:] == size:
        out.copy_(image)
    else:
        torch.ops.aten._upsample_bilinear2d_aa.out(image, size, False, None, None, out=out)


def move_boxes(boxes: np.ndarray, region: Region, content: tuple[int, int], mirrored: bool) -> np.ndarray:
    """float32 [n, 6] in pixels of the image -> float32 [m, 6] in pixels of a region resized to `content`, rows and
    columns; m <= n.
    """
    rows, columns = content
    moved = np.array(boxes, np.float32).reshape(-1, 6)
    moved[:, 0:4:2] = (moved[:, 0:4:2] - region.left) * (columns / region.width)
    moved[:, 1:4:2] = (moved[:, 1:4:2] - region.top) * (rows / region.height)
    if mirrored:
        moved[:, [0, 2]] = columns - moved[:, [2, 0]]
    area = (moved[:, 2] - moved[:, 0]) * (moved[:, 3] - moved[:, 1])
    moved[:, :4] = moved[:, :4].clip(0, (columns, rows) * 2)
    width, height = moved[:, 2] - moved[:, 0], moved[:, 3] - moved[:, 1]
    return moved[(width >= _LEAST_SIDE) & (height >= _LEAST_SIDE) & (width * height >= _LEAST_SHARE * area)]


def move_mask(mask: np.ndarray, region: Region, content: tuple[int, int], mirrored: bool) -> np.ndarray:
    """uint8 [H, W] -> uint8 [rows, columns], `content`: each output pixel has the value at its centre."""
    height, width = mask.shape
    down, across = ((np.arange(count) + 0.5) / count for count in content)
    columns = (region.left + across * region.width).astype(np.int64).clip(0, width - 1)
    rows = (region.top + down * region.height).astype(np.int64).clip(0, height - 1)
    return mask[rows][:, columns[::-1] if mirrored else columns]


def jitter(image: torch.Tensor, brightness: float, contrast: float, saturation: float) -> torch.Tensor:
    """Brightness, contrast and saturation of uint8 [3, H, W] multiplied by these factors; 1 changes nothing.

    Contrast is about the mean grey, saturation about each pixel's grey. The three together are one affine map of a
    pixel's colors, rounded once.
    """
    height, width = image.shape[-2:]
    flat = image.permute(1, 2, 0).contiguous().view(-1, 3).float()
    grey, same = _GREY.to(image.device), torch.eye(3, device=image.device)
    color = brightness * contrast * (saturation * same + (1 - saturation) * grey[:, None])
    offset = (1 - contrast) * brightness * (flat.mean(0) @ grey) + 0.5
    # Four pixels in a row: a product of matrices 12 wide takes a quarter of the time of one that is 3 wide.
    if len(flat) % 4 == 0:
        flat, color = flat.view(-1, 12), torch.block_diag(*[color] * 4)
    out = torch.addmm(offset, flat, color).clamp_(0, 255).to(torch.uint8)
    return out.view(height, width, 3).permute(2, 0, 1)
