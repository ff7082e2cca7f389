"""Draws what a sample says onto a picture of it: boxes with the names of their classes, masks in colour.

One colour for each class index, the same in every picture. Pillow only.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.format.annotations import VOID

Colour = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Paul Tol's "bright" scheme and some of "vibrant" (2021), chosen to be told apart, also with colour-blind eyes;
# without their greys, which look like the picture beneath.
_FIRST = (
    "#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#EE7733", "#009988", "#AADD33", "#885522",
    "#BB99FF",
)  # fmt: skip
_GOLDEN_TURN = 0.618033988749895
_VOID_SHADE = 0.35
_TAG_SHARE = 1 / 8
_SWATCH, _ROW = 13, 19

VOID_COLOUR: Colour = (40, 40, 40)
"""For legends: what belongs to no class is drawn dark."""


def colour(label: int) -> Colour:
    """The colour of a class."""
    if label < len(_FIRST):
        red, green, blue = (int(_FIRST[label][at : at + 2], 16) for at in (1, 3, 5))
        return red, green, blue
    light = (0.55, 0.75, 0.95)[label % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(label * _GOLDEN_TURN % 1, 0.7, light))
    return red, green, blue


def font(size: int) -> Font:
    """The one font of all pictures."""
    return ImageFont.load_default(size=size)


def fitted(image: Image.Image, side: int) -> tuple[Image.Image, float]:
    """The image as large as fits a square of `side` pixels, and the scale; a small one grows by whole pixels."""
    scale = side / max(image.size)
    if scale >= 1:
        whole = int(scale)
        return image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST), whole
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3), scale


def with_mask(picture: Image.Image, mask: np.ndarray, strength: float = 0.5) -> Image.Image:
    """The picture under the colours of a mask, uint8 [H, W] of any size; pixels without a class are dark."""
    labels = np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))
    palette = np.array([colour(label) for label in range(256)], np.float32)
    pixels = np.asarray(picture, np.float32)
    mixed = pixels * (1 - strength) + palette[labels] * strength
    mixed[labels == VOID] = pixels[labels == VOID] * _VOID_SHADE
    return Image.fromarray(mixed.round().astype(np.uint8))


def draw_boxes(picture: Image.Image, boxes: np.ndarray, scale: float, names: Sequence[str] | None) -> None:
    """Draws boxes, float32 [n, 6] in pixels of the image before scaling, largest first.

    With `names`, a box that stays visible under it gets the name of its class.
    """
    draw, small = ImageDraw.Draw(picture), font(10)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    wide = 2 if names else 1
    for x0, y0, x1, y1, label, _ in boxes[np.argsort(-area, kind="stable")].tolist():
        left, top = max(0, round(x0 * scale)), max(0, round(y0 * scale))
        right, bottom = max(left, round(x1 * scale) - 1), max(top, round(y1 * scale) - 1)
        ink = colour(int(label))
        draw.rectangle((left, top, min(right, picture.width - 1), min(bottom, picture.height - 1)), None, ink, wide)
        if names:
            _tag(draw, small, (left, top, right, bottom), names[int(label)], ink)


def shortened(text: str, font: Font, width: float, keep_end: bool = False) -> str:
    """The text, cut at its end (or its beginning) so that it is at most `width` pixels wide."""
    if font.getlength(text) <= width:
        return text
    low, high = 0, len(text)  # text is cut to `low` characters; `high` are too many
    while high - low > 1:
        middle = (low + high) // 2
        if font.getlength(_cut(text, middle, keep_end)) <= width:
            low = middle
        else:
            high = middle
    return _cut(text, max(1, low), keep_end)


def wrapped(text: str, font: Font, width: float, lines: int) -> list[str]:
    """The text in at most `lines` lines of `width` pixels; the last is cut if need be."""
    found, words = [], text.split()
    while words and len(found) < lines - 1:
        count = 1
        while count < len(words) and font.getlength(" ".join(words[: count + 1])) <= width:
            count += 1
        found.append(shortened(" ".join(words[:count]), font, width))
        words = words[count:]
    return [*found, shortened(" ".join(words), font, width)] if words else found


def legend(entries: Sequence[tuple[Colour, str]], width: int) -> Image.Image:
    """Colours and what they stand for, in rows."""
    letters = font(12)
    places, x, y = [], 6, 4
    for ink, name in entries:
        text = shortened(name, letters, width - 40)
        need = 18 + round(letters.getlength(text)) + 14
        if x + need > width and x > 6:
            x, y = 6, y + _ROW
        places.append((x, y, ink, text))
        x += need
    picture = Image.new("RGB", (width, y + _ROW + 4), "white")
    draw = ImageDraw.Draw(picture)
    for x, y, ink, text in places:
        draw.rectangle((x, y + 1, x + _SWATCH - 1, y + _SWATCH), ink)
        draw.text((x + 18, y), text, "black", letters)
    return picture


def _cut(text: str, length: int, keep_end: bool) -> str:
    return "…" + text[-length:] if keep_end else text[:length] + "…"


def _tag(draw: ImageDraw.ImageDraw, font: Font, box: tuple[int, int, int, int], text: str, ink: Colour) -> None:
    """The name of a box in its upper left corner, on its colour, if it covers little of the box."""
    left, top, right, bottom = box
    width, height = font.getlength(text) + 4, 12
    if width > right - left or _TAG_SHARE * (right - left) * (bottom - top) < width * height:
        return
    draw.rectangle((left, top, left + width, top + height), ink)
    dark = 0.299 * ink[0] + 0.587 * ink[1] + 0.114 * ink[2] < 140
    draw.text((left + 2, top), text, "white" if dark else "black", font)
