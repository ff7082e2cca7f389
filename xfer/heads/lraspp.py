"""Classes of pixels from two maps, the coarse one weighted by its own mean: cheap enough for a telephone.

LR-ASPP (Howard et al., Searching for MobileNetV3, ICCV 2019, sec. 6.4), which is torchvision's; its two maps have
strides 8 and 16 there, 8 and 32 here.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models.segmentation.lraspp import LRASPPHead


class Lraspp(nn.Module):
    """Maps C3 and C5, each [B, d, h, w] of `width` channels d -> logits [B, K, h3, w3] on the grid of C3, stride 8."""

    levels = ("C3", "C5")

    def __init__(self, width: int, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.head = LRASPPHead(low_channels=width, high_channels=width, num_classes=num_classes, inter_channels=128)
        for name in ("low_classifier", "high_classifier"):  # torchvision's head has no dropout
            self.head.register_module(name, nn.Sequential(nn.Dropout(dropout), self.head.get_submodule(name)))

    def forward(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """`size`: height and width of the images, which every head gets; this one goes by its maps."""
        return self.head({"low": maps["C3"], "high": maps["C5"]})
