"""Segmentation: a class for each pixel."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from shards.format.annotations import VOID
from shards.inspect.preview.paint import colour, legend, with_mask
from shards.loading.batch import Batch
from shards.loading.frame import Frame, Resize, frame_of
from shards.loading.open import Splits
from shards.loading.subset import Subset
from xfer.labels import annotated
from xfer.tasks.dense import Dense, readable
from xfer.tasks.pixels import MaskScore, MaskScores, PixelObjective, label_map
from xfer.tasks.task import Supervision


class Segment(Dense):
    """See `Task`. An answer is the class of each pixel of the original, uint8 [H, W]."""

    name, measure, has, annotates = "segmentation", "mIoU", "mask", "pixel"

    def label_faults(self, data: Splits) -> list[str]:
        alone = [
            f"data.sources.{subset.name}: has only one class, {subset.classes[0]}; the loss of its pixels is a softmax "
            "over its own classes, so it would be 0 whatever the model says; give what is around it a class too"
            for subset in data.train
            if len(subset.classes) == 1
        ]
        return alone + super().label_faults(data)

    def loss(self, told: Supervision) -> PixelObjective:
        assert told.sets is None, "refused with the recipe"
        return PixelObjective(told.masks, told.sources, told.smoothing)

    def scores(
        self, subsets: Sequence[Subset], classes: Sequence[str], resize: Resize, device: torch.device
    ) -> "_Scores":
        return _Scores(subsets, classes, resize)

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """A class for each place of the logits [B, K, h, w], added up over the places."""
        log_p = output.float().log_softmax(1).movedim(1, -1)  # [B, h, w, K]
        labels = torch.multinomial(log_p.detach().exp().flatten(0, 2).cpu(), 1, generator=generator)
        return log_p.flatten(0, 2).gather(1, labels.to(log_p.device)).view(len(output), -1).sum(1)

    def answers(self, output: Tensor, frames: Sequence[Frame]) -> list[Tensor]:
        size = max(max(frame.rows, frame.columns) for frame in frames)
        return [_answer(logits, frame, size).cpu() for logits, frame in zip(output, frames, strict=True)]

    def plain(self, answer: Tensor, classes: Sequence[str], top: int) -> dict[str, float]:
        """The share of the image that each class takes."""
        counts = torch.bincount(answer.flatten().int(), minlength=len(classes)) / max(1, answer.numel())
        best = counts.topk(min(top, len(classes)))
        names = [classes[int(i)] for i in best.indices.tolist()]
        return {name: round(share, 6) for name, share in zip(names, best.values.tolist(), strict=True) if share}

    def text(self, plain: dict[str, float]) -> str:
        return "   ".join(f"{name} {100 * share:.1f} % of the pixels" for name, share in plain.items())

    def draw(self, picture: Image.Image, answer: Tensor, classes: Sequence[str]) -> Image.Image:
        """Void, in a true mask, is dark."""
        drawn = with_mask(readable(picture)[0], answer.numpy())
        there = [int(label) for label in np.unique(answer.numpy()) if label != VOID]
        names = legend([(colour(label), classes[label]) for label in there], max(160, drawn.width))
        out = Image.new("RGB", (names.width, drawn.height + names.height), "white")
        out.paste(drawn, (0, 0))
        out.paste(names, (0, drawn.height))
        return out


def _answer(logits: Tensor, frame: Frame, size: int, known: Tensor | None = None) -> Tensor:
    return label_map(logits, size, (frame.rows, frame.columns), (frame.height, frame.width), known)


class _Scores:
    """Scores on the pixels of the originals; an answer is one of the classes that the source annotates."""

    def __init__(self, subsets: Sequence[Subset], classes: Sequence[str], resize: Resize):
        self._resize: Resize = resize
        self._known = annotated(subsets, len(classes))
        self._scores = MaskScores([subset.name for subset in subsets], classes, self._known)

    def add(self, output: Tensor, batch: Batch) -> None:
        assert batch.originals is not None
        size = batch.images.shape[-1]
        for at in batch.valid.nonzero()[:, 0].tolist():
            original, source = batch.originals[at], int(batch.sources[at])
            assert original.mask is not None
            frame = frame_of(original.width, original.height, size, self._resize)
            answer = _answer(output[at], frame, size, self._known[source])
            self._scores.add([answer.cpu()], [original.mask], [source], [int(batch.positions[at])])

    def result(
        self, total: Callable[[Tensor], Tensor] = lambda sums: sums, gather: Callable[[Tensor], Tensor] = lambda r: r
    ) -> Mapping[str, MaskScore]:
        return self._scores.result(gather, total)
