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
Size = tuple[int, int]
Draw = Callable[[np.random.Generator, list[list[Point]], Size], Image.Image]


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


def _noise(rng: np.random.Generator, size: Size, low: int, high: int) -> Image.Image:
    coarse = rng.integers(low, high, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def _paint(rng: np.random.Generator, outlines: list[list[Point]], size: Size) -> Image.Image:
    image = _noise(rng, size, 0, 160)
    for points in outlines:
        ImageDraw.Draw(image).polygon(points, fill=_colour(rng, 120, 256))
    return image.filter(ImageFilter.GaussianBlur(0.6))


def _outline(rng: np.random.Generator, outlines: list[list[Point]], size: Size) -> Image.Image:
    paper = (int(rng.integers(225, 256)),) * 3
    image = Image.new("RGB", size, paper)
    pen = ImageDraw.Draw(image)
    for points in outlines:
        ink = (int(rng.integers(0, 80)),) * 3
        pen.polygon(points, fill=paper)
        pen.line([*points, points[0]], fill=ink, width=int(rng.integers(2, 5)), joint="curve")
    return image


def _mosaic(rng: np.random.Generator, outlines: list[list[Point]], size: Size) -> Image.Image:
    image = Image.new("RGB", size, _colour(rng, 60, 256))
    for points in outlines:
        ImageDraw.Draw(image).polygon(points, fill=_colour(rng, 0, 200))
    tiles = (size[0] // 5, size[1] // 5)
    return image.resize(tiles, Image.Resampling.BOX).resize(size, Image.Resampling.NEAREST)


def _neon(rng: np.random.Generator, outlines: list[list[Point]], size: Size) -> Image.Image:
    dark = _colour(rng, 0, 30)
    image, core = Image.new("RGB", size, dark), Image.new("L", size)
    glow, wire = ImageDraw.Draw(image), ImageDraw.Draw(core)
    for points in outlines:
        bright = list(_colour(rng, 60, 200))
        bright[int(rng.integers(3))] = 255
        for pen, inside, line, width in ((glow, dark, tuple(bright), 5), (wire, 0, 255, 1)):
            pen.polygon(points, fill=inside)
            pen.line([*points, points[0]], fill=line, width=width)
    image = image.filter(ImageFilter.GaussianBlur(1.5))
    image.paste((255, 255, 255), mask=core)
    return image


# Each draws filled outlines, later ones on top.
STYLES: dict[str, Draw] = {"paint": _paint, "outline": _outline, "mosaic": _mosaic, "neon": _neon}


def place(shape: str, x: float, y: float, size: float, turn: float) -> list[Point]:
    """The outline of a shape in pixels: `size` from the middle to what reaches farthest along an axis, turned by
    `turn`.
    """
    cos, sin = math.cos(turn) * size, math.sin(turn) * size
    return [(x + cos * a - sin * b, y + sin * a + cos * b) for a, b in SHAPES[shape]]


def draw(style: str, shape: str, number: int, side: int = 64, seed: int = 0) -> Image.Image:
    """One RGB image, side x side."""
    names = (sorted(STYLES).index(style), sorted(SHAPES).index(shape))
    rng = np.random.default_rng((seed, *names, number))
    turn, size = rng.uniform(-0.35, 0.35), rng.uniform(0.24, 0.4) * side
    x, y = rng.uniform(0.42, 0.58, 2) * side
    return STYLES[style](rng, [place(shape, x, y, size, turn)], (side, side))


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
