"""Letterbox and stretch: image, boxes and mask lie where the frame says, and boxes find the way back."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from shards.config import DataConfig
from shards.decode import decode
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.frame import PADDING, Region, fitted, frame_of
from shards.loading.open import open_data
from shards.loading.state import make_plan
from shards.loading.train import augment_faults, train_stream
from shards.loading.transforms import augment, centre, draw_region, squared, whole
from shards.settings import ConfigError
from tests.shards.images import built, config
from tests.shards.test_decode import drawn, photo, saved

WAYS = ["centre", "letterbox", "stretch"]
SIZES = [(400, 300), (300, 400), (301, 407), (123, 61), (40, 30), (999, 640)]
SPAN = (0.35, 0.3, 0.62, 0.71)
"""Where the white rectangle is, as fractions of the image."""


def scene(width: int, height: int, kind: str = "PNG", **options) -> tuple[bytes, np.ndarray, np.ndarray]:
    """A white rectangle on black as a file, its box [1, 6] and its mask [height, width]."""
    x0, y0, x1, y1 = (round(part * side) for part, side in zip(SPAN, (width, height) * 2, strict=True))
    mask = np.zeros((height, width), np.uint8)
    mask[y0:y1, x0:x1] = 1
    box = np.array([[x0, y0, x1, y1, 3, 1]], np.float32)
    return saved(Image.fromarray(mask * 255).convert("RGB"), kind, **options), box, mask


def white(image: torch.Tensor, rows: int, columns: int) -> tuple[np.ndarray, list[int]]:
    """What of the content is white, bool [rows, columns], and its edges."""
    found = image[0, :rows, :columns].numpy() > 127
    down, across = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    return found, [across[0], down[0], across[-1] + 1, down[-1] + 1]


def padding(square: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """What lies right of the content and below, [3, pixels]."""
    size = square.shape[-1]
    outside = torch.ones(size, size, dtype=torch.bool)
    outside[:rows, :columns] = False
    return square[:, outside]


def check_padding(seen, rows: int, columns: int) -> None:
    assert (padding(seen.image, rows, columns) == torch.tensor(PADDING, dtype=torch.uint8)[:, None]).all()
    if seen.mask is not None:
        assert (padding(torch.from_numpy(seen.mask)[None], rows, columns) == 255).all()
        assert (seen.mask[:rows, :columns] != 255).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_in_evaluation_a_rectangle_its_box_and_its_mask_lie_together_and_the_box_comes_back(way, shape, kind):
    size = 96
    data, box, mask = scene(*shape, kind)
    seen, frame = whole(data, size, way, box, mask), frame_of(*shape, size, way)
    assert seen.image.shape == (3, size, size)
    assert seen.original == shape
    assert seen.boxes is not None
    assert seen.mask is not None
    found, edges = white(seen.image, frame.rows, frame.columns)
    assert np.abs(seen.boxes[0, :4] - edges).max() <= 1
    assert seen.boxes[0, 4:].tolist() == [3, 1]
    assert (found != seen.mask[: frame.rows, : frame.columns].astype(bool)).mean() < 3 / size
    check_padding(seen, frame.rows, frame.columns)
    back = frame.to_original(torch.from_numpy(seen.boxes[:, :4]))
    # a JPEG may have been decoded small, in whole decoded pixels
    wrong = (back - torch.from_numpy(box[:, :4])).abs() * torch.tensor([frame.scale_x, frame.scale_y] * 2)
    assert wrong.max() <= (0.5 if way == "centre" else 0.1) + 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_a_box_that_is_seen_comes_back_within_a_pixel_of_the_image(way):
    """Found as pixels of an enlarged square, not by the code that moved it there."""
    data, box, _ = scene(123, 61)
    frame = frame_of(123, 61, 492, way)
    _, edges = white(whole(data, 492, way).image, frame.rows, frame.columns)
    assert (frame.to_original(torch.tensor([edges])) - torch.from_numpy(box[:, :4])).abs().max() <= 1


def test_boxes_come_back_clipped_to_the_image():
    frame = frame_of(200, 100, 50, "letterbox")
    assert (frame.rows, frame.columns, frame.scale_x, frame.scale_y) == (25, 50, 0.25, 0.25)
    boxes = torch.tensor([[-3, 5, 60, 50], [10, 0, 20, 25]])
    assert frame.to_original(boxes).tolist() == [[0, 20, 200, 100], [40, 0, 80, 100]]
    assert frame.to_original(torch.zeros(0, 4)).shape == (0, 4)
    frame = frame_of(200, 100, 50, "stretch")
    assert frame.to_original(boxes).tolist() == [[0, 10, 200, 100], [40, 0, 80, 50]]
    frame = frame_of(200, 100, 50, "centre")
    assert frame.to_original(boxes).tolist() == [[44, 10, 170, 100], [70, 0, 90, 50]]


@pytest.mark.parametrize("colour", [0.0, 0.4])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("position", range(10))
def test_in_training_the_drawn_crop_keeps_its_ratio_with_its_boxes_and_its_mask(position, kind, colour):
    size, chance = 96, drawn(0, position)
    data, box, mask = scene(400, 300, kind)
    region = draw_region(400, 300, (0.4, 1.0), *chance[:4])
    rows, columns = fitted(region.width, region.height, size)
    assert max(rows, columns) == size
    scale = size / max(region.width, region.height)
    assert abs(rows - region.height * scale) <= 0.5
    assert abs(columns - region.width * scale) <= 0.5
    sides = set()
    for flip in (0, 1):
        seen = augment(data, size, (0.4, 1.0), flip, colour, chance, box, mask, letterbox=True)
        assert seen.boxes is not None
        assert seen.mask is not None
        found, edges = white(seen.image, rows, columns)
        assert np.abs(seen.boxes[0, :4] - edges).max() <= 1
        assert (found != seen.mask[:rows, :columns].astype(bool)).mean() < 3 / size
        check_padding(seen, rows, columns)
        sides.add(round(float(seen.boxes[0, 0])))
        left, right = (region.left, 1) if not flip else (region.left + region.width, -1)
        wanted = right * (box[0, [0, 2]] - left).clip(*sorted((0, right * region.width))) * columns / region.width
        assert np.abs(np.sort(wanted) - seen.boxes[0, [0, 2]]).max() <= 1


def test_a_letterboxed_crop_is_the_same_crop():
    """The same random numbers: stretched to the square, it is what training sees without letterbox."""
    data = saved(photo(80, 50), "PNG")
    for position in range(6):
        chance = drawn(2, position)
        region = draw_region(80, 50, (0.4, 1.0), *chance[:4])
        rows, columns = fitted(region.width, region.height, 64)
        boxed = augment(data, 64, (0.4, 1.0), 0.5, 0.0, chance, letterbox=True).image[None, :, :rows, :columns]
        plain = augment(data, 64, (0.4, 1.0), 0.5, 0.0, chance).image.float()
        again = torch.nn.functional.interpolate(boxed.float(), (64, 64), mode="bilinear", antialias=True)[0]
        assert (again - plain).abs().mean() < 2


@pytest.mark.parametrize("policy", ["trivial", "rand"])
def test_a_policy_changes_the_content_and_not_the_padding(policy):
    data = saved(photo(80, 50), "PNG")
    for position in range(6):
        chance = drawn(2, position)
        region = draw_region(80, 50, (0.4, 1.0), *chance[:4])
        seen = augment(data, 64, (0.4, 1.0), 0.5, 0.0, chance, policy=policy, letterbox=True)
        check_padding(seen, *fitted(region.width, region.height, 64))


@pytest.mark.parametrize("shape", [(1, 1), (20_000, 30), (30, 20_000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("way", WAYS)
def test_any_size_becomes_the_square(way, kind, shape):
    width, height = shape
    data, mask = saved(Image.new("RGB", shape, "red"), kind), np.ones((height, width), np.uint8)
    box = np.array([[0, 0, width, height, 0, 0]], np.float32)
    frame = frame_of(width, height, 64, way)
    if way == "letterbox":
        assert (frame.rows, frame.columns) == (64 if height >= width else 1, 64 if width >= height else 1)
    trained = augment(data, 64, (0.5, 1.0), 0.5, 0.2, drawn(0, 1), box, mask, letterbox=way == "letterbox")
    for seen in (whole(data, 64, way, box, mask), trained):
        assert seen.image.shape == (3, 64, 64)
        assert seen.mask is not None
        assert seen.mask.shape == (64, 64)
        assert seen.image[0, 0, 0] > 150
        assert set(np.unique(seen.mask)) <= {1, 255}
    seen = whole(data, 64, way, box)
    assert seen.boxes is not None
    if way == "centre" and width != height:
        assert not len(seen.boxes), "less than a tenth of it is seen"
    elif kind == "PNG":  # a JPEG of 30 rows is decoded as 4 x 8: a little less than a pixel
        assert seen.boxes[0, :4].tolist() == [0, 0, frame.columns, frame.rows]
        back = frame.to_original(torch.from_numpy(seen.boxes[:, :4]))[0].tolist()
        assert back == pytest.approx([0, 0, width, height])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SIZES)
def test_pixels_are_those_of_torch_and_of_an_image_that_is_decoded_already(way, shape):
    data = saved(photo(*shape), "PNG")
    seen, frame = whole(data, 64, way).image, frame_of(*shape, 64, way)
    left, top, width, height = map(int, frame.seen)
    part = torch.from_numpy(decode(data)[top : top + height, left : left + width].copy())[None].permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(part, (frame.rows, frame.columns), mode="bilinear", antialias=True)
    assert torch.equal(seen[:, : frame.rows, : frame.columns], wanted[0])
    assert torch.equal(squared(decode(data), 64, way), seen)


def test_an_image_is_written_into_its_place_of_a_batch_and_nowhere_else():
    batch = torch.zeros((3, 64, 64, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    data = saved(photo(80, 50), "JPEG", quality=95)
    assert torch.equal(whole(data, 64, "letterbox", out=batch[1]).image, whole(data, 64, "letterbox").image)
    assert torch.equal(batch[1], whole(data, 64, "letterbox").image)
    assert not batch[[0, 2]].any()


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Images of 24 x 20 pixels, lossy."""
    tmp = tmp_path_factory.mktemp("zoo")
    built(tmp, "a", per_class=8)
    return tmp


def images(settings: DataConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the first batch in training, and of the first in evaluation."""
    subsets = open_data(settings).train
    with train_stream(subsets, settings, Slot()) as stream:
        return next(stream).images.clone(), next(iter(eval_stream(subsets, settings, Slot()))).images.clone()


@pytest.mark.parametrize("workers", [0, 1])
def test_the_configuration_decides_how_streams_see(zoo, workers):
    default, centred, boxed, stretched = (
        images(config(zoo, "a", validation=0, workers=workers, **more)) for more in ({}, *({"resize": w} for w in WAYS))
    )
    (subset,) = open_data(config(zoo, "a", validation=0)).train
    assert all(torch.equal(one, other) for one, other in zip(default, centred, strict=True))
    assert torch.equal(stretched[0], default[0]), "training as ever"
    assert not torch.equal(stretched[1], default[1])
    assert not torch.equal(boxed[0], default[0])
    frame = frame_of(24, 20, 16, "letterbox")
    assert (frame.rows, frame.columns) == (13, 16)
    assert (boxed[1][:, :, 13:] == torch.tensor(PADDING, dtype=torch.uint8)[:, None, None]).all()
    files = [path.read_bytes() for path in (zoo / "raw" / "a").rglob("*.jpg")]
    for way, (_, seen) in zip(WAYS, (centred, boxed, stretched), strict=True):
        known = {whole(data, 16, way).image.numpy().tobytes() for data in files}
        assert all(image.numpy().tobytes() in known for image in seen)
    assert torch.equal(centre(files[0], 16).image, whole(files[0], 16, "centre").image)
    assert subset.num_samples == len(files)


def test_letterbox_is_part_of_the_plan_and_stretch_is_not(zoo):
    plans = {}
    for way in WAYS:
        settings = config(zoo, "a", resize=way)
        plans[way] = make_plan(open_data(settings).train, settings)
    assert plans["centre"] == plans["stretch"]
    assert plans["letterbox"] == {**plans["centre"], "resize": "letterbox"}
    before, after = config(zoo, "a"), config(zoo, "a", resize="letterbox")
    subsets = open_data(before).train
    with train_stream(subsets, before, Slot()) as stream:
        next(stream)
        state = stream.state()
    with pytest.raises(ConfigError, match=r"data\.resize: is new"):
        train_stream(subsets, after, Slot(), state)


def test_letterbox_and_a_gpu_that_decodes_exclude_each_other(zoo):
    settings = config(zoo, "a", resize="letterbox", decode="gpu")
    subsets = open_data(settings).train
    (fault,) = augment_faults(subsets, settings)
    assert fault.startswith("data.resize: letterbox")
    assert "data.decode: cpu" in fault
    with pytest.raises(ConfigError, match=r"data\.resize: letterbox"):
        train_stream(subsets, settings, Slot(), device=torch.device("cpu"))
    for fine in ({"resize": "letterbox"}, {"resize": "stretch", "decode": "gpu"}):
        assert not augment_faults(subsets, config(zoo, "a", **fine))


def test_another_word_is_refused(zoo):
    with pytest.raises(ValueError, match="letterbox"):
        config(zoo, "a", resize="pad")


def test_a_crop_has_at_least_a_pixel_each_way():
    assert fitted(20_000, 30, 64) == (1, 64)
    assert fitted(3, 5, 10) == (10, 6)
    assert fitted(7, 7, 10) == (10, 10)
    assert Region(0, 0, 7, 7) == frame_of(7, 7, 10, "letterbox").seen
    assert math.isclose(frame_of(20_000, 30, 64, "letterbox").scale_y, 1 / 30)
