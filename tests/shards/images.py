"""Small image folders drawn on the spot, and their shards."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from shards.config import DataConfig
from shards.ingest.build import build


def picture(seed: int, width: int = 24, height: int = 20, mode: str = "RGB") -> Image.Image:
    """A smooth random image: its pixels survive JPEG well enough to be told from others."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def encoded(seed: int, kind: str = "JPEG", **options) -> bytes:
    """A picture as file content."""
    buffer = io.BytesIO()
    picture(seed).save(buffer, kind, **options)
    return buffer.getvalue()


def image_folder(
    root: Path, classes: tuple[str, ...] = ("cat", "dog", "owl"), per_class: int = 20, seed: int = 0
) -> Path:
    """<root>/<class>/<n>.jpg, every picture different."""
    for label, name in enumerate(classes):
        folder = root / name
        folder.mkdir(parents=True)
        for n in range(per_class):
            (folder / f"{n:03d}.jpg").write_bytes(encoded(seed * 100_000 + label * 1000 + n))
    return root


def built(tmp: Path, name: str, per_class: int = 20, seed: int = 0, shard_mb: float = 0.03, **options) -> Path:
    """The folder of shards of a new image folder."""
    image_folder(tmp / "raw" / name, per_class=per_class, seed=seed)
    build(tmp / "raw" / name, tmp / "shards" / name, shard_mb=shard_mb, processes=1, **options)
    return tmp / "shards" / name


def config(tmp: Path, *names: str, **values) -> DataConfig:
    """A configuration that trains on these sources, with small batches."""
    sources = {name: {"path": name} for name in names}
    defaults = {"image_size": 16, "batch_size": 12, "workers": 0, "window": 16, "lanes": 4}
    return DataConfig.model_validate({"root": str(tmp / "shards"), "sources": sources, **defaults, **values})
