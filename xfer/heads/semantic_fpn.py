"""Classes of pixels from a feature pyramid, every level of which is brought to the finest grid and added.

The semantic branch of Panoptic FPN (Kirillov et al., Panoptic Feature Pyramid Networks, CVPR 2019, sec. 3, fig. 3).
Where the paper doubles a map, it is resized to the very grid of the next finer level: sides of an image need not be
multiples of 32.
"""

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.misc import Conv2dNormActivation

from xfer.heads.pyramid import Pyramid

_CHANNELS = 128


class SemanticFpn(nn.Module):
    """Maps C2 to C5, each [B, d, h, w] of `width` channels d -> logits [B, K, h2, w2] on the grid of C2, stride 4."""

    levels = ("C2", "C3", "C4", "C5")

    def __init__(self, width: int, num_classes: int, dropout: float = 0.0):
        super().__init__()
        channels = min(_CHANNELS, width)
        self.pyramid = Pyramid(self.levels, width, extra=None)
        self.stages = nn.ModuleList(
            nn.ModuleList(_stage(channels if step else width, channels) for step in range(max(1, coarser)))
            for coarser in range(len(self.levels))
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """`size`: height and width of the images, which every head gets; this one goes by its maps."""
        levels = list(self.pyramid(maps).values())
        grids = [x.shape[-2:] for x in levels]
        brought = []
        for coarser, (x, stages) in enumerate(zip(levels, self.stages, strict=True)):
            assert isinstance(stages, nn.ModuleList)
            for step, stage in enumerate(stages):
                x = stage(x)
                if coarser:
                    x = F.interpolate(x, grids[coarser - 1 - step], mode="bilinear")
            brought.append(x)
        return self.classifier(self.dropout(sum(brought[1:], brought[0])))


def _stage(channels_in: int, channels: int) -> nn.Module:
    """Four channels to a group, as in 32 groups of 128: a group of one would be all zero on a map of one pixel."""
    groups = max(1, math.gcd(channels, _CHANNELS) // 4)
    return Conv2dNormActivation(channels_in, channels, norm_layer=lambda num: nn.GroupNorm(groups, num))
