"""Detection: boxes with classes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards.inspect.preview.paint import draw_boxes
from shards.loading.batch import Batch
from shards.loading.frame import Frame, Resize, frame_of
from shards.loading.subset import Subset
from xfer.config import Recipe
from xfer.heads import faster_rcnn, fcos, retinanet
from xfer.heads.detections import Detections
from xfer.labels import annotated
from xfer.tasks.average_precision import SURE, BoxScore, BoxScores
from xfer.tasks.dense import Dense, readable
from xfer.tasks.task import Loss, Supervision


class Detect(Dense):
    """See `Task`. An answer is `Detections` in pixels of the original."""

    name, measure, has, annotates = "detection", "AP", "boxes", "box"

    def recipe_faults(self, recipe: Recipe) -> list[str]:
        faults = super().recipe_faults(recipe)
        if recipe.train.label_smoothing:
            faults.append(
                f"train.label_smoothing: must be 0 for the head {recipe.model.head.kind}, which answers what is there "
                f"among much that is not, got {recipe.train.label_smoothing:g}"
            )
        return faults

    def loss(self, told: Supervision) -> "_Objective":
        assert told.sets is None, "refused with the recipe"
        return _Objective(told.masks, told.sources)

    def scores(
        self, subsets: Sequence[Subset], classes: Sequence[str], resize: Resize, device: torch.device
    ) -> "_Scores":
        return _Scores(subsets, classes, resize)

    def drawn(self, output: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """Of objects, and of the edges of their boxes."""
        return _kind(output).drawn(output, generator)

    def answers(self, output: Mapping[str, Tensor], frames: Sequence[Frame]) -> list[Detections]:
        size = max(max(frame.rows, frame.columns) for frame in frames)
        found = _kind(output).decode(output, (size, size))
        return [_back(one, frame) for one, frame in zip(found, frames, strict=True)]

    def plain(self, answer: Detections, classes: Sequence[str], top: int) -> list[dict[str, Any]]:
        rows = zip(answer.boxes.tolist(), answer.scores.tolist(), answer.labels.tolist(), strict=True)
        return [
            {"class": classes[label], "score": round(score, 4), "box": [round(edge, 1) for edge in box]}
            for box, score, label in list(rows)[:top]
        ]

    def text(self, plain: Sequence[Mapping[str, Any]]) -> str:
        sure = Counter(one["class"] for one in plain if one["score"] >= SURE)
        shown = ", ".join(f"{count} x {name}" for name, count in sure.most_common())
        return f"{shown or 'nothing'} with a score of {SURE:g} or more"

    def draw(self, picture: Image.Image, answer: Detections, classes: Sequence[str]) -> Image.Image:
        sure = answer.scores >= SURE
        columns = [answer.boxes[sure], answer.labels[sure, None].float(), torch.zeros(int(sure.sum()), 1)]
        boxes = torch.cat(columns, 1).numpy().astype(np.float32)
        drawn, scale = readable(picture)
        draw_boxes(drawn, boxes, scale, classes)
        return drawn


class _Kind(NamedTuple):
    """Of a head: its loss, what an output of it means, and the likelihood of labels that are drawn from one."""

    objective: Callable[[Tensor, Sequence[str]], Loss]
    decode: Callable[..., list[Detections]]
    drawn: Callable[[Mapping[str, Tensor], torch.Generator], Tensor]


_KINDS = {
    "proposals": _Kind(faster_rcnn.FasterRcnnObjective, faster_rcnn.decode, faster_rcnn.drawn),
    "anchors": _Kind(retinanet.RetinaNetObjective, retinanet.decode, retinanet.drawn),
    "points": _Kind(fcos.FcosObjective, fcos.decode, fcos.drawn),
}
"""By what an output of the head has, of these the first."""


def _kind(output: Mapping[str, Tensor]) -> _Kind:
    return next(kind for places, kind in _KINDS.items() if places in output)


class _Objective:
    """The training loss of the head that made an output, which is known once there is one."""

    def __init__(self, masks: Tensor, sources: Sequence[str]):
        self.masks, self.sources = masks, tuple(sources)
        self._loss: Loss | None = None

    def __call__(self, output: Mapping[str, Tensor], batch: Batch) -> Tensor:
        self._loss = self._loss or _kind(output).objective(self.masks, self.sources)
        return self._loss(output, batch)


def _back(found: Detections, frame: Frame) -> Detections:
    """In pixels of the original, on the CPU; what lies in the padding alone is no detection."""
    boxes = frame.to_original(found.boxes).cpu()
    there = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return Detections(boxes[there], found.scores.cpu()[there], found.labels.cpu()[there])


class _Scores:
    """Average precision on the originals."""

    def __init__(self, subsets: Sequence[Subset], classes: Sequence[str], resize: Resize):
        self._resize: Resize = resize
        self._known = annotated(subsets, len(classes))
        self._scores = BoxScores([one.name for one in subsets], classes, self._known)

    def add(self, output: Mapping[str, Tensor], batch: Batch) -> None:
        assert batch.originals is not None
        size = batch.images.shape[-1]
        places = batch.valid.nonzero()[:, 0].tolist()
        known = self._known[batch.sources.cpu()].to(batch.sources.device)
        found = _kind(output).decode(output, (size, size), annotated=known)
        answers, truths = [], []
        for at in places:
            original = batch.originals[at]
            frame = frame_of(original.width, original.height, size, self._resize)
            answers.append(_back(found[at], frame))
            truths.append(torch.zeros(0, 6) if original.boxes is None else original.boxes)
        sources, positions = (one[batch.valid].tolist() for one in (batch.sources, batch.positions))
        self._scores.add(answers, truths, sources, positions)

    def result(
        self, total: Callable[[Tensor], Tensor] = lambda sums: sums, gather: Callable[[Tensor], Tensor] = lambda r: r
    ) -> Mapping[str, BoxScore]:
        return self._scores.result(gather)
