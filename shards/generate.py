"""Small labelled image folders drawn on the spot: shapes in several visual styles, for a first try without data or
network.

Each style is one source. The drawing depends on (seed, style, class, number) alone, so the folders are the same
everywhere. About 1,500 images/s.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from shards.progress import progress

Point = tuple[float, float]
Draw = Callable[[np.random.Generator, list[Point], int], Image.Image]


def _regular(corners: int, turn: float = 0.0) -> list[Point]:
    angles = [2 * math.pi * i / corners + turn for i in range(corners)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _star() -> list[Point]:
    outer, inner = _regular(5, -math.pi / 2), _regular(5, -math.pi / 2 + math.pi / 5)
    return [p for o, i in zip(outer, inner, strict=True) for p in (o, (0.42 * i[0], 0.42 * i[1]))]


def _heart() -> list[Point]:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in turns
    ]


SHAPES: dict[str, list[Point]] = {
    "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)],
    "circle": _regular(40),
    "cross": [
        (-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
        (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3),
    ],
    "heart": _heart(),
    "square": _regular(4, math.pi / 4),
    "star": _star(),
    "triangle": _regular(3, -math.pi / 2),
}  # fmt: skip


def _colour(rng: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(int(v) for v in rng.integers(low, high, 3))


def _noise(rng: np.random.Generator, side: int, low: int, high: int) -> Image.Image:
    coarse = rng.integers(low, high, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def _paint(rng: np.random.Generator, points: list[Point], side: int) -> Image.Image:
    image = _noise(rng, side, 0, 160)
    ImageDraw.Draw(image).polygon(points, fill=_colour(rng, 120, 256))
    return image.filter(ImageFilter.GaussianBlur(0.6))


def _outline(rng: np.random.Generator, points: list[Point], side: int) -> Image.Image:
    paper = int(rng.integers(225, 256))
    image = Image.new("RGB", (side, side), (paper, paper, paper))
    ink = int(rng.integers(0, 80))
    ImageDraw.Draw(image).line([*points, points[0]], fill=(ink, ink, ink), width=int(rng.integers(2, 5)), joint="curve")
    return image


def _mosaic(rng: np.random.Generator, points: list[Point], side: int) -> Image.Image:
    image = Image.new("RGB", (side, side), _colour(rng, 60, 256))
    ImageDraw.Draw(image).polygon(points, fill=_colour(rng, 0, 200))
    tiles = side // 5
    return image.resize((tiles, tiles), Image.Resampling.BOX).resize((side, side), Image.Resampling.NEAREST)


def _neon(rng: np.random.Generator, points: list[Point], side: int) -> Image.Image:
    image = Image.new("RGB", (side, side), _colour(rng, 0, 30))
    bright = list(_colour(rng, 60, 200))
    bright[int(rng.integers(3))] = 255
    pen = ImageDraw.Draw(image)
    pen.line([*points, points[0]], fill=tuple(bright), width=5)
    image = image.filter(ImageFilter.GaussianBlur(1.5))
    ImageDraw.Draw(image).line([*points, points[0]], fill=(255, 255, 255), width=1)
    return image


STYLES: dict[str, Draw] = {"paint": _paint, "outline": _outline, "mosaic": _mosaic, "neon": _neon}


def draw(style: str, shape: str, number: int, side: int = 64, seed: int = 0) -> Image.Image:
    """One RGB image, side x side."""
    names = (sorted(STYLES).index(style), sorted(SHAPES).index(shape))
    rng = np.random.default_rng((seed, *names, number))
    turn, size = rng.uniform(-0.35, 0.35), rng.uniform(0.24, 0.4) * side
    x, y = rng.uniform(0.42, 0.58, 2) * side
    cos, sin = math.cos(turn) * size, math.sin(turn) * size
    points = [(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in SHAPES[shape]]
    return STYLES[style](rng, points, side)


def generate(folder: Path, styles: Mapping[str, Sequence[str]], per_class: int, side: int = 64, seed: int = 0) -> None:
    """Image folders `<folder>/<style>/<class>/<number>.<jpg|png>`; `styles` gives the classes of each. Existing files
    stay.
    """
    total = per_class * sum(len(shapes) for shapes in styles.values())
    with progress("draw images", total, "images") as advance:
        for style, shapes in styles.items():
            suffix = "png" if style == "mosaic" else "jpg"
            for shape in shapes:
                inside = folder / style / shape
                inside.mkdir(parents=True, exist_ok=True)
                for number in range(per_class):
                    path = inside / f"{number:05d}.{suffix}"
                    if not path.exists():
                        draw(style, shape, number, side, seed).save(path, quality=90)
                    advance()
