"""Classes of pixels from the deepest map, seen at several ranges at once by dilated convolutions.

DeepLabV3 (Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation, arXiv 1706.05587, sec. 3.3) as
torchvision has it, without its auxiliary classifier. ResNets of bottlenecks keep their last two stages at stride 8 for
it (`xfer/backbone.py`), as torchvision's do. Other branches cannot, and give a coarser map: the dilations shrink with
it, so that they span the same 96, 192 and 288 pixels. The mean over the image has no BatchNorm, as in detectron2: of
one image that would be the mean of one number.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

_SPANS = (96, 192, 288)  # pixels of the image; dilations of 12, 24, 36 at stride 8


class DeepLabV3(nn.Module):
    """Map C5 [B, d, h, w] of `width` channels d, of `stride` pixels of the image for one of it a side -> logits [B, K,
    h, w] on its grid.
    """

    levels = ("C5",)

    def __init__(self, width: int, num_classes: int, dropout: float = 0.0, stride: int = 32):
        super().__init__()
        self.head = DeepLabHead(width, num_classes, [max(1, span // stride) for span in _SPANS])
        ranges = self.head.get_submodule("0.convs")
        pooled = ranges.get_submodule(str(len(_SPANS) + 1))
        pooled.register_module("1", nn.Conv2d(width, 256, 1))
        pooled.register_module("2", nn.Identity())
        self.head.get_submodule("0.project").register_module("3", nn.Dropout(dropout))

    def forward(self, maps: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
        """`size`: height and width of the images, which every head gets; this one goes by its map."""
        return self.head(maps["C5"])
