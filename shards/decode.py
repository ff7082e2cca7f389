"""Encoded image bytes -> upright uint8 RGB pixels: `open_image` reads the header, `pixels` decodes.

JPEG goes through simplejpeg (libjpeg-turbo): the same pixels as torchvision and PIL give, in about 0.6 of the time, and
stricter than both. It refuses a file with any part cut out, also one that was given an end marker again, where they
fill the rest with grey. A large JPEG can be decoded at 1/2, 1/4 or 1/8 of its size for little more than reading it.
Everything else, and the JPEGs that simplejpeg refuses for another reason than lost data, goes through PIL.

What counts is the content, not the file's extension. Orientation tags are applied, transparent pixels laid on white,
16-bit images keep their upper 8 bits, and an animation is its first frame. The size is looked at before any memory is
taken for pixels. Every failure is a `DecodeError` with a reason a person can act on.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

VERSION = 2
"""Part of every plan: raised when the same bytes would give other pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

MAX_PIXELS = (1 << 28) // 3
"""Images of more pixels (a quarter GiB of them) are refused: a few bytes can announce any size."""

SHRINKS = (8, 4, 2, 1)
"""By how much a JPEG can be made smaller while it is decoded (the other eighths have no SIMD code and cost more)."""

_UNREAD = {
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "PSD",
    b"<svg": "SVG",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", **dict.fromkeys((b"heic", b"heix", b"hevc", b"mif1", b"msf1"), "HEIC")}
_JPEG = b"\xff\xd8\xff"
_ORIENTATION = 0x0112
_UPRIGHT = (False, False, False)
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""EXIF orientation -> what makes it upright: rows and columns exchanged; then upside down; then left to right."""


class DecodeError(Exception):
    """Why these bytes are not a usable image."""


class Encoded(NamedTuple):
    """An image of which only the header was read; its width and height are those of the upright image."""

    width: int
    height: int
    data: bytes
    turn: tuple[bool, bool, bool] = _UPRIGHT
    image: Image.Image | None = None
    """Opened by PIL; None: a JPEG for simplejpeg."""
    plain: bool = False
    """A JPEG in grey or YCbCr, which every decoder understands, also that of a GPU."""


class Raster(NamedTuple):
    """Decoded pixels: uint8 [h, w, 3], often a subset with other strides than its shape suggests.

    array[i, j] covers `shrink` x `shrink` pixels of the upright image, those from (left + j * shrink, top + i * shrink)
    on; left and top are below 0 where a shrunken image was turned and does not divide evenly.
    """

    array: np.ndarray
    shrink: int = 1
    left: int = 0
    top: int = 0


def decode(data: bytes) -> np.ndarray:
    """uint8 [H, W, 3]. Raises DecodeError."""
    return np.ascontiguousarray(pixels(open_image(data)).array)


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of the upright image; a few µs for a JPEG. Raises DecodeError."""
    encoded = open_image(data)
    return encoded.width, encoded.height


def open_image(data: bytes) -> Encoded:
    """The image's size, and what `pixels` needs. Raises DecodeError."""
    if not data:
        raise DecodeError("the file is empty")
    if data.startswith(_JPEG):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        except (ValueError, KeyError):  # KeyError: a subsampling it has no name for
            return _open_with_pil(data)
        encoded = _encoded(data, int(width), int(height), _jpeg_orientation(data))
        return encoded._replace(plain=colours in ("Gray", "YCbCr"))
    return _open_with_pil(data)


def known_format(data: bytes) -> str | None:
    """The name of an image format that is not read, if the bytes are of one."""
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    return _BRANDS.get(brand) or next((name for head, name in _UNREAD.items() if data.startswith(head)), None)


def pixels(encoded: Encoded, shrink: int = 1) -> Raster:
    """Pixels, from a JPEG perhaps `shrink` (one of SHRINKS) times smaller than the image. Raises DecodeError."""
    if encoded.image is None:
        try:
            array = _decode_jpeg(encoded, shrink)
        except (ValueError, KeyError) as error:
            if _lost_data(str(error)):
                raise DecodeError(f"damaged image: {error}") from None
            return _second_opinion(encoded.data, str(error))
    else:
        with _pil_at_work():
            array, shrink = np.array(_to_rgb(encoded.image)), 1
    return _upright(array, encoded, shrink)


def _second_opinion(data: bytes, reason: str) -> Raster:
    """What PIL makes of a JPEG that simplejpeg refused for a reason that need not mean damage."""
    try:
        return pixels(_open_with_pil(data))
    except DecodeError:
        raise DecodeError(f"cannot be decoded: {reason}") from None


def _decode_jpeg(encoded: Encoded, shrink: int) -> np.ndarray:
    if shrink == 1:
        return simplejpeg.decode_jpeg(encoded.data)
    width, height = (encoded.height, encoded.width) if encoded.turn[0] else (encoded.width, encoded.height)
    return simplejpeg.decode_jpeg(
        encoded.data, min_width=-(-width // shrink), min_height=-(-height // shrink), min_factor=shrink
    )


def _lost_data(reason: str) -> bool:
    """Whether libjpeg speaks of damage to pixels, not of a kind it cannot handle or of bytes too many."""
    return "remature end" in reason or (reason.startswith("Corrupt JPEG data") and "extraneous" not in reason)


def _upright(array: np.ndarray, encoded: Encoded, shrink: int) -> Raster:
    exchanged, upside_down, mirrored = encoded.turn
    if exchanged:
        array = array.transpose(1, 0, 2)
    height, width = array.shape[:2]
    return Raster(
        array[:: -1 if upside_down else 1, :: -1 if mirrored else 1],
        shrink,
        encoded.width - width * shrink if mirrored else 0,
        encoded.height - height * shrink if upside_down else 0,
    )


def _encoded(data: bytes, width: int, height: int, orientation: object, image: Image.Image | None = None) -> Encoded:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width:,} x {height:,} pixels; at most {MAX_PIXELS:,} are decoded")
    turn = _TURNS.get(orientation, _UPRIGHT) if isinstance(orientation, int) else _UPRIGHT
    return Encoded(*((height, width) if turn[0] else (width, height)), data, turn, image)


def _jpeg_orientation(data: bytes) -> object:
    """The orientation tag in the first EXIF segment; 1 if there is none, or none that can be read."""
    at = 2 if b"Exif\0\0" in data else len(data)
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            try:
                with _pil_at_work():
                    exif = Image.Exif()
                    exif.load(data[at + 4 : at + 2 + length])
                    return exif.get(_ORIENTATION, 1)
            except DecodeError:
                return 1
        # Any number of 0xFF may come before a marker.
        at += 1 if data[at + 1] == 0xFF else 2 + length
    return 1


def _open_with_pil(data: bytes) -> Encoded:
    with _pil_at_work():
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.UnidentifiedImageError:
            if data.startswith(_JPEG):
                raise DecodeError("damaged image: a JPEG whose header cannot be read") from None
            known, kind = ", ".join(FORMATS), known_format(data)
            named = f" ({kind}, which is not read)" if kind else ""
            raise DecodeError(f"not an image of a known kind ({known}); it begins with {data[:12]!r}{named}") from None
        _encoded(data, *image.size, 1)  # refuses a size before its tags are looked for, which may load all of it
        return _encoded(data, *image.size, image.getexif().get(_ORIENTATION, 1), image)


@contextmanager
def _pil_at_work() -> Iterator[None]:
    """PIL raises OSError, ValueError, SyntaxError, struct.error and more on damage: all become DecodeError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(f"damaged image: {error or type(error).__name__}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
