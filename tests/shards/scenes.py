"""Pictures with as much in them as photographs have, and copies of them: for what compares pictures."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def scene(seed: int, width: int = 120, height: int = 96) -> Image.Image:
    """Coarse and fine noise on each other: every frequency that a print looks at is there."""
    rng, size = np.random.default_rng(seed), (width, height)
    layers = [rng.integers(0, 256, (side, side + 1, 3), dtype=np.uint8) for side in (3, 7, 18, 40)]
    grown = [np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC), np.float32) for layer in layers]
    mixed = sum(part * weight for part, weight in zip(grown, (0.35, 0.3, 0.2, 0.15), strict=True))
    return Image.fromarray(np.asarray(mixed).round().astype(np.uint8))


def file_of(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The picture as file content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 92} if kind == "JPEG" else {}) | options)
    return buffer.getvalue()


def opened(data: bytes) -> Image.Image:
    """What file content shows."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def resized(image: Image.Image, scale: float) -> Image.Image:
    """The picture in another size."""
    return image.resize((round(image.width * scale), round(image.height * scale)))


def rimless(image: Image.Image, pixels: int = 1) -> Image.Image:
    """Without its outermost pixels."""
    return image.crop((pixels, pixels, image.width - pixels, image.height - pixels))


def brighter(image: Image.Image, factor: float) -> Image.Image:
    """The picture with all values multiplied."""
    return Image.fromarray((np.asarray(image, np.float32) * factor).clip(0, 255).astype(np.uint8))


COPIES = {
    "png": lambda image: file_of(image, "PNG"),
    "webp": lambda image: file_of(image, "WEBP", quality=80),
    "quality 30": lambda image: file_of(image, quality=30),
    "half the size": lambda image: file_of(resized(image, 0.5)),
    "ten times the size": lambda image: file_of(resized(image, 10)),  # shrunken while it is decoded
    "darker": lambda image: file_of(brighter(image, 0.6)),
    "grey": lambda image: file_of(image.convert("L")),
    "another shape": lambda image: file_of(image.resize((image.width, image.height // 2))),
    "without its rim": lambda image: file_of(rimless(image)),
}


def mirror(image: Image.Image) -> Image.Image:
    """Left and right exchanged."""
    return ImageOps.mirror(image)


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    """Writes `<class>/<name>.<ending>` files."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root
