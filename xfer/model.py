"""FusionModel: images -> branches -> projections -> fusion -> head.

Images come as uint8 and are normalised on the device. Each branch may see its own resolution, so one set of weights
at two scales is already a two-branch model. A classifier's projected features are pooled before they are fused: for
`wsum` that is the same number (both are linear), and it lets a trial refit fusion and head from a cache of N x d
numbers per image. A DenseModel fuses the maps of each level that its head reads, over the same weight vector.
What else is known of a sample can modulate a classifier's fused feature (`xfer/side.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.settings import ConfigError
from xfer.backbone import DILATABLE, MEAN, STD, Branch, published
from xfer.encoders import ENCODERS
from xfer.fusion import FUSIONS, WeightedSum
from xfer.heads.known import HEADS, is_dilated, levels_of
from xfer.heads.label_table import LabelTable, UnitLength
from xfer.model_config import (
    PUBLISHED,
    RESNETS,
    TASKS,
    BranchConfig,
    FieldKind,
    HeadKind,
    ModelConfig,
    TileConfig,
    missing_weights,
    model_branch,
)
from xfer.side import SideInputs
from xfer.tiles import tiled
from xfer.timm_branch import TimmBranch

AnyBranch = Branch | TimmBranch


class FusionModel(nn.Module):
    """Images uint8 [B, 3, S, S], and side inputs if it takes any (`SideInputs.encode`; None: all are missing) -> logits
    float [B, K].

    `sizes`: pixels each branch sees (None: as given). `trunk` of a branch never sees another branch's features. `kind`:
    of the head. `width`: channels that branches are projected to; None: the only branch is not. `tile`: how a branch
    sees larger images in evaluation mode (None: whole). `side`: fields of side inputs.
    """

    def __init__(
        self,
        branches: Mapping[str, AnyBranch],
        sizes: Mapping[str, int | None],
        fusion: str,
        weights: Mapping[str, float] | None,
        width: int | None,
        num_classes: int,
        dropout: float = 0.0,
        kind: HeadKind = "linear",
        tile: TileConfig | None = None,
        side: Mapping[str, FieldKind] | None = None,
    ):
        super().__init__()
        self.kind: HeadKind = kind
        self.tile = tile
        self.branches = nn.ModuleDict(branches)
        self.sizes, self.projects = dict(sizes), width is not None
        self.width = width or next(iter(branches.values())).channels[5]
        self.projections = nn.ModuleDict({name: self._projection(branch) for name, branch in branches.items()})
        start = [weights[name] for name in branches] if weights else [1.0] * len(branches)
        self.fusion = FUSIONS[fusion](start, self.width)
        self.enter = UnitLength() if kind == "labels" else nn.Identity()
        self.table = LabelTable(num_classes) if kind == "labels" else None
        self.dropout = nn.Dropout(dropout)
        channels = self.width * (len(branches) if FUSIONS[fusion].stacks else 1)
        self.head = self._head(channels, num_classes)
        self.side = SideInputs(side, channels, num_classes) if side else None  # last: nothing else is drawn otherwise
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def _projection(self, branch: AnyBranch) -> nn.Module:
        return project(branch.channels[5], self.width) if self.projects else nn.Identity()

    def _head(self, channels: int, num_classes: int) -> Any:
        return nn.Linear(channels, num_classes)

    def maps(self, images: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """The last maps of the branches `names` (None: of all), [B, c, h, w], each of its own c, h, w."""
        return {name: levels["C5"] for name, levels in self.levels(images, names).items()}

    def levels(self, images: Tensor, names: Iterable[str] | None = None) -> dict[str, dict[str, Tensor]]:
        """All maps of the branches `names` (None: of all), C2 to C5 each."""
        x = (images.float() / 255 - self.mean) / self.std
        maps, tile = {}, None if self.training else self.tile
        for name in self.branches if names is None else names:
            size = self.sizes[name]
            seen = (
                x
                if size in (None, x.shape[-1])
                else F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
            )
            branch = self.branches[name]
            maps[name] = tiled(branch, seen, tile) if tile and max(seen.shape[-2:]) > tile.size else branch(seen)
        return maps

    def features(self, images: Tensor) -> Any:
        """Pooled, projected features of every branch: N tensors [B, d]."""
        return [self.projections[name](maps).mean((2, 3)) for name, maps in self.maps(images).items()]

    def classify(self, features: list[Tensor], side: Tensor | None = None) -> Tensor:
        """Branch features, N tensors [B, d] -> logits [B, K]."""
        return self.head(self.dropout(self.fused(features, side)))

    def fused(self, features: Sequence[Tensor], side: Tensor | None = None) -> Tensor:
        """Branch features, N tensors [B, d] -> what the head reads, [B, d]."""
        z = self.fusion(features)
        return self.enter(z if self.side is None else self.side(z, side))

    def name_classes(self, classes: Sequence[str], encoder: str | None) -> None:
        """Fills the table of a head that has one, and tells side inputs the names that their texts are to be without:
        before anything is trained; a checkpoint has it.
        """
        if self.table is not None:
            assert encoder
            self.table.vectors.copy_(ENCODERS[encoder](classes))
        if self.side is not None:
            self.side.name(classes)

    def forward(self, images: Tensor, side: Tensor | None = None) -> Tensor:
        return self.classify(self.features(images), side)

    @property
    def task(self) -> str:
        """classification, detection or segmentation."""
        return TASKS[self.kind]

    @property
    def fusion_weights(self) -> dict[str, float] | None:
        """w by branch name; None for a fusion without a weight vector."""
        if not isinstance(self.fusion, WeightedSum):
            return None
        return dict(zip(self.branches, self.fusion.weights.tolist(), strict=True))

    def drop_below(self, share: float | None) -> dict[str, float]:
        """Takes the branches of a weight below `share` out of the model (None: none); their weights by name. The rest
        says exactly what all do where these have a weight of 0.
        """
        if share is None or not isinstance(self.fusion, WeightedSum):
            return {}
        names, weights = list(self.branches), self.fusion.weights.tolist()
        gone = self.fusion.below(share)
        kept = [b for b in range(len(names)) if b not in gone]
        if gone and self.fusion.stacks:
            blocks = self.head.weight.detach().chunk(len(names), dim=1)
            smaller = nn.Linear(self.width * len(kept), self.head.out_features)
            smaller.load_state_dict(
                {"weight": torch.cat([blocks[b] for b in kept], 1), "bias": self.head.bias.detach()}
            )
            self.head = smaller.train(self.head.training)
        self.fusion.keep(kept)
        for b in gone:
            del self.branches[names[b]], self.projections[names[b]], self.sizes[names[b]]
        return {names[b]: weights[b] for b in gone}


class DenseModel(FusionModel):
    """Images uint8 [B, 3, S, S] -> what its head says of places in them: see `xfer/heads/`.

    `kind`: of `HEADS`. Each level that the head reads is projected and fused on its own; the weights are the same on
    all levels. Maps of a branch that sees another size are brought to the grid of the first branch.
    """

    def _projection(self, branch: AnyBranch) -> nn.Module:
        return nn.ModuleDict(
            {level: project(branch.channels[int(level[1])], self.width) for level in levels_of(self.kind)}
        )

    def _head(self, channels: int, num_classes: int) -> Any:
        first = next(iter(self.branches.values()))
        assert isinstance(first, (Branch, TimmBranch))
        return HEADS[self.kind].build(channels, num_classes, self.dropout.p, first.stride)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """The fused maps [B, d, h, w] of each level that the head reads."""
        found = self.levels(images)
        return {level: self._fused(level, found) for level in levels_of(self.kind)}

    def _fused(self, level: str, found: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        maps = []
        for name, levels in found.items():
            z = self.projections[name].get_submodule(level)(levels[level])
            if maps and z.shape[-2:] != maps[0].shape[-2:]:
                z = F.interpolate(z, maps[0].shape[-2:], mode="bilinear")
            maps.append(z)
        return self.fusion(maps)

    def forward(self, images: Tensor, side: Tensor | None = None) -> Any:
        """`side`: None, for only classifiers take side inputs."""
        assert side is None
        return self.head(self.features(images), tuple(images.shape[-2:]))


def project(channels: int, width: int) -> nn.Sequential:
    """[B, channels, h, w] -> [B, width, h, w]."""
    return nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))


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
                branches[name] = build_branch(branch, is_dilated(config.head.kind))
            except ValueError as error:
                faults.append(f"model.branches.{name}: {error}")
        if faults:
            raise ConfigError(faults)
        model = (DenseModel if config.is_dense else FusionModel)(
            branches,
            {name: b.size for name, b in config.branches.items()},
            config.fusion.kind,
            config.fusion.given,
            config.fusion.width,
            num_classes,
            config.dropout,
            config.head.kind,
            config.tile,
            config.side.fields if config.side else None,
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


def build_branch(config: BranchConfig, dilated: bool = False) -> AnyBranch:
    """A branch with random weights; `dilated`: if it can be. Raises ValueError if it is timm's and cannot be had, or
    cannot be frozen so.
    """
    if config.backbone in RESNETS:
        return Branch(config.backbone, config.train_from, config.stem, dilated and config.backbone in DILATABLE)
    return TimmBranch(config.backbone, config.train_from)


def check_weights_exist(config: ModelConfig) -> list[str]:
    """Faults of branches: names that cannot be, weights that are not there. Cheap, for use before any worker starts."""
    faults = [
        f"model.branches.{name}: is a name that PyTorch's modules use themselves; choose another"
        for name in config.branches
        if hasattr(nn.ModuleDict(), name)
    ]
    for name, branch in config.branches.items():
        where = f"model.branches.{name}.weights"
        if branch.weights in PUBLISHED and branch.stem == "small":
            faults.append(f"{where}: {branch.weights} has a 7 x 7 stem, and this branch stem: small; they do not fit")
        elif branch.weights in PUBLISHED:
            there = published(branch.backbone) if branch.backbone in RESNETS else ["DEFAULT"]
            if branch.weights not in there:
                known = f"must be {' or '.join(there)}" if there else "there are no published ones"
                faults.append(f"{where}: {known} for {branch.backbone}, got {branch.weights}")
    return faults + missing_weights(config.branches)
