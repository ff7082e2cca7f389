"""Class probabilities for image files, with the same decoding and cropping as in evaluation."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from shards.decode import DecodeError
from shards.format.fields import IMAGES
from shards.loading.transforms import centre
from shards.settings import ConfigError
from shards.sources import files
from xfer.bundle import Trained
from xfer.engine import default_device


def image_files(paths: Sequence[Path], left_out: Counter[str] | None = None) -> list[Path]:
    """`paths` with folders replaced by the images in them, sorted: what `xfer shards build` would take, by the same
    rules, so nothing hidden. `left_out` counts, by ending, the files in them that are no images read here.

    Raises ConfigError naming every path that is not there and every folder without an image.
    """
    faults: list[str] = []
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            faults += [] if path.exists() else [f"{path}: no such file or folder"]
            continue
        inside = [Path(entry.path) for entry in files.walk(path)]
        images = sorted(file for file in inside if files.is_image(file.name))
        others = Counter(file.suffix.lower() for file in inside if not files.is_image(file.name))
        if not images:
            faults.append(f"{path}: no images in this folder ({', '.join(IMAGES)}){_has(others)}")
        found += images
        if left_out is not None:
            left_out.update(others)
    if faults or not found:
        raise ConfigError(faults or "no images given")
    return found


def by_ending(counts: Mapping[str, int]) -> str:
    """`3 .gif, 1 .tiff, 2 without an ending`, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in ordered)


def _has(others: Mapping[str, int]) -> str:
    return f"; it has {by_ending(others)}" if others else ""


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
