"""Classification: a class for each image."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from shards.inspect.preview.paint import font
from shards.loading.frame import Frame, Resize
from shards.loading.open import Splits
from shards.loading.subset import Subset
from xfer import classes as names
from xfer.config import Recipe
from xfer.labels import Objective, sets_of
from xfer.metrics import Scores
from xfer.quant.sensitivity import of_classes
from xfer.tasks.task import Supervision


class Classify:
    """See `Task`. An answer is the probability of each class, float32 [K]."""

    name, measure, sees_whole = "classification", "accuracy", False

    def faults(self, subset: Subset) -> list[str]:
        return names.class_faults(subset)

    def label_faults(self, data: Splits) -> list[str]:
        return names.label_faults(data)

    def scoring_faults(self, subset: Subset, classes: Sequence[str], where: str) -> list[str]:
        return names.scoring_faults(subset, classes, where, self.faults(subset))

    def recipe_faults(self, recipe: Recipe) -> list[str]:
        return []

    def loss(self, told: Supervision) -> Objective:
        return Objective(*told)

    def scores(self, subsets: Sequence[Subset], classes: Sequence[str], resize: Resize, device: torch.device) -> Scores:
        numbered = [subset.numbered(classes) for subset in subsets]
        truths = numbered[0].numbered_names if numbered else ()
        return Scores([subset.name for subset in subsets], classes, device, truths, sets_of(numbered))

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        return of_classes(output, generator)

    def answers(self, output: Tensor, frames: Sequence[Frame]) -> list[Tensor]:
        return list(output.float().softmax(1).cpu())

    def plain(self, answer: Tensor, classes: Sequence[str], top: int) -> dict[str, float]:
        best = answer.topk(min(top, len(classes)))
        names = [classes[int(i)] for i in best.indices.tolist()]
        return dict(zip(names, best.values.tolist(), strict=True))

    def text(self, plain: dict[str, float]) -> str:
        return "   ".join(f"{name} {100 * p:.1f} %" for name, p in plain.items())

    def draw(self, picture: Image.Image, answer: Tensor, classes: Sequence[str]) -> Image.Image:
        ((name, p),) = self.plain(answer, classes, 1).items()
        return titled(picture, f"{name} {100 * p:.0f} %")


def titled(picture: Image.Image, text: str) -> Image.Image:
    """The picture under a line of text."""
    from PIL import ImageDraw

    letters = font(max(12, picture.height // 20))
    high = round(1.5 * letters.size) if hasattr(letters, "size") else 18  # pyright: ignore[reportAttributeAccessIssue]
    out = Image.new("RGB", (picture.width, picture.height + high), "white")
    out.paste(picture, (0, high))
    ImageDraw.Draw(out).text((4, high // 8), text, "black", letters)
    return out
