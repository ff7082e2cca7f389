"""Drawn scenes: the same everywhere, boxes and masks that say what is on the picture."""

import json

import numpy as np
import pytest
from PIL import Image

from shards.generate import STYLES
from shards.scenes import draw_scene, generate_scenes

SHAPES = ["star", "circle", "cross"]


@pytest.mark.parametrize("style", STYLES)
def test_a_scene_depends_on_its_number_alone(style):
    one, same, other = (draw_scene(style, SHAPES, number, 64) for number in (1, 1, 2))
    assert one.image.tobytes() == same.image.tobytes()
    assert np.array_equal(one.mask, same.mask)
    assert one.boxes == same.boxes
    assert one.image.size != other.image.size or one.image.tobytes() != other.image.tobytes()


def test_boxes_hold_their_shapes_and_masks_their_visible_pixels():
    """A box that is left out is of a shape that is mostly hidden: it leaves few pixels."""
    scenes = [draw_scene("paint", SHAPES, number, 64) for number in range(60)]
    assert any(not scene.boxes for scene in scenes), "pictures without any shape"
    assert any(scene.image.height < 64 for scene in scenes)
    for scene in scenes:
        width, height = scene.image.size
        assert scene.mask.shape == (height, width)
        assert len(scene.boxes) <= 5
        boxed = np.zeros(4, np.int64)
        for label, x, y, w, h, area in scene.boxes:
            assert 0 <= x < x + w <= width
            assert 0 <= y < y + h <= height
            assert 0 < area <= np.count_nonzero(scene.mask[y : y + h, x : x + w] == label)
            boxed[label] += area
        counts = np.bincount(scene.mask.ravel(), minlength=4)
        assert (boxed[1:] <= counts[1:]).all()
        assert counts[1:].sum() - boxed[1:].sum() < 0.1 * scene.mask.size


def test_files_are_those_of_the_scenes(tmp_path):
    generate_scenes(tmp_path, {"mosaic": SHAPES}, count=3, side=48, seed=7)
    inside, names = tmp_path / "mosaic", ["circle", "cross", "star"]
    content = json.loads((inside / "coco.json").read_text())
    assert [one["name"] for one in content["categories"]] == names
    for number, row in enumerate(content["images"]):
        scene = draw_scene("mosaic", names, number, 48, 7)
        with Image.open(inside / "images" / row["file_name"]) as image:
            assert image.tobytes() == scene.image.tobytes()
            assert (row["width"], row["height"]) == image.size
        with Image.open(inside / "masks" / f"{number:05d}.png") as mask:
            assert np.array_equal(np.asarray(mask), scene.mask)
        own = [one for one in content["annotations"] if one["image_id"] == row["id"]]
        assert [(one["category_id"], *one["bbox"], one["area"]) for one in own] == scene.boxes
