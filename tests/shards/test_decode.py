"""Every kind of image becomes RGB; nothing that is not whole becomes an image."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from shards import decode as decoding
from shards.decode import SHRINKS, DecodeError, decode, image_size, open_image, pixels
from shards.loading.frame import Region
from shards.loading.transforms import augment, centre, draw, draw_region, jitter, move_boxes, move_mask, resize
from tests.shards.images import encoded, picture


def saved(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int, height: int, seed: int = 3) -> Image.Image:
    """Coarse noise drawn smooth: detail on the scale of a tenth of the image, as photos have it."""
    small = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def drawn(seed: int, position: int) -> list[float]:
    return draw(seed, np.array([position]))[0]


def reference(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
def test_lossless_kinds(kind, mode):
    image = picture(3, mode=mode)
    assert (decode(saved(image, kind)) == reference(image)).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(mode):
    data = saved(picture(3, 64, 48, mode), "JPEG", quality=95)
    found = decode(data)
    assert (found.dtype, found.shape) == (np.uint8, (48, 64, 3))
    assert np.abs(found.astype(int) - reference(Image.open(io.BytesIO(data)))).mean() < 4


def test_webp():
    image = picture(3)
    assert (decode(saved(image, "WEBP", lossless=True)) == reference(image)).all()


def test_transparency_is_laid_on_white():
    image = picture(3).convert("RGBA")
    image.putalpha(0)
    assert (decode(saved(image, "PNG")) == 255).all()
    palette = picture(3, mode="P")
    assert (decode(saved(palette, "PNG", transparency=palette.getpixel((0, 0))))[0, 0] == 255).all()


def test_sixteen_bits_keep_the_upper_eight():
    wide = Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
    assert (decode(saved(wide, "PNG")) == np.arange(256, dtype=np.uint8).reshape(16, 16, 1)).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = saved(photo(64, 40), kind, exif=exif, **options)
    wanted = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert image_size(data) == (wanted.shape[1], wanted.shape[0])
    assert np.abs(decode(data).astype(int) - wanted).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shrink", SHRINKS)
def test_a_shrunken_jpeg_shows_the_same_places(orientation, shrink):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(333, 250), "JPEG", quality=95, subsampling=0, exif=exif)
    whole = pixels(open_image(data)).array.astype(float)
    small = pixels(open_image(data), shrink)
    assert small.array.shape[0] <= -(-whole.shape[0] // shrink)
    for i in range(2, small.array.shape[0] - 2, 5):
        for j in range(2, small.array.shape[1] - 2, 5):
            top, left = small.top + i * shrink, small.left + j * shrink
            assert np.abs(whole[top : top + shrink, left : left + shrink].mean((0, 1)) - small.array[i, j]).max() < 8


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"this is a text file", "not an image of a known kind"),
        (encoded(1)[:-150], "damaged"),
        (saved(photo(90, 70), "JPEG")[:-150], "damaged"),
        (saved(photo(90, 70), "JPEG")[:-150] + b"\xff\xd9", "damaged"),
        (encoded(1)[:20], "damaged|not an image"),
        (encoded(1, "PNG")[:-50], "damaged"),
        (encoded(1, "GIF"), "not an image of a known kind"),
    ],
)
def test_what_is_no_image(data, reason):
    with pytest.raises(DecodeError, match=reason):
        decode(data)


def test_a_jpeg_with_a_restart_of_zeros_is_damaged():
    data = bytearray(saved(photo(300, 200), "JPEG", quality=90))
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    with pytest.raises(DecodeError, match="damaged"):
        decode(bytes(data))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_picture_that_would_fill_the_memory(kind, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    with pytest.raises(DecodeError, match="24 x 20 pixels; at most 100"):
        decode(encoded(1, kind))


def test_augmentation_depends_on_seed_and_position_alone():
    data = encoded(5)
    args = (16, (0.3, 1.0), 0.5, 0.3)
    torch.manual_seed(0)
    first = augment(data, *args, drawn(1, 10)).image
    torch.manual_seed(1)
    assert (augment(data, *args, draw(1, np.arange(5, 15))[5]).image == first).all()
    assert (augment(data, *args, drawn(1, 11)).image != first).any()
    assert (augment(data, *args, drawn(2, 10)).image != first).any()


def ramp() -> bytes:
    """32 x 32, from left to right 0, 8, ... 248."""
    return saved(Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))), "PNG")


def test_augmentation_flips_as_often_as_told_and_scales_as_told():
    out = [augment(ramp(), 16, (0.25, 0.25), 0.25, 0.0, drawn(0, p)).image for p in range(400)]
    flipped = [bool(image[0, 0, 0] > image[0, 0, -1]) for image in out]
    assert 0.18 < np.mean(flipped) < 0.32
    spans = [abs(int(image[0, 0, 0]) - int(image[0, 0, -1])) for image in out]
    assert 90 < np.mean(spans) < 140, "a quarter of the area is half of the width"


@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (300, 7), (16, 16)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_any_size_becomes_the_square(shape, kind):
    data = saved(photo(*shape), kind)
    for out in (centre(data, 16), augment(data, 16, (0.1, 1.0), 0.5, 0.2, drawn(0, 1))):
        assert (out.image.shape, out.image.dtype) == ((3, 16, 16), torch.uint8)


def test_the_centre_is_the_centre():
    image = np.zeros((10, 30), np.uint8)
    image[:, 10:20] = 200
    assert (centre(saved(Image.fromarray(image), "PNG"), 10).image == 200).all()


@pytest.mark.parametrize("position", range(8))
def test_decoding_small_changes_little(position):
    """Decoded small, a crop differs by less than moving it half a pixel each way would do."""
    image = photo(900, 700)
    jpeg = saved(image, "JPEG", quality=95, subsampling=0)
    same = saved(Image.open(io.BytesIO(jpeg)), "PNG")
    args = (64, (0.3, 1.0), 0.5, 0.0, drawn(0, position))
    small, full = augment(jpeg, *args).image.int(), augment(same, *args).image.int()
    moved = sum(full.diff(dim=dim).abs().float().mean() / 2 for dim in (1, 2))
    assert (small - full).abs().float().mean() < moved


@pytest.mark.parametrize("size", [16, 100])
@pytest.mark.parametrize("position", range(10))
def test_boxes_and_masks_move_with_their_image(size, position):
    """A white rectangle on black, its box and its mask, cropped and flipped alike, still say the same."""
    image, box = np.zeros((300, 400), np.uint8), np.array([[130.0, 110.0, 290.0, 220.0, 1.0, 1.0]], np.float32)
    image[110:220, 130:290] = 255
    out = augment(
        saved(Image.fromarray(image), "JPEG", quality=95),
        size,
        (0.4, 1.0),
        0.5,
        0.0,
        drawn(0, position),
        box,
        image // 255,
    )
    white = out.image[0].numpy() > 127
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    seen = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert out.boxes is not None
    assert out.mask is not None
    assert np.abs(out.boxes[0, :4] - seen).max() <= 1
    assert out.boxes[0, 4:].tolist() == [1, 1]
    assert (out.mask.astype(bool) != white).mean() < 3 / size


@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 3, 1, 2)], ids=["planes", "channels_last"])
@pytest.mark.parametrize("size", [16, 40, 96])
def test_an_image_is_resized_into_its_place_as_torch_resizes_it(axes, size):
    torch.manual_seed(0)
    image = torch.randint(0, 256, (1, 40, 40, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    shape = (4, size, size, 3) if axes[1] == 3 else (4, 3, size, size)
    batch = torch.zeros(shape, dtype=torch.uint8).permute(axes)
    resize(image, batch[2:3])
    wanted = torch.nn.functional.interpolate(image, (size, size), mode="bilinear", antialias=True)
    assert torch.equal(batch[2:3], wanted)
    assert not batch[[0, 1, 3]].any()


@pytest.mark.parametrize("colour", [0.0, 0.4])
def test_an_image_written_into_a_batch_is_the_same_image(colour):
    data = encoded(7, quality=95)
    for position in range(20):
        alone = augment(data, 24, (0.5, 1.0), 0.5, colour, drawn(3, position)).image
        place = torch.full((24, 24, 3), 255, dtype=torch.uint8).permute(2, 0, 1)
        assert torch.equal(augment(data, 24, (0.5, 1.0), 0.5, colour, drawn(3, position), out=place).image, alone)
        assert torch.equal(place, alone)


def test_boxes_that_leave_the_crop_are_cut_or_dropped():
    region = Region(10, 0, 20, 20)
    corners = [[0, 0, 20, 10], [0, 0, 9, 10], [0, 0, 10.5, 10], [12, 5, 12.1, 8]]
    boxes = np.array([[*box, label, 1] for label, box in enumerate(corners)], np.float32)
    assert move_boxes(boxes, region, (40, 40), mirrored=False).tolist() == [[0, 0, 20, 20, 0, 1]]
    assert move_boxes(boxes, region, (40, 40), mirrored=True).tolist() == [[20, 0, 40, 20, 0, 1]]
    assert move_boxes(np.zeros((0, 6), np.float32), region, (40, 40), False).shape == (0, 6)


def test_a_mask_keeps_its_values():
    mask = np.array([[0, 255], [7, 3]], np.uint8).repeat(10, 0).repeat(10, 1)
    assert move_mask(mask, Region(0, 0, 20, 20), (2, 2), False).tolist() == [[0, 255], [7, 3]]
    assert move_mask(mask, Region(0, 0, 20, 20), (2, 2), True).tolist() == [[255, 0], [3, 7]]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(DecodeError, match="its mask is 3 x 2, not 24 x 20"):
        centre(encoded(1), 16, mask=np.zeros((2, 3), np.uint8))


def test_crops_lie_in_the_image_and_reach_its_edges():
    rng = np.random.default_rng(0)
    regions = [draw_region(50, 30, (0.2, 0.5), *rng.random(4)) for _ in range(3000)]
    assert all(r.left >= 0 and r.top >= 0 and r.left + r.width <= 50 and r.top + r.height <= 30 for r in regions)
    assert min(r.left for r in regions) == min(r.top for r in regions) == 0
    assert max(r.left + r.width for r in regions) == 50
    assert max(r.top + r.height for r in regions) == 30


def test_jitter_by_one_changes_nothing():
    image = torch.from_numpy(decode(encoded(2))).permute(2, 0, 1)
    assert (jitter(image, 1.0, 1.0, 1.0).int() - image.int()).abs().max() <= 1
    assert (jitter(image, 0.0, 1.0, 1.0) == 0).all()
    grey = jitter(image, 1.0, 1.0, 0.0).int()
    assert (grey[0] - grey[1]).abs().max() <= 1
