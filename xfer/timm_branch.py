"""A network of timm as a branch: any that gives feature maps (`features_only=True`); `pip install xfer[timm]`.

It offers what a ResNet of ours offers (backbone.py), so nothing else knows the difference: maps, their channels, frozen
parts, weights. Stages are what lies between its maps; of a network whose maps are not ends of its parts (a vision
transformer) only all or nothing can be frozen.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xfer.backbone import MEAN, STAGES, STD, differences, read_weights
from xfer.model_config import TIMM
from xfer.quant.bits import layers
from xfer.quant.fold import check_fold, fold, pairs
from xfer.quant.weights import give_bias


class TimmBranch(nn.Module):
    """Images [B, 3, H, W] float, normalised as ImageNet's -> {"C2": ..., "C5": ...}: the network's last maps, at most
    four, C5 the very last, [B, channels[5], H / stride, W / stride] rounded up. Raises ValueError.
    """

    def __init__(self, backbone: str, train_from: str = "all"):
        super().__init__()
        self.backbone, self.stem = backbone, "imagenet"
        self.net = _create(backbone)
        info = self.net.feature_info
        self.channels = {5 - back: width for back, width in enumerate(reversed(info.channels()[-4:]))}
        self.stride: int = info.reduction()[-1]
        self._frozen = _below(self.net, train_from, backbone)
        for part in self._frozen:
            part.requires_grad_(False)
        mean, std = (torch.tensor(self.net.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
        given_mean, given_std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", given_std / std, persistent=False)  # from ImageNet's statistics to its own
        self.register_buffer("shift", (given_mean - mean) / std, persistent=False)

    def train(self, mode: bool = True) -> "TimmBranch":
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.net(images * self.scale + self.shift)[-4:]
        return {f"C{5 - back}": one for back, one in reversed([*enumerate(reversed(maps))])}

    def depth(self, name: str) -> int:
        """How deep a parameter lies, by its name: 1 up to the last map, one more before each map above it; all 1 in a
        network whose maps are no ends of its parts.
        """
        parts, places = _stages(self.net)
        flat = name.removeprefix("net.").replace(".", "_")
        part = next(place for place, one in enumerate(parts) if flat.startswith(f"{one}_"))
        return 1 + sum(part <= place for place in places[:-1])

    def load_weights(self, path: str | Path) -> None:
        """Loads weights of the whole network by timm's names, from .safetensors or through `weights_only=True`; or, by
        the name DEFAULT, those that timm downloads. The classifier is left out. Raises ValueError.
        """
        if str(path) == "DEFAULT":
            trained = _create(self.backbone, pretrained=True)
        else:
            whole, state = _create(self.backbone, features_only=False, num_classes=0), read_weights(Path(path))
            classifiers = whole.pretrained_cfg.get("classifier") or ()
            heads = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
            heads = tuple(f"{head}." for head in heads)
            rest = {name: value.float() for name, value in state.items() if not name.startswith(heads)}
            if faults := differences(whole.state_dict(), rest):
                raise ValueError(f"{path}: not the weights of a {self.backbone}: {'; '.join(faults)}")
            trained = _create(self.backbone, pretrained=True, pretrained_cfg_overlay={"state_dict": rest})
        self.net.load_state_dict(trained.state_dict())


def whole_network(backbone: str) -> tuple[Any, str]:
    """A network with its classifier, which is one linear layer, and the name of that. Raises ValueError."""
    net = _create(backbone, features_only=False)
    name = net.pretrained_cfg.get("classifier")
    if not isinstance(name, str) or not isinstance(dict(net.named_modules()).get(name), nn.Linear):
        raise ValueError(f"{backbone} does not end in one linear layer, so its classifier cannot be taken over")
    return net, name


@torch.no_grad()
def check_maps(branch: "TimmBranch", size: int) -> None:
    """Raises ValueError unless a branch makes [B, c, h, w] of images of `size`, and its BatchNorms can be folded into
    the convolutions before them, as packing does. Three forward passes; for a branch whose weights nobody needs.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, size, size, generator=generator)
    try:
        shape = branch.eval()(images)["C5"].shape
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(f"{branch.backbone} takes no images of {size} px ({type(error).__name__}: {text})") from None
    if len(shape) != 4 or shape[1] != branch.channels[5]:
        raise ValueError(f"{branch.backbone} gives maps of {list(shape)}, not [B, {branch.channels[5]}, h, w]")
    for norm in branch.modules():  # a fresh BatchNorm changes nothing, and would hide that it is at another place
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.normal_(0, 0.1, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
    try:
        check_fold(branch, fold(branch), images, tolerance=1e-3)
    except ValueError as error:
        raise ValueError(f"{branch.backbone} could be trained, but not packed: {error}") from None


def _create(backbone: str, features_only: bool = True, **options: Any) -> Any:
    """The network. Raises ValueError if timm, the name, its maps or its weights are not there."""
    try:
        timm = import_module("timm")
    except ImportError:
        raise ValueError(f"{backbone} needs timm: pip install 'xfer[timm]'") from None
    name = backbone.removeprefix(TIMM)
    if not timm.is_model(name.partition(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.partition('_')[0]}*")[:5])
        raise ValueError(f"timm {timm.__version__} has no model {name}" + (f"; it has {near}, ..." if near else ""))
    try:
        net = timm.create_model(name, features_only=features_only, **options)
    except Exception as error:
        what = "weights of" if options.get("pretrained") else "feature maps of" if features_only else ""
        text = " ".join(str(error).split())[:300]
        given = f"{what} {backbone}".lstrip()
        raise ValueError(f"{given} cannot be had from timm ({type(error).__name__}: {text})") from None
    if features_only:
        _give_biases(net)
    return net


def _give_biases(net: nn.Module) -> None:
    """A bias of 0 to each layer without one and without a BatchNorm that it is folded with: a packed layer has one, and
    so a packed network fits into one that is trained on.
    """
    folded = {convolution for convolution, _ in pairs(net)}
    for name, layer in layers(net).items():
        if name not in folded:
            give_bias(layer)


def _below(net: Any, train_from: str, backbone: str) -> list[nn.Module]:
    """The parts of a network that are frozen. Raises ValueError if it has no such stages."""
    if train_from in ("all", "none"):
        return [net] if train_from == "none" else []
    parts, places = _stages(net)
    if len(places) < len(STAGES):
        raise ValueError(
            f"{backbone} has no stages, for its maps are no ends of its parts: train_from must be all or none, and "
            f"transfer.mode not staged; {train_from} was asked for"
        )
    level = len(places) - len(STAGES) + STAGES.index(train_from)  # the map that this stage ends with
    start = places[level - 1] + 1 if level else places[0]
    return list(parts.values())[:start]


def _stages(net: Any) -> tuple[dict[str, nn.Module], list[int]]:
    """The parts of a network, and the places among them that end with a map; none if maps are no ends of parts."""
    ends = [name.replace(".", "_") for name in net.feature_info.module_name()]
    parts = dict(_parts(net, net.feature_info.module_name()))
    names = list(parts)
    return parts, [names.index(end) for end in ends] if set(ends) <= set(names) else []


def _parts(net: nn.Module, ends: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a network in order; those that have a map inside (blocks.4) one by one."""
    for name, part in net.named_children():
        if any(end.startswith(f"{name}.") for end in ends):
            yield from ((f"{name}_{inner}", one) for inner, one in part.named_children())
        else:
            yield name, part
