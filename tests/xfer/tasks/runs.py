"""What tests of detectors and segmenters do with a recipe."""

from pathlib import Path
from typing import Any

from shards.loading.batch import Slot
from xfer import run
from xfer.__main__ import app
from xfer.begin import begin
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.history import read_metrics
from xfer.prepare import prepare

BOXES, MASKS = ("fcos", "retinanet", "faster_rcnn"), ("fpn", "lraspp")  # heads of detectors, of segmenters
KINDS = (*BOXES, *MASKS)
EVERY = (*KINDS, "deeplabv3")  # its map has four places here: too few to learn much in a test
ALIKE = ("faster_rcnn",)  # heads whose sources must have the same classes
MEASURES = {kind: "AP" if kind in BOXES else "mIoU" for kind in EVERY}


def losses(folder: Path) -> list[float]:
    """Of every step of a run."""
    return [loss for row in read_metrics(folder) for loss in row.get("losses", ())]


def scores(folder: Path, kind: str) -> dict[str, float]:
    """By source, the newest of a run."""
    return [row[MEASURES[kind]] for row in read_metrics(folder) if MEASURES[kind] in row][-1]


def fit(recipe: Recipe) -> list[float]:
    """Trains in this process and returns the loss of every step."""
    prepare(recipe, say=False)
    begin(recipe)
    run.fit(recipe, Slot(), build_engine, lambda row: None)
    return losses(recipe.folder)


def verb(*words: Any) -> Any:
    """Runs `xfer WORDS`."""
    return app([str(word) for word in words], result_action="return_value", exit_on_error=False)
