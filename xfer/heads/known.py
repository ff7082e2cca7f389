"""The heads that a recipe can name, each with the levels that it reads."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from xfer.heads.deeplabv3 import DeepLabV3
from xfer.heads.faster_rcnn import FasterRcnn
from xfer.heads.fcos import Fcos
from xfer.heads.lraspp import Lraspp
from xfer.heads.retinanet import RetinaNet
from xfer.heads.semantic_fpn import SemanticFpn


@dataclass(frozen=True)
class Head:
    """`build`: from the channels of its maps, the number of classes, dropout, and the stride of C5 in pixels.
    `dilated`: branches that can keep their last two stages at the stride of C3 for it. `two_stage`: it chooses the
    places that it says most of, by a softmax over classes and background.
    """

    levels: tuple[str, ...]
    build: Callable[[int, int, float, int], nn.Module]
    dilated: bool = False
    two_stage: bool = False


HEADS: dict[str, Head] = {
    "fcos": Head(Fcos.levels, lambda width, num_classes, dropout, stride: Fcos(width, num_classes)),
    "retinanet": Head(RetinaNet.levels, lambda width, num_classes, dropout, stride: RetinaNet(width, num_classes)),
    "faster_rcnn": Head(
        FasterRcnn.levels,
        lambda width, num_classes, dropout, stride: FasterRcnn(width, num_classes),
        two_stage=True,
    ),
    "fpn": Head(
        SemanticFpn.levels, lambda width, num_classes, dropout, stride: SemanticFpn(width, num_classes, dropout)
    ),
    "lraspp": Head(Lraspp.levels, lambda width, num_classes, dropout, stride: Lraspp(width, num_classes, dropout)),
    "deeplabv3": Head(DeepLabV3.levels, DeepLabV3, dilated=True),
}


def levels_of(kind: str) -> tuple[str, ...]:
    """The maps that a head reads, C2 to C5."""
    return HEADS[kind].levels if kind in HEADS else ("C5",)


def is_dilated(kind: str) -> bool:
    """Whether a head wants branches with their last two stages at the stride of C3, where these can."""
    return kind in HEADS and HEADS[kind].dilated


def is_two_stage(kind: str) -> bool:
    """Whether the places that a head says most of are its own choice, so that the last digit of a number moves them; it
    answers by a softmax over classes and background, which cannot leave out what a source does not annotate.
    """
    return kind in HEADS and HEADS[kind].two_stage
