"""A ResNet as a branch: torchvision's network without its classifier, giving the maps C2..C5.

torchvision's own module names are kept, so its published weights load by name. Stages below the first trained one run
without a graph and with BatchNorm in evaluation mode: freezing to `layer4` makes a ResNet-18 step about 2.5 times
cheaper.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models
from torchvision.models import resnet as tv

from shards.text import counted
from xfer.model_config import PUBLISHED

BACKBONES: dict[str, Callable[..., tv.ResNet]] = {
    "resnet10": partial(tv.ResNet, tv.BasicBlock, [1, 1, 1, 1]),
    "resnet18": partial(tv.ResNet, tv.BasicBlock, [2, 2, 2, 2]),
    "resnet34": partial(tv.ResNet, tv.BasicBlock, [3, 4, 6, 3]),
    "resnet50": partial(tv.ResNet, tv.Bottleneck, [3, 4, 6, 3]),
    "resnet101": partial(tv.ResNet, tv.Bottleneck, [3, 4, 23, 3]),
    "resnet152": partial(tv.ResNet, tv.Bottleneck, [3, 8, 36, 3]),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which published weights expect
DILATABLE = ("resnet50", "resnet101", "resnet152")  # torchvision's blocks of two convolutions are never dilated
STAGES = ("layer1", "layer2", "layer3", "layer4")


def stride(level: int, stem: str) -> int:
    """Pixels of the image a side for one of the map C<level>: 4 at C2, 32 at C5; a quarter of that with stem small."""
    return 2 ** (level - 2) if stem == "small" else 2**level


class Branch(nn.Module):
    """Images [B, 3, H, W] float, normalised -> {"C2": ..., "C5": ...}; C_l is [B, c_l, H/s_l, W/s_l], rounded up, with
    s_l as by `stride`. Names are strings, not numbers: DeepSpeed looks for prefixes in them.

    stem "small" keeps small images large: 3 x 3 at stride 1 and no max-pooling (He et al., Deep Residual Learning, CVPR
    2016, sec. 4.2). `dilated`, of `DILATABLE` only: C4 and C5 have the stride of C3, by the same weights; their
    convolutions are dilated instead (Chen et al., arXiv 1706.05587, sec. 3.1).
    """

    def __init__(self, backbone: str, train_from: str = "all", stem: str = "imagenet", dilated: bool = False):
        super().__init__()
        self.backbone, self.stem, self.stride = backbone, stem, stride(3 if dilated else 5, stem)
        net = BACKBONES[backbone](replace_stride_with_dilation=[False, dilated, dilated])
        if stem == "small":
            net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's
        self.conv1, self.bn1, self.relu = net.conv1, net.bn1, net.relu
        self.maxpool = nn.Identity() if stem == "small" else net.maxpool
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

    def depth(self, name: str) -> int:
        """How deep a parameter lies, by its name: layer4 is 1, the stem 5."""
        part = name.split(".")[0]
        return len(STAGES) - STAGES.index(part) if part in STAGES else len(STAGES) + 1

    def load_weights(self, path: str | Path) -> None:
        """Loads torchvision ResNet weights from .safetensors, from a pickle through `weights_only=True`, or published
        ones by their name (IMAGENET1K_V1), which torchvision downloads once.

        The classifier `fc` is left out. Raises ValueError if there are no such weights.
        """
        state = _published(self.backbone, str(path)) if str(path) in PUBLISHED else read_weights(Path(path))
        state = {name: value.float() for name, value in state.items() if not name.startswith("fc.")}
        if faults := differences(self.state_dict(), state):
            stem = " with a small stem (3 x 3)" if self.stem == "small" else ""
            raise ValueError(f"{path}: not the weights of a {self.backbone}{stem}: {'; '.join(faults)}")
        self.load_state_dict(state)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name; those of a training checkpoint's model, if it is one. Raises
    ValueError.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such weights file")
    try:
        safe = path.suffix == ".safetensors"
        state = safetensors.torch.load_file(path) if safe else torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        kind = "a .safetensors file, or one saved with torch.save(model.state_dict(), ...)"
        raise ValueError(f"{path}: must be {kind}; it cannot be read as that ({type(error).__name__})") from None
    state = _unwrapped(state)
    foreign = isinstance(state, dict) and [name for name, value in state.items() if not isinstance(value, Tensor)]
    if foreign or not isinstance(state, dict):
        raise ValueError(f"{path}: must hold tensors by name, got {', '.join(foreign or [type(state).__name__])}")
    return state


_KEYS = ("state_dict", "model_state_dict", "model", "module")  # of a checkpoint: what has the weights
_PREFIXES = ("module.", "_orig_mod.", "model.")  # DataParallel's, torch.compile's, Lightning's


def _unwrapped(state: Any) -> Any:
    """The weights in what a training script saved, by the names that the network itself gives them."""
    while isinstance(state, dict) and (key := next((k for k in _KEYS if isinstance(state.get(k), dict)), None)):
        state = state[key]
    while isinstance(state, dict) and state and (prefix := _prefix(state)):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _prefix(state: Mapping[Any, Any]) -> str | None:
    """One of `_PREFIXES` that all names begin with."""
    return next((one for one in _PREFIXES if all(str(name).startswith(one) for name in state)), None)


def published(backbone: str) -> list[str]:
    """The names of torchvision's weights for a backbone; empty if it has none."""
    return [*get_model_weights(backbone).__members__] if backbone in list_models() else []


def _published(backbone: str, name: str) -> Any:
    """Raises ValueError if they cannot be had."""
    weights = getattr(get_model_weights(backbone), name)
    try:
        return weights.get_state_dict(check_hash=True, weights_only=True, map_location="cpu")
    except OSError as error:
        place = Path(torch.hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"{name} of {backbone} could not be downloaded from {weights.url} ({error}); put the file into {place}, or "
            "give the path of one"
        ) from None


def differences(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """How the tensors of a file differ from those of a network, in words."""
    counters = {name for name in own if name.endswith("num_batches_tracked")}  # older files have none
    kinds = {
        "missing": sorted(own.keys() - given.keys() - counters),
        "unknown": sorted(given.keys() - own.keys()),
        "of another shape": sorted(n for n in own.keys() & given.keys() if own[n].shape != given[n].shape),
    }
    return [
        f"{counted(len(names), 'tensor')} {'is' if len(names) == 1 else 'are'} {what}, such as {names[0]}"
        for what, names in kinds.items()
        if names
    ]
