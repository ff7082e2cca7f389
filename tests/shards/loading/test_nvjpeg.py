"""JPEGs left to the device: where there is no GPU, the same way is gone with libjpeg on the CPU."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from shards.loading.batch import Slot
from shards.loading.nvjpeg import decode_into
from shards.loading.open import open_data
from shards.loading.train import train_stream
from shards.loading.transforms import augment
from shards.settings import ConfigError
from tests.shards.images import built, config
from tests.shards.test_decode import drawn, photo, saved

SIZE = 48
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return torch.device(request.param)


def both(data: bytes, position: int, device: torch.device, **look) -> tuple[np.ndarray, np.ndarray]:
    """An image as loader processes make it, and as the device does."""
    values = {"size": SIZE, "scale": (0.3, 1.0), "flip": 0.5, "color": 0.0, "drawn": drawn(1, position), **look}
    here = augment(data, **values).image
    left = augment(data, **values, later=True).later
    assert left is not None
    images = torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8, device=device)
    decode_into(images, {1: left})
    assert not images[0].any()
    return here.numpy().astype(int), images[1].cpu().numpy().astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_the_device_shows_the_same_part_of_an_image(orientation, mode, device):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(photo(70, 50).convert(mode), "JPEG", quality=95, exif=exif)
    for position in range(8):
        here, there = both(data, position, device)
        assert np.abs(here - there).mean() < 1
        assert np.abs(here - there).max() <= 12


def test_an_image_much_larger_than_the_output_is_nearly_the_same(device):
    """Here it is decoded at a half or a quarter, there in full: places differ by up to half a pixel of the output."""
    data = saved(photo(400, 300), "JPEG", quality=95)
    for position in range(8):
        here, there = both(data, position, device)
        moved = np.abs(there[:, 1:, 1:] - there[:, :-1, :-1]).mean()
        assert np.abs(here - there).mean() < moved / 2


def test_colours_change_as_they_do_here(device):
    data = saved(photo(70, 50), "JPEG", quality=95)
    here, there = both(data, 3, device, color=0.5)
    plain, _ = both(data, 3, device)
    assert np.abs(here - there).mean() < 1.5
    assert np.abs(here - plain).mean() > 3


@pytest.mark.parametrize("kind", ["PNG", "CMYK"])
def test_what_is_no_plain_jpeg_is_decoded_here(kind):
    image = photo(60, 60)
    data = saved(image, "PNG") if kind == "PNG" else saved(image.convert("CMYK"), "JPEG")
    values = (SIZE, (0.5, 1.0), 0.5, 0.0, drawn(0, 0))
    seen = augment(data, *values, later=True)
    assert seen.later is None
    assert torch.equal(seen.image, augment(data, *values).image)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_left_to_the_device_differs_in_nothing_but_a_little_in_pixels(tmp_path, workers, device):
    built(tmp_path, "a")
    batches = {}
    for decode in ("cpu", "gpu"):
        settings = config(tmp_path, "a", workers=workers, decode=decode, augment={"color": 0.2})
        with train_stream(open_data(settings).train, settings, Slot(), device=device) as stream:
            batches[decode] = list(itertools.islice(stream, 10))
    for one, other in zip(batches["cpu"], batches["gpu"], strict=True):
        assert torch.equal(one.positions, other.positions.cpu())
        assert torch.equal(one.targets, other.targets.cpu())
        assert other.images.device.type == device.type
        assert (one.images.float() - other.images.cpu().float()).abs().mean() < 2


def test_the_decoder_is_part_of_the_plan_and_needs_a_gpu(tmp_path):
    built(tmp_path, "a")
    settings = config(tmp_path, "a")
    subsets = open_data(settings).train
    with train_stream(subsets, settings, Slot()) as stream:
        next(stream)
        state = stream.state()
    changed = config(tmp_path, "a", decode="gpu")
    with pytest.raises(ConfigError, match=r"data\.decoder: was 2, is now 2 gpu"):
        train_stream(subsets, changed, Slot(), state, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="give it a GPU"):
        train_stream(subsets, changed, Slot())
