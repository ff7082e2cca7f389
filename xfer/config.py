"""A Recipe: data, model, training and quantization of one run, each a section with plain keys.

Only `build_*` functions read these sections; the classes behind them take plain arguments. What a recipe leaves to
other models (`model.from`, `data.image_size`) is read once, here: in memory and in a run folder it is complete.
"""

import re
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticKnownError

from shards.config import LEAVE_ONE_OUT, DataConfig
from shards.faults import shown
from shards.settings import ConfigError, Location, Strict, absolute, read_yaml, replace

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Depth = Literal["all", "layer1", "layer2", "layer3", "layer4", "none"]
Group = Literal["stem", "layer1", "layer2", "layer3", "layer4", "project", "head", "other"]
PUBLISHED = ("IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT")  # names of torchvision's weights
Weights = Annotated[str, AfterValidator(lambda given: given if given in PUBLISHED else absolute(given))]
RESNETS = ("resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
IMAGENET_SIZE = 224  # that torchvision's weights were made at
SIZE = DataConfig.model_fields["image_size"].default
TIMM = "timm/"  # begins the name of a backbone that is timm's
PROBE_IMAGES = 4096
RATES = {"sgd": 0.02, "adamw": 1e-3}
PRETRAINED_RATES = {"sgd": 0.004, "adamw": 1e-4}  # of a model that begins as its probe
LEFT_OUT = "left_out"  # fusion weights that are chosen by sources left out (xfer/transfer/weights.py)
SET_APART = 0.1  # of the data, where fusion weights are learned on what is held out
TILE_SCALE = (0.7, 1.4)  # area of training crops, of a tile's: a longer side of 0.84 to 1.18 tiles in a square image
PROBES = ("feature", "quant")  # modes that train nothing after the probe
Bits = Literal[2, 3, 4, 5, 6, 7, 8, 32]
HeadKind = Literal["linear", "fcos", "retinanet", "faster_rcnn", "fpn", "lraspp", "deeplabv3"]
TASKS: dict[HeadKind, str] = {
    "linear": "classification",
    "fcos": "detection",
    "retinanet": "detection",
    "faster_rcnn": "detection",
    "fpn": "segmentation",
    "lraspp": "segmentation",
    "deeplabv3": "segmentation",
}
"""What a head is for, by its kind; named as manifests name it."""
TrackerName = Literal["tensorboard", "mlflow", "wandb"]


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
    width: int = Field(default=256, ge=8, le=4096)  # common channels d of the projected branches
    weights: FusionWeights | None = None  # see ModelConfig
    learn: Literal["held_out", "train"] | None = None  # w is learned beside the model, on this (xfer/learn.py)
    prune: float | None = Field(default=None, gt=0, lt=0.5)  # weight below which a branch is no part of the model

    @property
    def given(self) -> dict[str, float] | None:
        """w by branch, if the recipe says it."""
        return self.weights if isinstance(self.weights, dict) else None


class HeadConfig(Strict):
    """What stands on the fused features; it says what the model is for."""

    kind: HeadKind = "linear"  # classifier; fcos, retinanet, faster_rcnn: detectors; fpn, lraspp, deeplabv3: segmenters


class TileConfig(Strict):
    """Large images are seen in tiles (xfer/tiles.py)."""

    size: int = Field(ge=64, le=4096, multiple_of=32)  # pixels of a tile's side, and of images in training
    overlap: int = Field(default=128, ge=0, multiple_of=64)  # pixels that neighbours share

    @model_validator(mode="after")
    def _goes_on(self) -> "TileConfig":
        if self.overlap >= self.size:
            raise ValueError(f"overlap: must be less than size, {self.size}, got {self.overlap}")
        return self


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

    @property
    def task(self) -> str:
        """classification, detection or segmentation, as manifests say it."""
        return TASKS[self.head.kind]

    @property
    def is_dense(self) -> bool:
        """Whether it answers for places in an image, and not for the image."""
        return self.head.kind != "linear"

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
        kind, detects = self.head.kind, self.task == "detection"
        if kind in ("fcos", "retinanet") and self.fusion.width % 32:
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


class TeacherConfig(Strict):
    """A trained model whose answers are learned from too."""

    from_: Location = Field(alias="from")  # a run or a bundle with the same classes
    share: float = Field(default=0.5, gt=0, le=1)  # of the loss that is learning from it


class TrainConfig(Strict):
    """The optimization: counted in steps of one global batch each."""

    steps: int = Field(default=200, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=RATES["sgd"], gt=0)  # peak, for the global batch as given; see Recipe
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)  # not on norms and biases
    layer_decay: float = Field(default=1.0, gt=0, le=1)  # learning rate of a layer, of the one above it
    warmup: int = Field(default=10, ge=0)  # steps of linear warm-up
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate after the warm-up; cosine falls to zero
    ema: float | None = Field(default=None, gt=0, lt=1)  # decay of a moving average of the weights, which is the model
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    clip_norm: float | None = Field(default=None, gt=0)  # largest gradient norm
    teacher: TeacherConfig | None = None  # distillation
    freeze_batchnorm: bool = False  # BatchNorm in evaluation mode; see Recipe
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch: int | None = Field(default=None, ge=1)  # largest batch on one worker; more is accumulated
    select: Literal["last", "best"] = "last"  # which checkpoint is the model; best: on validation; see Recipe
    patience: int | None = Field(default=None, ge=1)  # steps without a better one after which training ends
    evaluate_every: int = Field(default=100, ge=1)
    save_every: int = Field(default=100, ge=1)
    log_every: int = Field(default=10, ge=1)
    keep: int = Field(default=2, ge=1)  # checkpoints kept
    keep_evaluated: bool = False  # and every one that was evaluated, which are all saved then
    probe_images: int | None = Field(default=None, ge=0)  # to fit the probe of pretrained branches on; see Recipe
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)  # of the initial weights; data.seed is the order's


class TransferConfig(Strict):
    """How pretrained branches are moved to the data."""

    mode: Literal["full", "staged", "feature", "quant"] = "full"
    stage_rate: float = Field(default=0.3, gt=0, le=1)  # staged: a stage's learning rate, of the one before
    l2_sp: float = Field(default=0.0, ge=0)  # pull of the branches to the weights they began with, for weight decay
    head: Literal["fit", "keep"] = "fit"  # keep: with the classes of model.from, and their rows of its head


def _bytes(given: Any) -> Any:
    """`4MB`, `500kB` or `2MiB` as a number of bytes; what is no text is left to the schema."""
    if not isinstance(given, str):
        return given
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([kKMG]i?)?B?", given.strip())
    if not found:
        raise ValueError(f"must be a size such as 4MB, 500kB, 2MiB or a number of bytes, got {shown(given)}")
    unit = found[2] or ""
    return round(float(found[1]) * (1024 if unit.endswith("i") else 1000) ** " KMG".index(unit[:1].upper() or " "))


Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1)]


class QuantizeConfig(Strict):
    """Storage bits of convolution and linear weights: by layer group, by layer, or as few bytes or as little loss as
    asked for leave room. One of these ways.
    """

    bits: Bits = 8  # of every group not named below; 32: left in float
    groups: dict[Group, Bits] = Field(default_factory=dict)
    layers: dict[str, Bits] = Field(default_factory=dict)  # of every layer by its name, as a bundle's bits.yaml has it
    budget: Bytes | None = None  # of the weights file: each layer gets the bits that serve the model best
    max_drop: float | None = Field(default=None, gt=0, lt=100)  # the smallest model that loses no more points
    calibration: int = Field(default=256, ge=1)  # training images for sensitivities and the affine correction
    correct: bool = True  # match each convolution's channel mean and deviation to the float model

    @property
    def searches(self) -> bool:
        """Whether widths are chosen by what the layers can bear, and not given."""
        return self.budget is not None or self.max_drop is not None

    @model_validator(mode="after")
    def _one_way(self) -> "QuantizeConfig":
        ways = {
            "bits": f"bits {self.bits}" if self.bits != 8 else "",
            "groups": "groups" if self.groups else "",
            "layers": "layers" if self.layers else "",
            "budget": "" if self.budget is None else f"budget {self.budget:,} bytes",
            "max_drop": "" if self.max_drop is None else f"max_drop {self.max_drop:g}",
        }
        given = [said for said in ways.values() if said]
        plain = bool(ways["bits"] or ways["groups"])
        if plain + sum(bool(ways[name]) for name in ("layers", "budget", "max_drop")) > 1:
            raise ValueError(
                f"must say the bits in one way: bits with groups, layers, budget or max_drop; got {' and '.join(given)}"
            )
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


class Recipe(Strict):
    """Data + model + training: what one process can run, without a cluster."""

    name: Name = "run"
    output: Location = "runs"  # run folder: <output>/<name>
    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    transfer: TransferConfig = TransferConfig()
    quantize: QuantizeConfig = QuantizeConfig()
    track: tuple[TrackerName, ...] = ()  # programs that get the rows of metrics.jsonl too

    @model_validator(mode="after")
    def _sees_what_its_weights_were_made_at(self) -> "Recipe":
        """Unless data.image_size is given."""
        size = None if "image_size" in self.data.model_fields_set else made_at(self.model)
        if size is None:
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"image_size": size})})

    @model_validator(mode="after")
    def _sets_apart_what_weights_are_learned_on(self) -> "Recipe":
        """Unless data.set_apart is given."""
        if self.model.fusion.learn != "held_out" or "set_apart" in self.data.model_fields_set:
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"set_apart": SET_APART})})

    @model_validator(mode="after")
    def _sees_whole_images_where_places_count(self) -> "Recipe":
        """Unless data.resize is given. A detector or segmenter never sees a part of an image for the whole."""
        if not self.model.is_dense or "resize" in self.data.model_fields_set:
            return self
        return self.model_copy(update={"data": self.data.model_copy(update={"resize": "letterbox"})})

    @model_validator(mode="after")
    def _is_trained_on_tiles(self) -> "Recipe":
        """Unless data.train_size and data.augment.scale are given: on crops of about the scale that tiles have."""
        if self.model.tile is None:
            return self
        tile, given = self.model.tile.size, self.data.augment.model_fields_set
        sizes = {branch.size or self.data.image_size for branch in self.model.branches.values()}
        if wrong := sorted(size for size in sizes if size % 32):
            raise ValueError(
                f"data.image_size: must be a multiple of 32 with model.tile, as a branch's size, got {wrong[0]}"
            )
        if max(sizes) <= tile:
            raise ValueError(
                f"model.tile.size: must be less than what a branch sees (data.image_size), {max(sizes)}, got {tile}"
            )
        size = self.data.train_size or tile
        filled: dict[str, Any] = {"train_size": size}
        if "scale" not in given:
            share = (size / self.data.image_size) ** 2
            scale = tuple(min(1.0, factor * share) for factor in TILE_SCALE)
            filled["augment"] = self.data.augment.model_copy(update={"scale": scale})
        return self.model_copy(update={"data": self.data.model_copy(update=filled)})

    @model_validator(mode="after")
    def _is_trained_as_it_begins(self) -> "Recipe":
        """A learning rate that is not given suits the optimizer and what the model begins with, and detectors and
        segmenters are trained with AdamW (benchmarks/results/tasks-rates.md). A model that begins as the probe of
        pretrained branches is, unless told otherwise, the best checkpoint, so no worse than its probe by what is held
        out; and its BatchNorm stays still: its statistics are of many more images, and those of a few sources do not
        hold for others (Gulrajani & Lopez-Paz, In Search of Lost Domain Generalization, ICLR 2021, appendix D.1;
        benchmarks/results/batchnorm.md).
        """
        given, dense = self.train.model_fields_set, self.model.is_dense
        whole = not self.model.new_branches and self.train.probe_images != 0
        optimizer = "adamw" if dense and "optimizer" not in given else self.train.optimizer
        rates = PRETRAINED_RATES if whole and not dense else RATES
        filled: dict[str, Any] = {"learning_rate": rates[optimizer], "freeze_batchnorm": whole, "optimizer": optimizer}
        if whole and self.steps and self.data.validation != 0:
            filled["select"] = "best"
        changes = {key: value for key, value in filled.items() if key not in given}
        return self.model_copy(update={"train": self.train.model_copy(update=changes)}) if changes else self

    @field_validator("track")
    @classmethod
    def _each_once(cls, given: tuple[TrackerName, ...]) -> tuple[TrackerName, ...]:
        if len(set(given)) < len(given):
            raise ValueError(f"must name each tracker once, got {', '.join(given)}")
        return given

    @property
    def folder(self) -> Path:
        return Path(self.output) / self.name

    @property
    def steps(self) -> int:
        """Steps of the whole run; with transfer.mode: feature or quant, nothing is trained after the probe."""
        return 0 if self.transfer.mode in PROBES else self.train.steps

    @property
    def selects_by_left_out(self) -> bool:
        """Whether the step that is the model is chosen by sources that runs never saw (xfer/folds.py)."""
        return self.train.select == "best" and self.data.validation == LEAVE_ONE_OUT

    @property
    def learns_by_folds(self) -> bool:
        """Whether fusion weights are what the runs that leave a source out learned on it."""
        return self.model.fusion.learn == "held_out" and self.data.validation == LEAVE_ONE_OUT

    @property
    def pretrained(self) -> bool:
        """Whether a branch begins with weights from elsewhere."""
        return self.model.from_ is not None or any(branch.weights for branch in self.model.branches.values())

    @property
    def probe_images(self) -> int | None:
        """How many training images the linear probe is fitted on; None: all, as transfer.mode: feature and quant do
        unless told otherwise. 0: there is no probe.
        """
        if not self.pretrained or self.model.is_dense:
            return 0
        whole = self.transfer.mode in PROBES
        return self.train.probe_images if self.train.probe_images is not None else None if whole else PROBE_IMAGES


def with_widths(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with its bits given by these keys of `quantize`, in whatever way it gave them before; bits and groups
    go together. No changes: as it was. Raises ConfigError.
    """
    ways: dict[str, Any] = {"layers": {}, "budget": None, "max_drop": None}
    if changes.keys() - {"bits", "groups"}:
        ways |= {"bits": QuantizeConfig().bits, "groups": {}}
    wanted = {**ways, **changes} if changes else {}
    return replace(recipe, {f"quantize.{name}": value for name, value in wanted.items()})
