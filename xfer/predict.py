"""Class probabilities for image files, with the same decoding and cropping as in evaluation."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from shards.decode import DecodeError
from shards.loading.transforms import centre
from shards.settings import ConfigError
from xfer.bundle import Trained
from xfer.engine import default_device

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def image_files(paths: Sequence[Path]) -> list[Path]:
    """`paths` with folders replaced by the images in them, sorted. Raises ConfigError naming every path that is not
    there.
    """
    missing = [f"{path}: no such file or folder" for path in paths if not path.exists()]
    found: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if path.is_dir() and not inside:
            missing.append(f"{path}: no images in this folder ({', '.join(sorted(SUFFIXES))})")
        found += inside
    if missing or not found:
        raise ConfigError(missing or "no images given")
    return found


def predictions(trained: Trained, paths: Iterable[Path], top: int) -> Iterator[tuple[Path, dict[str, float] | str]]:
    """For each image its `top` classes with their probabilities, best first; or why it could not be read."""
    device = default_device()
    model = trained.model.to(device)
    for path in paths:
        try:
            image = centre(path.read_bytes(), trained.image_size).image
        except (DecodeError, OSError) as error:
            yield path, f"not readable as an image ({error})"
            continue
        with torch.inference_mode():
            probabilities = model(image[None].to(device))[0].float().softmax(0).cpu()
        best = probabilities.topk(min(top, len(trained.classes)))
        yield path, {trained.classes[i]: p for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)}
