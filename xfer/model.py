"""FusionModel: images -> branches -> projections -> fusion -> classifier.

Images come as uint8 and are normalised on the device. Each branch may see its own resolution, so one set of weights
at two scales is already a two-branch model. Projected features are pooled before they are fused: for `wsum` that is
the same number (both are linear), and it lets a trial refit fusion and head from a cache of N x d numbers per image.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.settings import ConfigError
from xfer.backbone import MEAN, STD, Branch, published
from xfer.config import PUBLISHED, RESNETS, BranchConfig, ModelConfig, model_branch
from xfer.fusion import FUSIONS, WeightedSum
from xfer.timm_branch import TimmBranch

AnyBranch = Branch | TimmBranch


class FusionModel(nn.Module):
    """Images uint8 [B, 3, S, S] -> logits float [B, K].

    `sizes`: pixels each branch sees (None: as given). `trunk` of a branch never sees another branch's features.
    """

    def __init__(
        self,
        branches: Mapping[str, AnyBranch],
        sizes: Mapping[str, int | None],
        fusion: str,
        weights: Mapping[str, float] | None,
        width: int,
        num_classes: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.sizes, self.width = dict(sizes), width
        self.projections = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Conv2d(branch.channels[5], width, 1, bias=False), nn.BatchNorm2d(width))
                for name, branch in branches.items()
            }
        )
        start = [weights[name] for name in branches] if weights else [1.0] * len(branches)
        self.fusion = FUSIONS[fusion](start, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width * (len(branches) if fusion == "concat" else 1), num_classes)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def maps(self, images: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The last maps of the branches `names` (None: of all), [B, c, h, w], each of its own c, h, w."""
        x = (images.float() / 255 - self.mean) / self.std
        maps = {}
        for name in self.branches if names is None else names:
            size = self.sizes[name]
            seen = (
                x
                if size in (None, x.shape[-1])
                else F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
            )
            maps[name] = self.branches[name](seen)["C5"]
        return maps

    def features(self, images: Tensor) -> list[Tensor]:
        """Pooled, projected features of every branch: N tensors [B, d]."""
        return [self.projections[name](maps).mean((2, 3)) for name, maps in self.maps(images).items()]

    def classify(self, features: list[Tensor]) -> Tensor:
        """Branch features, N tensors [B, d] -> logits [B, K]."""
        return self.head(self.dropout(self.fusion(features)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))

    @property
    def fusion_weights(self) -> dict[str, float] | None:
        """w by branch name; None for a fusion without a weight vector."""
        if not isinstance(self.fusion, WeightedSum):
            return None
        return dict(zip(self.branches, self.fusion.weights.tolist(), strict=True))


def build_model(config: ModelConfig, num_classes: int, seed: int, load_weights: bool = True) -> FusionModel:
    """The model of a recipe. `load_weights=False` leaves pretrained files unread (a checkpoint follows). Branches of
    other models of ours are not read here, but by `take_over` (transfer/source.py).

    The initial weights depend on `seed` and the branches' names, not on their order in the file; the global random
    state is left as it was. Raises ConfigError naming every weights file that does not fit.
    """
    faults = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        branches: dict[str, AnyBranch] = {}
        for name, branch in sorted(config.branches.items()):
            try:
                branches[name] = build_branch(branch)
            except ValueError as error:
                faults.append(f"model.branches.{name}: {error}")
        if faults:
            raise ConfigError(faults)
        model = FusionModel(
            branches,
            {name: b.size for name, b in config.branches.items()},
            config.fusion.kind,
            config.fusion.given,
            config.fusion.width,
            num_classes,
            config.dropout,
        )
    for name, branch in config.branches.items():
        if branch.weights and load_weights and not model_branch(branch.weights):
            try:
                branches[name].load_weights(branch.weights)
            except ValueError as error:
                faults.append(f"model.branches.{name}.weights: {error}")
    if faults:
        raise ConfigError(faults)
    return model


def build_branch(config: BranchConfig) -> AnyBranch:
    """A branch with random weights. Raises ValueError if it is timm's and cannot be had, or cannot be frozen so."""
    if config.backbone in RESNETS:
        return Branch(config.backbone, config.train_from, config.stem)
    return TimmBranch(config.backbone, config.train_from)


def check_weights_exist(config: ModelConfig) -> list[str]:
    """Faults of weights that are not there: cheap, for use before any worker starts."""
    faults = []
    for name, branch in config.branches.items():
        where = f"model.branches.{name}.weights"
        if branch.weights in PUBLISHED and branch.stem == "small":
            faults.append(f"{where}: {branch.weights} has a 7 x 7 stem, and this branch stem: small; they do not fit")
        elif branch.weights in PUBLISHED:
            there = published(branch.backbone) if branch.backbone in RESNETS else ["DEFAULT"]
            if branch.weights not in there:
                known = f"must be {' or '.join(there)}" if there else "there are no published ones"
                faults.append(f"{where}: {known} for {branch.backbone}, got {branch.weights}")
        elif branch.weights and not model_branch(branch.weights) and not Path(branch.weights).is_file():
            faults.append(f"{where}: no such file, run or bundle: {branch.weights}")
    return faults
