"""A ResNet as a branch: torchvision's network without its classifier, giving the maps C2..C5.

torchvision's own module names are kept, so its published weights load by name. Stages below the first trained one run
without a graph and with BatchNorm in evaluation mode: freezing to `layer4` makes a ResNet-18 step about 2.5 times
cheaper.
"""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import resnet as tv

BACKBONES: dict[str, Callable[[], tv.ResNet]] = {
    "resnet10": lambda: tv.ResNet(tv.BasicBlock, [1, 1, 1, 1]),
    "resnet18": lambda: tv.ResNet(tv.BasicBlock, [2, 2, 2, 2]),
    "resnet34": lambda: tv.ResNet(tv.BasicBlock, [3, 4, 6, 3]),
    "resnet50": lambda: tv.ResNet(tv.Bottleneck, [3, 4, 6, 3]),
    "resnet101": lambda: tv.ResNet(tv.Bottleneck, [3, 4, 23, 3]),
    "resnet152": lambda: tv.ResNet(tv.Bottleneck, [3, 8, 36, 3]),
}
STAGES = ("layer1", "layer2", "layer3", "layer4")


def side(size: int, level: int) -> int:
    """Pixels a side of the map C<level> for images of `size`: each level halves, rounding up."""
    return -(-size // 2**level)


class Branch(nn.Module):
    """Images [B, 3, H, W] float, normalised -> {"C2": ..., "C5": ...}; C_l is [B, c_l, H/2^l, W/2^l], rounded
    up. Names are strings, not numbers: DeepSpeed looks for prefixes in them.
    """

    def __init__(self, backbone: str, train_from: str = "all"):
        super().__init__()
        net = BACKBONES[backbone]()
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        self.channels = {level: net.fc.in_features >> (5 - level) for level in (2, 3, 4, 5)}
        frozen = {"all": -1, "none": len(STAGES)}.get(train_from)
        self.num_frozen = STAGES.index(train_from) if frozen is None else frozen  # stages; -1: not even the stem
        for part in self._frozen_parts():
            part.requires_grad_(False)

    def _frozen_parts(self) -> list[nn.Module]:
        if self.num_frozen < 0:
            return []
        return [self.conv1, self.bn1, *(getattr(self, stage) for stage in STAGES[: self.num_frozen])]

    def train(self, mode: bool = True) -> "Branch":
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps: dict[str, Tensor] = {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.num_frozen < 0):
            x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for i, stage in enumerate(STAGES):
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= self.num_frozen):
                x = getattr(self, stage)(x)
            maps[f"C{i + 2}"] = x
        return maps

    def load_weights(self, path: str | Path) -> None:
        """Loads torchvision ResNet weights from .safetensors, or a pickle through `weights_only=True`.

        The classifier `fc` is left out. Raises ValueError if the file is not such weights.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path}: no such weights file")
        try:
            if path.suffix == ".safetensors":
                state = safetensors.torch.load_file(path)
            else:
                state = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            raise ValueError(f"{path}: not readable as weights ({type(error).__name__}: {error})") from None
        state = {name: value.float() for name, value in state.items() if not name.startswith("fc.")}
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{path}: not the weights of this backbone: {str(error)[:400]}") from None
