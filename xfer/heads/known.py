"""The heads that a recipe can name, each with the levels that it reads."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from xfer.heads.fcos import Fcos
from xfer.heads.lraspp import Lraspp
from xfer.heads.retinanet import RetinaNet
from xfer.heads.semantic_fpn import SemanticFpn


@dataclass(frozen=True)
class Head:
    """`build`: from the channels of its maps, the number of classes, and dropout."""

    levels: tuple[str, ...]
    build: Callable[[int, int, float], nn.Module]


HEADS: dict[str, Head] = {
    "fcos": Head(Fcos.levels, lambda width, num_classes, dropout: Fcos(width, num_classes)),
    "retinanet": Head(RetinaNet.levels, lambda width, num_classes, dropout: RetinaNet(width, num_classes)),
    "fpn": Head(SemanticFpn.levels, SemanticFpn),
    "lraspp": Head(Lraspp.levels, Lraspp),
}


def levels_of(kind: str) -> tuple[str, ...]:
    """The maps that a head reads, C2 to C5."""
    return HEADS[kind].levels if kind in HEADS else ("C5",)
