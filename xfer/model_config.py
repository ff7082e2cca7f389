"""What a model is made of: branches, their fusion and the head on top, and where each begins.

What a recipe leaves to other models (`model.from`, the size of images) is read once, here and in config.py.
"""

from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticKnownError

from shards.config import DataConfig
from shards.faults import shown
from shards.settings import ConfigError, Location, Strict, absolute, read_yaml

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Depth = Literal["all", "layer1", "layer2", "layer3", "layer4", "none"]
PUBLISHED = ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT")  # names of torchvision's weights
Weights = Annotated[str, AfterValidator(lambda given: given if given in PUBLISHED else absolute(given))]
RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
IMAGENET_SIZE = 224  # that torchvision's weights were made at
SIZE = DataConfig.model_fields["image_size"].default
TIMM = "timm/"  # begins the name of a backbone that is timm's
LEFT_OUT = "left_out"  # fusion weights that are chosen by sources left out (xfer/transfer/weights.py)
HeadKind = Literal["linear", "labels", "fcos", "retinanet", "faster_rcnn", "fpn", "lraspp", "deeplabv3"]
TASKS: dict[HeadKind, str] = {
    "linear": "classification",
    "labels": "classification",
    "fcos": "detection",
    "retinanet": "detection",
    "faster_rcnn": "detection",
    "fpn": "segmentation",
    "lraspp": "segmentation",
    "deeplabv3": "segmentation",
}
"""What a head is for, by its kind; named as manifests name it."""
FieldKind = Literal["category", "number", "text"]
NAMES_DEFAULTS = {"encoder": "hash-ngram", "delta_penalty": 0.1}  # of the head labels


def _known(backbone: str) -> str:
    if backbone in RESNETS or (backbone.startswith(TIMM) and backbone != TIMM):
        return backbone
    raise PydanticKnownError("literal_error", {"expected": f"{', '.join(map(repr, RESNETS))} or '{TIMM}NAME'"})


Backbone = Annotated[str, AfterValidator(_known)]


def model_branch(weights: str | None) -> tuple[Path, str | None] | None:
    """The folder of a run or a bundle, and the branch of it, that `weights` names as FOLDER or FOLDER:BRANCH; None if
    it names a file or published weights.
    """
    if weights is None or weights in PUBLISHED:
        return None
    if Path(weights).is_dir():
        return Path(weights), None
    folder, _, branch = weights.rpartition(":")
    return (Path(folder), branch) if folder and Path(folder).is_dir() else None


def missing_weights(branches: Mapping[str, "BranchConfig"]) -> list[str]:
    """A fault for each branch whose weights are neither published nor there."""
    return [
        f"model.branches.{name}.weights: no such file, run or bundle: {branch.weights}"
        for name, branch in branches.items()
        if branch.weights
        and branch.weights not in PUBLISHED
        and not model_branch(branch.weights)
        and not Path(branch.weights).is_file()
    ]


class BranchConfig(Strict):
    """One backbone of the fusion model."""

    backbone: Backbone = "resnet18"  # a ResNet, or timm/NAME
    weights: Weights | None = None  # a file of torchvision's, the name of published ones, or another model's branch
    stem: Literal["imagenet", "small"] = "imagenet"  # small: 3 x 3, stride 1, no max-pool
    size: int | None = Field(default=None, ge=16, le=2048)  # pixels this branch sees; none: data.image_size
    train_from: Depth = "all"  # first stage that is trained; "none" freezes the branch

    @model_validator(mode="after")
    def _stem_is_ours(self) -> "BranchConfig":
        if self.stem == "small" and self.backbone not in RESNETS:
            raise ValueError(f"stem: must be left out for {self.backbone}, which has its own")
        return self


def _left_out(given: Any) -> Any:
    if given != LEFT_OUT:
        raise ValueError(f"must be a weight for each branch, such as {{a: 1, b: 2}}, or {LEFT_OUT}, got {shown(given)}")
    return given


FusionWeights = Annotated[
    Annotated[dict[str, Annotated[float, Field(ge=0)]], Tag("<by branch>")]
    | Annotated[Literal["left_out"], BeforeValidator(_left_out), Tag("<word>")],
    Discriminator(lambda given: "<by branch>" if isinstance(given, dict) else "<word>"),
]


class FusionConfig(Strict):
    """How the branches' features become one."""

    kind: Literal["wsum", "gate", "input_gate", "attention", "late", "concat"] = "wsum"
    width: int | None = Field(default=256, ge=8, le=4096)
    """Common channels d of the projected branches. None: those of the only branch, which is not projected."""
    weights: FusionWeights | None = None  # see ModelConfig
    learn: Literal["held_out", "train"] | None = None  # w is learned beside the model, on this (xfer/learn.py)
    prune: float | None = Field(default=None, gt=0, lt=0.5)  # weight below which a branch is no part of the model

    @property
    def given(self) -> dict[str, float] | None:
        """w by branch, if the recipe says it."""
        return self.weights if isinstance(self.weights, dict) else None


class HeadConfig(Strict):
    """What stands on the fused features; it says what the model is for."""

    kind: HeadKind = "linear"  # and labels: classifiers; fcos, ...: detectors; fpn, ...: segmenters
    encoder: Literal["hash-ngram"] | None = None  # of labels: what makes vectors of names (xfer/encoders.py)
    delta_penalty: float | None = Field(default=None, ge=0, le=100)  # of labels (xfer/heads/label_table.py)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("kind") != "labels":
            return given
        return {**NAMES_DEFAULTS, **{key: value for key, value in given.items() if value is not None}}

    @model_validator(mode="after")
    def _names_are_of_labels(self) -> "HeadConfig":
        wrong = [key for key in NAMES_DEFAULTS if self.kind != "labels" and getattr(self, key) is not None]
        if wrong:
            raise ValueError(
                f"{wrong[0]}: must be left out for the head {self.kind}, which has no table of names; "
                f"got {getattr(self, wrong[0])}"
            )
        return self


class TileConfig(Strict):
    """Large images are seen in tiles (xfer/tiles.py)."""

    size: int = Field(ge=64, le=4096, multiple_of=32)  # pixels of a tile's side, and of images in training
    overlap: int = Field(default=128, ge=0, multiple_of=64)  # pixels that neighbours share

    @model_validator(mode="after")
    def _goes_on(self) -> "TileConfig":
        if self.overlap >= self.size:
            raise ValueError(f"overlap: must be less than size, {self.size}, got {self.overlap}")
        return self


class SideConfig(Strict):
    """What is known of a sample beside its image, by the names of `batch.side`, and what each is."""

    fields: dict[str, FieldKind] = Field(min_length=1)
    dropout: float = Field(default=0.3, ge=0, lt=1)  # part of the training samples that are seen without
    leak_limit: float = Field(default=0.8, ge=0, le=1)  # of what the fields alone say of the class; 1: any


class ModelConfig(Strict):
    """Branches, their fusion, and the head on top. `from`: a run or a bundle to begin with; its branches and its
    fusion are those of this model unless they are given here.
    """

    from_: Location | None = Field(default=None, alias="from")
    branches: dict[Name, BranchConfig] = Field(min_length=1)
    fusion: FusionConfig = FusionConfig()
    head: HeadConfig = HeadConfig()
    dropout: float = Field(default=0.0, ge=0, lt=1)
    tile: TileConfig | None = None  # of images in evaluation and prediction; none: each is seen whole
    side: SideConfig | None = None  # side inputs that the model sees beside images (xfer/side.py)

    @property
    def task(self) -> str:
        """classification, detection or segmentation, as manifests say it."""
        return TASKS[self.head.kind]

    @property
    def is_dense(self) -> bool:
        """Whether it answers for places in an image, and not for the image."""
        return self.task != "classification"

    @property
    def taken_from(self) -> list[Path]:
        """The folders of runs and bundles that parts of it begin as."""
        named = [found[0] for branch in self.branches.values() if (found := model_branch(branch.weights))]
        return list(dict.fromkeys([*([Path(self.from_)] if self.from_ else []), *named]))

    @property
    def chooses_fusion(self) -> bool:
        """Whether the probe chooses the fusion weights, by left-out sources: where it is asked for, and where none are
        given or taken from another model and every branch is pretrained.
        """
        if self.fusion.weights == LEFT_OUT:
            return True
        several = self.fusion.kind != "concat" and len(self.branches) > 1 and not self.is_dense
        several = several and self.fusion.learn is None
        return several and self.fusion.weights is None and self.from_ is None and not self.new_branches

    @property
    def new_branches(self) -> list[str]:
        """The branches that begin with no weights from elsewhere."""
        taken = _branches_of(Path(self.from_)) if self.from_ is not None else ()
        return sorted(name for name, branch in self.branches.items() if not branch.weights and name not in taken)

    @model_validator(mode="before")
    @classmethod
    def _as_where_it_comes_from(cls, given: Any) -> Any:
        """Sections that are not given are read here, once: a recipe in memory or in a run folder is complete."""
        if not isinstance(given, dict) or not isinstance(given.get("from"), str):
            return given
        missing = {"branches", "fusion"} - {name for name, value in given.items() if value is not None}
        if not missing:
            return given
        try:
            source = read_yaml(Path(absolute(given["from"])) / "recipe.yaml")["model"]
            branches = {
                name: {key: branch[key] for key in ("backbone", "size", "stem") if key in branch}
                for name, branch in source["branches"].items()
            }
        except (ConfigError, KeyError, TypeError, AttributeError):
            raise ValueError(f"from: no run and no bundle: {absolute(given['from'])}") from None
        fusion = {key: value for key, value in source.get("fusion", {}).items() if key not in ("learn", "prune")}
        if set(given.get("branches") or branches) != set(branches) or fusion.get("weights") == LEFT_OUT:
            fusion.pop("weights", None)
        filled = {"branches": branches, "fusion": fusion}
        return {**given, **{name: filled[name] for name in missing}}

    @model_validator(mode="after")
    def _head_suits_the_features(self) -> "ModelConfig":
        if self.is_dense and self.fusion.kind in ("late", "concat"):
            why = {
                "late": "late pools the answers of a linear classifier for each branch",
                "concat": "concat has no weight vector",
            }[self.fusion.kind]
            raise ValueError(
                f"fusion.kind: must be wsum, gate, input_gate or attention for the head {self.head.kind}, which reads "
                f"one map a level, got {self.fusion.kind}: {why}"
            )
        if self.is_dense and self.fusion.weights == LEFT_OUT:
            raise ValueError(
                f"fusion.weights: {LEFT_OUT} chooses by the linear probe, which {self.head.kind} has none of"
            )
        if self.is_dense and self.side:
            raise ValueError(
                f"side: must be left out for the head {self.head.kind}; only classifiers take side inputs so far"
            )
        if self.head.kind == "labels" and self.fusion.kind == "late":
            raise ValueError(
                "fusion.kind: must not be late for the head labels, which knows the direction of one feature: late "
                "pools the answers of a linear classifier for each branch"
            )
        if self.fusion.width is None and (self.is_dense or len(self.branches) > 1):
            what = f"the head {self.head.kind}" if self.is_dense else f"{len(self.branches)} branches"
            raise ValueError(
                f"fusion.width: none leaves the only branch of a classifier as it is; {what} must have a number"
            )
        kind, detects = self.head.kind, self.task == "detection"
        if kind in ("fcos", "retinanet") and self.fusion.width and self.fusion.width % 32:
            raise ValueError(f"fusion.width: must be a multiple of 32 for the head {kind}, got {self.fusion.width}")
        if detects and self.dropout:
            raise ValueError(f"dropout: must be left out for the head {kind}, which has none, got {self.dropout:g}")
        return self

    @model_validator(mode="after")
    def _tiles_suit_the_branches(self) -> "ModelConfig":
        others = sorted({branch.backbone for branch in self.branches.values()} - set(RESNETS))
        if self.tile and others:
            raise ValueError(
                f"tile: must be left out for {', '.join(others)}; only a ResNet's maps fit together so far"
            )
        return self

    @model_validator(mode="after")
    def _there_are_weights_to_learn_or_prune_by(self) -> "ModelConfig":
        for key in ("learn", "prune"):
            given = getattr(self.fusion, key)
            if given is not None and self.fusion.kind == "concat":
                raise ValueError(f"fusion.{key}: must be left out for concat, which has no weight vector, got {given}")
            if given is not None and len(self.branches) < 2:
                raise ValueError(f"fusion.{key}: needs two branches or more to choose between, got {given}")
        if self.fusion.prune and self.side and self.fusion.kind == "late":
            raise ValueError(
                "fusion.prune: must be left out for late with side inputs, which move the channels of every branch, "
                f"got {self.fusion.prune:g}"
            )
        if self.fusion.prune and self.is_dense and len({branch.size for branch in self.branches.values()}) > 1:
            raise ValueError(
                f"fusion.prune: must be left out for the head {self.head.kind} where branches see other sizes, for "
                f"maps are brought to the grid of the first branch, got {self.fusion.prune:g}"
            )
        return self

    @model_validator(mode="after")
    def _weights_suit_the_branches(self) -> "ModelConfig":
        weights = self.fusion.weights
        if weights is None:
            return self
        if self.fusion.kind == "concat":
            raise ValueError(
                "fusion.weights: must not be given for concat, which has no weight vector; use wsum or gate"
            )
        if weights == LEFT_OUT:
            if len(self.branches) < 2:
                raise ValueError(f"fusion.weights: {LEFT_OUT} needs two branches or more to choose between")
            if new := self.new_branches:
                raise ValueError(
                    f"fusion.weights: {LEFT_OUT} chooses by a probe of pretrained branches, and {', '.join(new)} "
                    "has no weights"
                )
            return self
        if set(weights) != set(self.branches):
            known, named = ", ".join(sorted(self.branches)), ", ".join(sorted(weights))
            raise ValueError(f"fusion.weights: must name the branches {known}, got {named}")
        if sum(weights.values()) <= 0:
            raise ValueError("fusion.weights: must have a weight above 0")
        return self


def made_at(model: ModelConfig) -> int | None:
    """The image size that what a model begins with was made at: that of `from`, or the largest of its branches'
    weights. None: it begins with nothing, or that is not known.
    """
    if model.from_ is not None:
        return _image_size(Path(model.from_))
    sizes = [_branch_made_at(branch) for branch in model.branches.values()]
    return max((size for size in sizes if size is not None), default=None)


def _branch_made_at(branch: BranchConfig) -> int | None:
    if branch.weights is None:
        return None
    if theirs := model_branch(branch.weights):
        return _image_size(theirs[0])
    if branch.backbone in RESNETS:
        return IMAGENET_SIZE if branch.stem == "imagenet" else None
    try:
        known = import_module("timm.models").get_pretrained_cfg(branch.backbone.removeprefix(TIMM))
    except ImportError:
        return None
    return known and max(known.input_size[1:])


def _image_size(folder: Path) -> int | None:
    """That of a run or a bundle; None if the folder is neither."""
    try:
        recipe = read_yaml(folder / "recipe.yaml")
        size = recipe["image_size"] if "image_size" in recipe else recipe["data"].get("image_size", SIZE)
    except (ConfigError, KeyError, AttributeError):
        return None
    return size if isinstance(size, int) else None


def _branches_of(folder: Path) -> Collection[str]:
    """The names of a run's or a bundle's branches; none if the folder is neither."""
    try:
        return set(read_yaml(folder / "recipe.yaml")["model"]["branches"])
    except (ConfigError, KeyError, TypeError):
        return ()
