"""Every kind of image becomes RGB; nothing that is not whole becomes an image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from shards.decode import DecodeError, decode
from shards.transforms import augment, centre, jitter
from tests.shards.images import encoded, picture


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def reference(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_lossless_kinds(kind, mode):
    image = picture(3, mode=mode)
    assert (decode(saved(image, kind)).numpy() == reference(image)).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(mode):
    data = saved(picture(3, 64, 48, mode), "JPEG", quality=95)
    found = decode(data)
    assert (found.dtype, found.shape) == (torch.uint8, (3, 48, 64))
    assert np.abs(found.numpy().astype(int) - reference(Image.open(io.BytesIO(data)))).mean() < 4


def test_webp():
    image = picture(3)
    assert (decode(saved(image, "WEBP", lossless=True)).numpy() == reference(image)).all()


def test_transparency_is_laid_on_white():
    image = picture(3).convert("RGBA")
    image.putalpha(0)
    assert (decode(saved(image, "PNG")) == 255).all()
    palette = picture(3, mode="P")
    assert (decode(saved(palette, "PNG", transparency=palette.getpixel((0, 0))))[:, 0, 0] == 255).all()


def test_sixteen_bits_keep_the_upper_eight():
    wide = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    assert (decode(saved(wide, "PNG")).numpy() == np.arange(256, dtype=np.uint8).reshape(16, 16)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_applied(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(saved(picture(3, 30, 20), kind, exif=exif)).shape == (3, 30, 20)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is a text file", "not an image of a known kind"),
        (encoded(1)[:-150], "(?i)truncated"),
        (encoded(1)[:20], "damaged|not an image"),
        (encoded(1, "PNG")[:-50], "damaged|truncated"),
        (encoded(1, "GIF"), "not an image of a known kind"),
    ],
)
def test_what_is_no_image(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode(data)


def test_a_picture_that_would_fill_the_memory(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="more than 100 pixels"):
        decode(encoded(1, "PNG"))


def test_augmentation_depends_on_seed_and_position_alone():
    image = decode(encoded(5))
    args = (16, (0.3, 1.0), 0.5, 0.3)
    torch.manual_seed(0)
    first = augment(image, *args, seed=1, position=10)
    torch.manual_seed(1)
    assert (augment(image, *args, seed=1, position=10) == first).all()
    assert (augment(image, *args, seed=1, position=11) != first).any()
    assert (augment(image, *args, seed=2, position=10) != first).any()


def test_augmentation_flips_as_often_as_told_and_scales_as_told():
    ramp = torch.arange(32, dtype=torch.uint8).mul(8).expand(3, 32, 32)
    out = [augment(ramp, 16, (0.25, 0.25), 0.25, 0.0, 0, p) for p in range(400)]
    flipped = [bool(image[0, 0, 0] > image[0, 0, -1]) for image in out]
    assert 0.18 < np.mean(flipped) < 0.32
    spans = [abs(int(image[0, 0, 0]) - int(image[0, 0, -1])) for image in out]
    assert 90 < np.mean(spans) < 140, "a quarter of the area is half of the width"


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 7, 300), (3, 300, 7), (3, 16, 16)])
def test_any_size_becomes_the_square(shape):
    image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for out in (centre(image, 16), augment(image, 16, (0.1, 1.0), 0.5, 0.2, 0, 1)):
        assert (out.shape, out.dtype) == ((3, 16, 16), torch.uint8)


def test_the_centre_is_the_centre():
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[:, :, 10:20] = 200
    assert (centre(image, 10) == 200).all()


def test_jitter_by_one_changes_nothing():
    image = decode(encoded(2))
    assert (jitter(image, 1.0, 1.0, 1.0).int() - image.int()).abs().max() <= 1
    assert (jitter(image, 0.0, 1.0, 1.0) == 0).all()
    grey = jitter(image, 1.0, 1.0, 0.0).int()
    assert (grey[0] - grey[1]).abs().max() <= 1
