"""A Recipe: data, model, training and quantization of one run, each a section with plain keys.

Only `build_*` functions read these sections; the classes behind them take plain arguments. What a recipe leaves to
other models (`model.from`, `data.image_size`) is read once, here: in memory and in a run folder it is complete.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from shards.config import LEAVE_ONE_OUT, DataConfig
from shards.faults import shown
from shards.settings import Location, Strict, is_url, replace
from xfer.model_config import ModelConfig, Name, made_at

Group = Literal["stem", "layer1", "layer2", "layer3", "layer4", "project", "head", "other"]
PROBE_IMAGES = 4096
RATES = {"sgd": 0.02, "adamw": 1e-3}
PRETRAINED_RATES = {"sgd": 0.004, "adamw": 1e-4}  # of a model that begins as its probe
SET_APART = 0.1  # of the data, where fusion weights are learned on what is held out
TILE_SCALE = (0.7, 1.4)  # area of training crops, of a tile's: a longer side of 0.84 to 1.18 tiles in a square image
PROBES = ("feature", "quant")  # modes that train nothing after the probe
Bits = Literal[2, 3, 4, 5, 6, 7, 8, 32]
TrackerName = Literal["tensorboard", "mlflow", "wandb"]


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
    wise_ft: float = Field(default=1.0, gt=0, le=1)  # trained part of the model's weights; the rest are those of step 0
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
    finish: int = Field(default=0, ge=0)  # steps that train codes, scales and biases towards the float model's answers
    coded: bool = False  # codes are written shorter without loss, in layers where they are; a budget counts them so
    correct: bool = True  # match each convolution's channel mean and deviation to the float model

    @property
    def searches(self) -> bool:
        """Whether widths are chosen by what the layers can bear, and not given."""
        return self.budget is not None or self.max_drop is not None

    @model_validator(mode="after")
    def _sizes_are_known(self) -> "QuantizeConfig":
        if self.coded and self.finish and self.budget is not None:
            raise ValueError(
                "coded: must be false for a budget with finish, which trains codes, so their coded size is not known "
                "before; give bits, layers or max_drop, or leave finish out"
            )
        return self

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

    @field_validator("output")
    @classmethod
    def _on_a_file_system(cls, given: str) -> str:
        if is_url(given):
            raise ValueError(f"must be a folder, got {given}: a run renames and appends there; data can be at a URL")
        return given

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
