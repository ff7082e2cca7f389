"""What a model said of evaluated images, in files that other tools read.

<folder>/<part>/<source>/detections.json    COCO results: image_id, category_id, bbox (x, y, width, height), score
                         truth.json         the annotations as COCO has them, by the same ids; file_name is the key
                         masks/<key>.png    class numbers, 8 bits; classes.txt beside them
                         classes.json       probability of each class by key
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from shards.format.whole import naming, write_json, write_text
from shards.loading.batch import Batch
from shards.loading.frame import frame_of
from shards.loading.reader import Reader
from shards.loading.subset import Subset
from shards.settings import ConfigError
from xfer.bundle import Trained
from xfer.tasks.known import task_of
from xfer.tasks.task import Output

FILES = ("detections.json", "truth.json", "masks", "classes.txt", "classes.json")


def check_saveable(folder: Path) -> None:
    """Raises ConfigError if something is there that is not what was saved before."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"--save-predictions: {folder} is no folder")
    foreign = [path for path in folder.glob("*/*/*") if path.name not in FILES]
    foreign += [path for path in folder.glob("*") if path.is_file() or path.name not in ("validation", "test", "data")]
    if foreign:
        raise ConfigError(
            f"--save-predictions: {folder} has {foreign[0].name}, which is none of ours; give a new folder"
        )


class Saved:
    """Collects the answers of one part of an evaluation, batch by batch, and writes them at the end; masks at once."""

    def __init__(self, trained: Trained, subsets: Sequence[Subset], folder: Path):
        self._trained, self._task, self._folder = trained, task_of(trained.model.task), folder
        self._subsets, self._reader = tuple(subsets), Reader(subsets)
        self._firsts = [sum(one.num_samples for one in subsets[:i]) for i in range(len(subsets))]
        self._answers: list[list[tuple[int, str, Any, Any]]] = [[] for _ in subsets]  # id, key, answer, original

    def __call__(self, batch: Batch, output: Output) -> None:
        size, resize = batch.images.shape[-1], self._trained.resize
        originals = batch.originals or ()
        square = frame_of(size, size, size, "stretch")
        frames = [frame_of(max(1, o.width), max(1, o.height), size, resize) for o in originals] or [square] * len(batch)
        answers = self._task.answers(output, frames)
        for at in batch.valid.nonzero()[:, 0].tolist():
            source, position = int(batch.sources[at]), int(batch.positions[at])
            place = self._subsets[source].locate(position - self._firsts[source])
            key = self._reader.name(source, *place)
            answer = answers[at]
            if self._task.name == "segmentation":
                self._keep_mask(source, key, answer)
            else:
                original = originals[at] if originals else None
                self._answers[source].append((position - self._firsts[source] + 1, key, answer, original))

    def _keep_mask(self, source: int, key: str, mask: Tensor) -> None:
        path = self._folder / self._subsets[source].name / "masks" / f"{_flat(key)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path):
            Image.fromarray(mask.numpy()).save(path)

    def write(self) -> None:
        """The files of the part."""
        classes = self._trained.classes
        for subset, answers in zip(self._subsets, self._answers, strict=True):
            folder = self._folder / subset.name
            folder.mkdir(parents=True, exist_ok=True)
            if self._task.name == "segmentation":
                write_text(folder / "classes.txt", "".join(f"{name}\n" for name in classes))
            elif self._task.name == "classification":
                rows = {key: self._task.plain(answer, classes, len(classes)) for _, key, answer, _ in answers}
                write_json(folder / "classes.json", rows)
            else:
                write_text(folder / "detections.json", json.dumps([row for one in answers for row in _found(*one)]))
                write_text(folder / "truth.json", json.dumps(_truth(answers, classes)))


def start(folder: Path, parts: Sequence[str]) -> None:
    """Takes away what was saved before of these parts."""
    for part in parts:
        if (folder / part).is_dir():
            shutil.rmtree(folder / part)


def _flat(key: str) -> str:
    """A key as a file's name: never a path out of the folder."""
    return key.replace("/", "__").replace("\\", "__").lstrip(".") or "_"


def _found(image: int, key: str, answer: Any, original: Any) -> list[dict[str, Any]]:
    rows = zip(answer.boxes.tolist(), answer.scores.tolist(), answer.labels.tolist(), strict=True)
    return [
        {"image_id": image, "category_id": label + 1, "bbox": _corner(box), "score": score}
        for box, score, label in rows
    ]


def _truth(answers: Sequence[tuple[int, str, Any, Any]], classes: Sequence[str]) -> dict[str, Any]:
    images = [{"id": i, "file_name": key, "width": o.width, "height": o.height} for i, key, _, o in answers]
    annotations = []
    for image, _, _, original in answers:
        for *box, label, ignored in [] if original.boxes is None else original.boxes.tolist():
            x, y, width, height = _corner(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(label) + 1,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": int(ignored),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _corner(box: Sequence[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
