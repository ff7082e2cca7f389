"""Images that ranges of activations are found on, and others that a file in int8 is compared with its bundle on."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shards.decode import DecodeError
from shards.loading.few import few
from shards.loading.transforms import whole
from shards.settings import ConfigError
from xfer.bundle import Trained
from xfer.config import Recipe
from xfer.outcomes import Comparison, outcomes_on
from xfer.predict import image_files
from xfer.prepare import open_labelled
from xfer.quantize import HeldOut, calibration_images, held_out
from xfer.tasks.known import task_of

FOLDER_IMAGES = 256  # of a folder: that ranges are found on
COMPARED = 256


@dataclass(frozen=True)
class Images:
    """calibration: uint8 [B, 3, S, S] batches to find ranges on; seen: uint8 [B, 3, S, S], to compare on; what: which
    these are, in words.
    """

    calibration: list[Tensor]
    seen: Tensor
    what: str


def of_folder(trained: Trained, folder: Path) -> Images:
    """Every other image of a folder is for ranges. Raises ConfigError if none can be read."""
    found, lost = [], 0
    files = image_files([folder])
    step = max(1, len(files) // (FOLDER_IMAGES + COMPARED))
    for file in files[::step][: FOLDER_IMAGES + COMPARED]:
        try:
            found.append(whole(file.read_bytes(), trained.image_size, trained.resize).image)
        except (DecodeError, OSError):
            lost += 1
    if lost:
        print(f"note: {lost} images of {folder} cannot be read and are passed over", file=sys.stderr)
    if not found:
        raise ConfigError(f"--images: none of the images in {folder} can be read")
    images = torch.stack(found)
    first, rest = images[::2], images[1::2]
    if not len(rest):
        return Images([first], first, f"the one image of {folder}, which ranges were found on too")
    return Images([first], rest, f"images of {folder} that no range was found on; {len(first)} were for ranges")


def of_run(trained: Trained, recipe: Recipe) -> tuple[Images, HeldOut]:
    """Training images of a run for ranges, held-out ones to compare on; and all that are held out. Raises ConfigError
    if its data is not there, or is that of another model.
    """
    config = recipe.data
    own, theirs = (trained.image_size, trained.resize), (config.image_size, config.resize)
    if own != theirs:
        raise ConfigError(
            f"{recipe.folder}: its images are {theirs[0]} px, {theirs[1]}; the bundle's {own[0]} px, {own[1]}"
        )
    data = open_labelled(config, trained.classes, task_of(trained.model.task))
    if missing := sorted(set(data.classes) - set(trained.classes)):
        raise ConfigError(f"{recipe.folder}: its data has classes that the bundle has not: {', '.join(missing[:5])}")
    calibration = calibration_images(data, config, recipe.quantize.calibration)
    held = held_out(data, config, recipe.quantize.searches or bool(recipe.quantize.layers))
    if not held.report:
        return Images(calibration, torch.cat(calibration)[:COMPARED], "the images that ranges were found on"), held
    seen = torch.cat([batch.images for batch in few(held.report, config, COMPARED)])
    return Images(calibration, seen, f"images of {held.what}"), held


def cost(trained: Trained, model: torch.nn.Module, recipe: Recipe, held: HeldOut) -> Comparison:
    """What a file in int8, `model`, costs on all held-out images."""
    models = {"packed": trained.model, "int8": model}
    found = outcomes_on(models, held.report, recipe.data, trained.classes, "compare in int8")
    measure = task_of(trained.model.task).measure
    return Comparison(held.what, found["packed"], found["int8"], ("packed", "int8"), measure)
