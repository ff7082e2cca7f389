"""A feature pyramid on maps that are already of one width: top-down from the coarsest, then a 3x3 convolution each.

The lateral convolutions of an FPN (Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, sec. 3) are
missing: a fusion's projections are in their place. All else is torchvision's, its initialisation too.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork


class Pyramid(nn.Module):
    """Maps by level, each [B, d, h, w] -> as many of the same shapes: C3 becomes P3.

    `levels`: finest first, "C3" and so on, of `width` channels d each. `extra`: torchvision's, that makes more of the
    coarsest, each half the size of the one before.
    """

    def __init__(self, levels: Sequence[str], width: int, extra: ExtraFPNBlock | None):
        super().__init__()
        self.levels = tuple(levels)
        self.fpn = FeaturePyramidNetwork([width] * len(levels), width, extra)
        self.fpn.inner_blocks = nn.ModuleList(nn.Identity() for _ in levels)

    def forward(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        maps = self.fpn({level.replace("C", "P"): maps[level] for level in self.levels})
        return {level.upper(): x for level, x in maps.items()}
