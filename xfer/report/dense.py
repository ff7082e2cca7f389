"""What evaluations of a detector or a segmenter found beyond one number: classes, curves, and the worst images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from shards.decode import DecodeError, open_image, pixels
from shards.format.annotations import annotations
from shards.format.whole import read_json
from shards.loading.open import open_data
from shards.loading.reader import DamagedSampleError, read_sample
from shards.loading.subset import Subset
from shards.loading.transforms import whole
from shards.settings import ConfigError, load
from xfer import figures
from xfer.bundle import Trained, open_model
from xfer.config import Recipe
from xfer.heads.detections import Detections
from xfer.measure import measure_of
from xfer.predict import answers_to
from xfer.records import is_stale
from xfer.report.page import Section, percent
from xfer.tasks.known import task_of

SHOWN, SIDE = 6, 480  # worst images of a source, and pixels a side of their pictures


def dense_sections(folder: Path) -> list[Section]:
    """Of a run that is no classifier, from its evaluation.json; none of others, or before it was evaluated."""
    result = read_json(folder / "evaluation.json")
    recipe = load(folder / "recipe.yaml", Recipe) if result else None
    if recipe is None or not recipe.model.is_dense:
        return []
    trained = open_model(folder)
    scores = {
        (part, source): score
        for part in ("validation", "test")
        for source, score in result.get(part, {}).items()
        if not is_stale(score, trained.weights_sha256)
    }
    if not scores:
        return []
    return [_classes(scores), *_curves(scores), *_worst(trained, recipe, scores)]


def _classes(scores: Mapping[tuple[str, str], Mapping[str, Any]]) -> Section:
    names = sorted({name for score in scores.values() for name in score["per_class"]})
    measure = measure_of(next(iter(scores.values())))
    table = [["class", *(source for _, source in scores)]]
    for name in names:
        values = [score["per_class"].get(name) for score in scores.values()]
        table.append([name, *("-" if value is None else percent(value) for value in values)])
    title = "AP by class" if measure == "AP" else "IoU by class"
    return Section(title, "Of classes that occur.", table=table)


def _curves(scores: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Section]:
    plots = [
        (
            figures.precision_curves(score["curves"]),
            f"{source}: at an overlap of 0.5; the numbers are AP50.",
        )
        for (_, source), score in scores.items()
        if score.get("curves")
    ]
    return [Section("Precision and recall", plots=plots)] if plots else []


def _worst(trained: Trained, recipe: Recipe, scores: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[Section]:
    """What is true and what the model says, side by side."""
    try:
        data = open_data(recipe.data).numbered(trained.classes)
    except ConfigError as error:
        return [Section("The worst images", notes=[f"not shown: {fault}" for fault in error.faults])]
    by_name = {(part, one.name): one for part in ("validation", "test") for one in getattr(data, part)}
    plots, notes = [], []
    for key, score in scores.items():
        for one in score.get("worst", ())[:SHOWN]:
            subset = by_name.get(key)
            if subset is None or subset.manifest.version != score["version"]:
                notes.append(f"{key[1]}: its pictures are not shown, it is gone or another version now")
                break
            try:
                picture, name = _side_by_side(trained, subset, one["place"])
            except (DamagedSampleError, DecodeError, ValueError) as error:
                notes.append(f"{key[1]}: an image is not shown, {error}")
                continue
            plots.append((figures.embedded(picture), f"{key[1]} {name}: {percent(one['value'])}"))
    what = "F1 at a score and an overlap of 0.5" if measure_of(next(iter(scores.values()))) == "AP" else "its own mIoU"
    text = f"Images with the lowest score of their own ({what}). Left: what is true; right: what the model says."
    return [Section("The worst images", text, plots=plots, notes=notes)] if plots or notes else []


def _side_by_side(trained: Trained, subset: Subset, row: int) -> tuple[Image.Image, str]:
    """A picture, and the sample's key. row: of the split's index."""
    manifest, task = subset.manifest, task_of(trained.model.task)
    sample = read_sample(Subset(subset.name, subset.folder, manifest, (), subset.index_path, subset.store), row)
    said = annotations(sample.fields, manifest.fields, len(manifest.classes)).renumbered(subset.renumber)
    seen = whole(sample.image, trained.image_size, trained.resize)
    (answer,) = answers_to(trained, [seen])
    upright = Image.fromarray(pixels(open_image(sample.image)).array)
    halves = [task.draw(upright, one, trained.classes) for one in (_truth(said.boxes, said.mask), answer)]
    for half in halves:
        half.thumbnail((SIDE, SIDE))
    both = Image.new("RGB", (sum(half.width for half in halves) + 8, max(half.height for half in halves)), "white")
    both.paste(halves[0], (0, 0))
    both.paste(halves[1], (halves[0].width + 8, 0))
    return both, sample.key


def _truth(boxes: np.ndarray | None, mask: np.ndarray | None) -> Any:
    """As an answer."""
    if mask is not None:
        return torch.from_numpy(mask)
    rows = torch.from_numpy(np.zeros((0, 6), np.float32) if boxes is None else boxes)
    return Detections(rows[:, :4], torch.ones(len(rows)), rows[:, 4].long())
