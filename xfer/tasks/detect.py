"""Detection: boxes with classes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from shards.inspect.preview.paint import draw_boxes
from shards.loading.batch import Batch
from shards.loading.frame import Frame, Resize, frame_of
from shards.loading.subset import Subset
from xfer.config import Recipe
from xfer.heads import fcos, retinanet
from xfer.heads.detections import Detections
from xfer.labels import Teacher, annotated
from xfer.tasks.average_precision import SURE, BoxScore, BoxScores
from xfer.tasks.dense import Dense, readable

_EDGE = 0.1  # deviation of a drawn edge, in sides of the box


class Detect(Dense):
    """See `Task`. An answer is `Detections` in pixels of the original."""

    name, measure, has, annotates = "detection", "AP", "boxes", "box"

    def recipe_faults(self, recipe: Recipe) -> list[str]:
        faults = super().recipe_faults(recipe)
        if recipe.train.label_smoothing:
            faults.append(
                f"train.label_smoothing: must be 0 for the head {recipe.model.head.kind}, whose classes are answered "
                f"one by one, got {recipe.train.label_smoothing:g}"
            )
        return faults

    def loss(
        self,
        masks: Tensor,
        sources: Sequence[str],
        smoothing: float,
        teacher: Teacher | None,
        sets: Tensor | None = None,
    ) -> "_Objective":
        assert sets is None, "refused with the recipe"
        return _Objective(masks, sources)

    def scores(
        self, subsets: Sequence[Subset], classes: Sequence[str], resize: Resize, device: torch.device
    ) -> "_Scores":
        return _Scores(subsets, classes, resize)

    def drawn(self, output: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        """At each place of the logits [B, N, K] whether each class is there; where one is, its box too, each edge drawn
        around the model's own with a deviation of a tenth of the box's side, and how central the place is.

        Such edges cost about a quarter of the overlap, half way between the mildest and the strictest that counts.
        """
        here, total = _bernoulli(output["classes"], generator)
        here = here.amax(2, keepdim=True)
        boxes = (retinanet if "anchors" in output else fcos).located(output)
        sides = (boxes[..., 2:] - boxes[..., :2]).detach().clamp_min(1).repeat(1, 1, 2)
        noise = torch.randn(boxes.shape, generator=generator).to(boxes.device)
        away = (boxes.detach() - boxes) / (_EDGE * sides) + noise
        total = total.sum(2, keepdim=True) - here * away.square().sum(2, keepdim=True) / 2
        if "centerness" in output:
            total = total + here * _bernoulli(output["centerness"], generator)[1]
        return total.flatten(1).sum(1)

    def answers(self, output: Mapping[str, Tensor], frames: Sequence[Frame]) -> list[Detections]:
        size = max(max(frame.rows, frame.columns) for frame in frames)
        found = _decode(output, (size, size))
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


class _Objective:
    """The training loss of the head that made an output: which one it is shows in what its places are."""

    def __init__(self, masks: Tensor, sources: Sequence[str]):
        self.sources = tuple(sources)
        self._of_points = fcos.FcosObjective(masks, sources)
        self._of_anchors = retinanet.RetinaNetObjective(masks, sources)

    def __call__(self, output: Mapping[str, Tensor], batch: Batch) -> Tensor:
        return (self._of_anchors if "anchors" in output else self._of_points)(output, batch)


def _bernoulli(logits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Zeros and ones drawn from logits, and the log-likelihood of each, both of the shape of the logits."""
    logits = logits.float()
    drawn = torch.bernoulli(logits.detach().sigmoid().cpu(), generator=generator).to(logits.device)
    return drawn, -binary_cross_entropy_with_logits(logits, drawn, reduction="none")


def _decode(output: Mapping[str, Tensor], size: tuple[int, int], annotated: Tensor | None = None) -> list[Detections]:
    return (retinanet if "anchors" in output else fcos).decode(output, size, annotated=annotated)


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
        found = _decode(output, (size, size), annotated=self._known[batch.sources.cpu()].to(batch.sources.device))
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
