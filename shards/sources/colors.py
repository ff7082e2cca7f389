"""Pixels of mask images: class indices as they are, or colours that a `label_colors.txt` names, as CamVid has them.

A mask leaves here as an 8-bit PNG of one channel. One that is so already and holds no void passes through untouched.
Costs about 1 ms for 240 x 180 pixels of colours.
"""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from shards.format.annotations import VOID
from shards.settings import ConfigError
from shards.sources.encoded import png
from shards.sources.notes import Notes
from shards.sources.source import Refused

FILE = "label_colors.txt"
_LINE = re.compile(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(\S.*)")
_VOID_NAMES = ("void", "unlabelled", "unlabeled")
_PNG = b"\x89PNG\r\n\x1a\n"
OPEN_VOID = "masks with pixels of value 255, which means no class"
_GREY, _RGB, _PALETTE, _RGBA = 0, 2, 3, 6


def read_colors(path: Path) -> dict[int, str]:
    """Colour as 0xRRGGBB -> class name, in the file's order. Raises ConfigError with every fault."""
    colors: dict[int, str] = {}
    faults = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        parts = [int(part) for part in found.groups()[:3]] if found else [256]
        code = parts[0] << 16 | parts[1] << 8 | parts[2] if max(parts) < 256 else -1
        if not found or code < 0:
            faults.append(
                f"{path}, line {number}: {line.strip()[:40]!r}; expected red, green, blue (0 to 255) and a name"
            )
        elif code in colors:
            faults.append(f"{path}, line {number}: the colour of {colors[code]!r} again")
        else:
            colors[code] = found.group(4).strip()
    if not colors and not faults:
        faults.append(f"{path}: empty; expected lines of red, green, blue (0 to 255) and a name")
    if faults:
        raise ConfigError(faults)
    return colors


def class_names_of(colors: dict[int, str]) -> tuple[str, ...]:
    """The classes that colours stand for; void is none."""
    return tuple(dict.fromkeys(name for name in colors.values() if name.lower() not in _VOID_NAMES))


class Painter:
    """Turns mask images into index masks.

    `colors`: 0xRRGGBB -> class name; `void`: an index that means no class; `values`: the pixel value of each class, if
    these are not 0, 1, 2, ...
    """

    def __init__(
        self, colors: dict[int, str], classes: tuple[str, ...], void: int | None, values: tuple[int, ...] = ()
    ):
        self.table = np.full(256, -1, np.int16)
        self.table[VOID if void is None else void] = VOID
        self.table[list(values)] = np.arange(len(values))
        self.has_values, self.is_plain = bool(values), not values and void is None
        places = {name: place for place, name in enumerate(classes)}
        voids = {name: VOID for name in colors.values() if name.lower() in _VOID_NAMES}
        known = {code: (voids | places)[name] for code, name in colors.items() if name in voids or name in places}
        self.void, self.names = None if void == VOID else void, colors
        self.codes = np.array(sorted(known), np.int32)
        self.values = np.array([known[code] for code in sorted(known)], np.uint8)

    def index(self, data: bytes, notes: Notes) -> bytes:
        """The same mask as class indices, an 8-bit PNG of one channel. Raises Refused."""
        if data[:8] != _PNG or len(data) < 26:
            raise Refused(f"its mask is no PNG; it begins with {data[:12]!r}")
        depth, kind = data[24], data[25]
        if kind in (_RGB, _RGBA) and depth == 8:
            return self._encoded(self._of_colors(_pixels(data, "RGB")))
        if kind != _PALETTE and (kind != _GREY or depth != 8):
            raise Refused(f"its mask has {depth} bits and PNG colour type {kind}; expected 8-bit grey, palette, or RGB")
        mask = _pixels(data, None)
        if self.has_values:
            return self._encoded(self._of_values(mask))
        if self.is_plain and (mask == VOID).any():
            notes.tell(OPEN_VOID)
        if depth == 8 and (self.void is None or not (mask == self.void).any()):
            return data
        return self._encoded(mask)

    def _of_values(self, mask: np.ndarray) -> np.ndarray:
        """uint8 [H, W] -> uint8 [H, W]."""
        places = self.table[mask]
        if (places < 0).any():
            value = int(mask[places < 0][0])
            raise Refused(f"its mask has pixels of value {value}, which is none of --values, nor void")
        return places.astype(np.uint8)

    def _of_colors(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [H, W]."""
        if not len(self.codes):
            raise Refused(f"its mask has colours; a {FILE} must say which class each one is")
        red, green, blue = (pixels[:, :, channel].astype(np.int32) for channel in range(3))
        codes = red << 16 | green << 8 | blue
        places = np.searchsorted(self.codes, codes).clip(max=len(self.codes) - 1)
        unknown = codes[self.codes[places] != codes]
        if len(unknown):
            code = int(unknown[0])
            name = f" ({self.names[code]})" if code in self.names else ""
            color = f"{code >> 16} {code >> 8 & 255} {code & 255}{name}"
            raise Refused(f"its mask has {len(unknown)} pixels of no known class; the first has the colour {color}")
        return self.values[places]

    def _encoded(self, mask: np.ndarray) -> bytes:
        if self.void is not None and not self.has_values:
            mask = np.where(mask == self.void, np.uint8(VOID), mask)
        return png(mask)


def _pixels(data: bytes, mode: str | None) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or 1 << 27):
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            return np.array(image.convert(mode) if mode else image)
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError, struct.error, ... on damage
        raise Refused(f"damaged mask: {error or type(error).__name__}") from None
