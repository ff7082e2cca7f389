"""Image bytes without a file name: which format they are, and what raw pixels become.

Encoded images pass through untouched. Only where a source holds nothing but pixels are they encoded, as PNG: lossless,
and the same bytes each time.
"""

import io

import numpy as np
from PIL import Image

from shards.decode import known_format
from shards.format.fields import IMAGES
from shards.sources.source import Refused

_HEADS = {b"\xff\xd8\xff": "jpg", b"\x89PNG\r\n\x1a\n": "png", b"BM": "bmp"}
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def image_extension(data: bytes) -> str:
    """The extension that the bytes themselves speak for. Raises Refused."""
    for head, extension in _HEADS.items():
        if data.startswith(head):
            return extension
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    kind = known_format(data)
    named = f" ({kind}, which is not read)" if kind else ""
    raise Refused(f"its image begins with {data[:12]!r}{named}; expected one of {', '.join(IMAGES)}")


def png(pixels: Image.Image | np.ndarray) -> bytes:
    """A picture, or uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], as a PNG file. Raises Refused."""
    if isinstance(pixels, np.ndarray):
        pixels = _picture(pixels)
    if pixels.mode not in _MODES:
        raise Refused(f"its pixels are of mode {pixels.mode}; expected one of {', '.join(_MODES)}")
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()


def _picture(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    sound = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
    if pixels.dtype != np.uint8 or not sound or not pixels.size:
        raise Refused(
            f"its pixels are {pixels.dtype} of shape {list(pixels.shape)}; expected uint8 [H, W, 3] or [H, W]"
        )
    return Image.fromarray(pixels)
