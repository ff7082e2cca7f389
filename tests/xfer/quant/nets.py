"""Small networks with the child names the package reads, and BatchNorm statistics as after training."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock


def shake(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random BatchNorm statistics: a fresh BatchNorm is the identity and would hide every mistake in folding."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            uniform = torch.rand(4, module.num_features, generator=generator)
            module.weight.data = 0.5 + uniform[0]
            module.bias.data = uniform[1] - 0.5
            module.running_mean = uniform[2] - 0.5
            module.running_var = 0.5 + uniform[3]
    return model.eval()


def big() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shake(resnet18(num_classes=100))


class TwoBranches(nn.Module):
    """Two backbones, a projection each, a weighted sum and a head: the fusion model in small."""

    def __init__(self, width: int = 5, num_classes: int = 3) -> None:
        super().__init__()
        self.branches = nn.ModuleDict({"head": _Body(), "b": _Body()})  # "head": a name that misleads
        self.projections = nn.ModuleDict(
            {name: nn.Sequential(nn.Conv2d(12, width, 1, bias=False), nn.BatchNorm2d(width)) for name in self.branches}
        )
        self.fusion = nn.Linear(1, 2)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        share = self.fusion(x.new_ones(1)).softmax(0)
        fused = sum(
            weight * self.projections[name](branch(x))
            for weight, (name, branch) in zip(share, self.branches.items(), strict=True)
        )
        return self.head(fused.mean((2, 3)))  # pyright: ignore[reportAttributeAccessIssue]


def small(seed: int = 0) -> TwoBranches:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TwoBranches()
    shake(model, seed)
    return model


def images(count: int = 8, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


class _Body(nn.Module):
    """conv1, bn1, layer1, layer4 with a downsample, as torchvision names them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 9, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(9)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(9, 9))
        down = nn.Sequential(nn.Conv2d(9, 12, 1, 2, bias=False), nn.BatchNorm2d(12))
        self.layer4 = nn.Sequential(BasicBlock(9, 12, 2, down))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer4(self.layer1(self.relu(self.bn1(self.conv1(x)))))
