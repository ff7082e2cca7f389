"""Encoded image bytes -> uint8 RGB tensor [3, H, W].

JPEG goes through torchvision (about 1.7 times as fast as PIL, and strict about truncation); everything else, and
JPEGs that torchvision refuses, through PIL. What counts is the content, not the file's extension. Orientation tags
are applied; transparent pixels are laid on white; 16-bit images keep their upper 8 bits. Every failure is a
`DecodeError` with a reason a person can act on.
"""

import io
import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_jpeg

VERSION = 1
"""Part of every plan: raised when the same bytes would give other pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_JPEG = b"\xff\xd8\xff"


class DecodeError(Exception):
    """Why these bytes are not a usable image."""


def decode(data: bytes) -> torch.Tensor:
    """uint8 [3, H, W]. Raises DecodeError."""
    if not data:
        raise DecodeError("the file is empty")
    if data.startswith(_JPEG):
        try:
            encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            image = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
            assert isinstance(image, torch.Tensor)
            return image
        except RuntimeError:
            pass  # CMYK variants and the like: PIL knows more kinds, and says what is wrong with the rest
    return _decode_with_pil(data)


def _decode_with_pil(data: bytes) -> torch.Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.load()
            image = _to_rgb(ImageOps.exif_transpose(image))
    except Image.UnidentifiedImageError:
        raise DecodeError(
            f"not an image of a known kind ({', '.join(FORMATS)}); it begins with {data[:12]!r}"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DecodeError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except Exception as error:  # PIL raises OSError, ValueError, SyntaxError, struct.error, ... on damage
        raise DecodeError(f"damaged image: {error or type(error).__name__}") from None
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        wide = np.asarray(image).astype(np.int64)
        image = Image.fromarray((wide >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
