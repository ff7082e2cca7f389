"""Distillation: a trained model, such as one of several branches, teaches another one that is cheaper.

The loss becomes (1 - s) x the masked cross-entropy + s x T^2 x the Kullback-Leibler divergence of the student's answers
from the teacher's, both softened by the temperature T (Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural
Network, 2015, sec. 2). The teacher sees the same crops, mixed ones too (Beyer et al., Knowledge distillation: A good
teacher is patient and consistent, CVPR 2022), and answers for all classes, also those that a sample's source does not
annotate. Cost: a forward pass of the teacher a step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.settings import ConfigError
from xfer.bundle import classes_of, open_model
from xfer.config import TeacherConfig

TEMPERATURE = 2.0


class Teacher:
    """A model that answers and does not change."""

    def __init__(self, model: nn.Module, image_size: int, columns: Tensor, share: float):
        """columns int64 [K]: which of the teacher's logits is that of each of the student's classes."""
        self.model, self.image_size, self.columns, self.share = model.eval(), image_size, columns, share

    def to(self, device: torch.device) -> "Teacher":
        return Teacher(self.model.to(device), self.image_size, self.columns.to(device), self.share)

    def __call__(self, logits: Tensor, images: Tensor) -> Tensor:
        """logits [B, K] of the student, images uint8 [B, 3, S, S] -> T^2 x the divergence, [B] float."""
        with torch.no_grad():
            answers = self.model(self._seen(images)).float()[:, self.columns]
        ours, theirs = ((one.float() / TEMPERATURE).log_softmax(1) for one in (logits, answers))
        return TEMPERATURE**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)

    def _seen(self, images: Tensor) -> Tensor:
        size = self.image_size
        if images.shape[-1] == size:
            return images
        return F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)


def build_teacher(config: TeacherConfig | None, classes: Sequence[str]) -> Teacher | None:
    """The teacher of a recipe, on the CPU, if it has one. Raises ConfigError if there is no such model or it has other
    classes.
    """
    if config is None:
        return None
    if faults := teacher_faults(config, classes):
        raise ConfigError(faults)
    trained = open_model(config.from_)
    columns = torch.tensor([trained.classes.index(name) for name in classes])
    return Teacher(trained.model, trained.image_size, columns, config.share)


def teacher_faults(config: TeacherConfig | None, classes: Sequence[str] | None) -> list[str]:
    """Why a teacher cannot teach these classes, or, if they are not known (None), anything; its model is not loaded,
    for each fold asks this before the first is trained.
    """
    if config is None:
        return []
    try:
        theirs = classes_of(config.from_)
    except ConfigError as error:
        return [f"train.teacher.from: {fault}" for fault in error.faults]
    if classes is not None and (differ := sorted({*theirs} ^ {*classes})):
        return [
            f"train.teacher.from: must have the classes of this run; {config.from_} has {', '.join(theirs)}, "
            f"the data has {', '.join(classes)}, they differ in {', '.join(differ)}"
        ]
    return []
