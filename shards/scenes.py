"""Drawn scenes: several shapes on one picture with their boxes and masks, for a first try of detection and segmentation
without data or network.

Shapes and styles are those of `generate.py`; each style is one source. A scene depends on (seed, style, number), the
shapes given and the side alone. A tenth of the pictures holds nothing, and most are less high than wide. Later shapes
lie on top: the mask shows what is on top, and a shape covered by more than half has no box. Boxes and masks follow the
outline, filled: ink, glow and tiles may reach a few pixels beyond it.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from shards.format.whole import whole_file, write_json
from shards.generate import SHAPES, STYLES, Point, place
from shards.progress import progress

_EMPTY = 0.1  # of the pictures
_MOST = 5  # shapes on a picture
_SIZES = (0.1, 0.35)  # of a shape, of the side
_TRIES = 20  # for a place that hides little of what is there already
_SHARED = 0.1  # of a shape, with those below it


Box = tuple[int, int, int, int, int, int]


class Scene(NamedTuple):
    """`image`: RGB. `mask`: uint8 (height, width), 0 for the background, 1 + its place among the sorted shapes for a
    shape. `boxes`: that same number, x, y, width, height and visible pixels of every shape that can be seen.
    """

    image: Image.Image
    mask: np.ndarray
    boxes: list[Box]


def _filled(points: list[Point], size: tuple[int, int]) -> np.ndarray:
    """bool (height, width): the pixels inside the outline."""
    image = Image.new("L", size)
    ImageDraw.Draw(image).polygon(points, fill=1)
    return np.asarray(image, bool)


def _placed(
    rng: np.random.Generator, shape: str, side: int, size: tuple[int, int], taken: np.ndarray
) -> tuple[list[Point], np.ndarray]:
    """An outline somewhere in the picture, wholly inside, and its pixels; if possible few of those `taken`."""
    for left in reversed(range(_TRIES)):
        points = _anywhere(rng, shape, side, size)
        inside = _filled(points, size)
        if not left or (inside & taken).sum() <= _SHARED * inside.sum():
            return points, inside
    raise AssertionError("there is a last try")


def _anywhere(rng: np.random.Generator, shape: str, side: int, size: tuple[int, int]) -> list[Point]:
    """An outline somewhere in the picture, wholly inside."""
    turn = rng.uniform(-0.35, 0.35)
    unit = np.array(place(shape, 0, 0, 1, turn))
    scale = rng.uniform(*_SIZES) * side / np.ptp(unit, 0).max()
    low, high = 1 - scale * unit.min(0), np.array(size) - 2 - scale * unit.max(0)
    x, y = rng.uniform(low, high)
    return place(shape, x, y, scale, turn)


def draw_scene(style: str, shapes: Sequence[str], number: int, side: int = 128, seed: int = 0) -> Scene:
    """One scene, `side` wide and between 3/4 of it and all of it high."""
    names = sorted(shapes)
    rng = np.random.default_rng((seed, sorted(STYLES).index(style), number))
    size = (side, math.ceil(side * rng.uniform(0.75, 1)))
    count = 0 if rng.random() < _EMPTY else int(rng.integers(1, _MOST + 1))
    outlines: list[list[Point]] = []
    drawn: list[tuple[int, np.ndarray]] = []
    taken = np.zeros((size[1], size[0]), bool)
    for label in rng.integers(len(names), size=count):
        points, inside = _placed(rng, names[label], side, size, taken)
        taken |= inside
        outlines.append(points)
        drawn.append((int(label) + 1, inside))
    mask, top = np.zeros(taken.shape, np.uint8), np.full(taken.shape, -1)
    for layer, (value, inside) in enumerate(drawn):
        mask[inside], top[inside] = value, layer
    boxes = []
    for layer, (value, inside) in enumerate(drawn):
        visible = int((top == layer).sum())
        if 2 * visible >= inside.sum():
            ys, xs = np.nonzero(inside)
            x, y = int(xs.min()), int(ys.min())
            boxes.append((value, x, y, int(xs.max()) + 1 - x, int(ys.max()) + 1 - y, visible))
    return Scene(STYLES[style](rng, outlines, size), mask, boxes)


def _coco(names: Sequence[str], pictures: Sequence[tuple[str, tuple[int, int], list[Box]]]) -> dict[str, Any]:
    """COCO detection annotations of (file, size, boxes); category ids are the mask's values."""
    boxes = [(image, box) for image, (_, _, inside) in enumerate(pictures, 1) for box in inside]
    return {
        "images": [
            {"id": i, "file_name": file, "width": width, "height": height}
            for i, (file, (width, height), _) in enumerate(pictures, 1)
        ],
        "annotations": [
            {"id": i, "image_id": image, "category_id": value, "bbox": list(box), "area": area, "iscrowd": 0}
            for i, (image, (value, *box, area)) in enumerate(boxes, 1)
        ],
        "categories": [{"id": value, "name": name} for value, name in enumerate(names, 1)],
    }


def generate_scenes(
    folder: Path, styles: Mapping[str, Sequence[str]], count: int, side: int = 128, seed: int = 0
) -> None:
    """`<folder>/<style>/images/<number>.<jpg|png>` with `coco.json` (boxes) and `masks/<number>.png` beside `images`;
    `styles` gives the shapes of each. `shards build` reads both:

        build <style>/coco.json OUT --images <style>/images
        build <style>/images OUT --masks <style>/masks --classes background,circle,...
    """
    assert all(shape in SHAPES for shapes in styles.values() for shape in shapes)
    with progress("draw scenes", count * len(styles), "images") as advance:
        for style, shapes in styles.items():
            images, masks = folder / style / "images", folder / style / "masks"
            images.mkdir(parents=True, exist_ok=True)
            masks.mkdir(exist_ok=True)
            suffix = "png" if style == "mosaic" else "jpg"
            pictures = []
            for number in range(count):
                file = f"{number:05d}.{suffix}"
                scene = draw_scene(style, shapes, number, side, seed)
                with whole_file(images / file) as draft:
                    scene.image.save(draft, quality=90)
                with whole_file(masks / f"{number:05d}.png") as draft:
                    Image.fromarray(scene.mask).save(draft)
                pictures.append((file, scene.image.size, scene.boxes))
                advance()
            write_json(folder / style / "coco.json", _coco(sorted(shapes), pictures))
