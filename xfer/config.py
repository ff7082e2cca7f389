"""A Recipe: data, model, training and quantization of one run, each a section with plain keys.

Only `build_*` functions read these sections; the classes behind them take plain arguments.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shards.config import DataConfig
from shards.settings import Location, Strict

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Stage = Literal["all", "layer1", "layer2", "layer3", "layer4", "none"]
Group = Literal["stem", "layer1", "layer2", "layer3", "layer4", "project", "head"]
Bits = Literal[2, 3, 4, 5, 6, 7, 8, 32]


class BranchConfig(Strict):
    """One ResNet of the fusion model."""

    backbone: Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"] = "resnet18"
    weights: Location | None = None  # a .safetensors or .pth file of a torchvision ResNet; none: random
    size: int | None = Field(default=None, ge=16, le=2048)  # pixels this branch sees; none: data.image_size
    train_from: Stage = "all"  # first stage that is trained; "none" freezes the branch


class FusionConfig(Strict):
    """How the branches' features become one."""

    kind: Literal["wsum", "gate", "concat"] = "wsum"
    width: int = Field(default=256, ge=8, le=4096)  # common channels d of the projected branches
    weights: dict[str, Annotated[float, Field(ge=0)]] | None = None  # by branch; none: equal


class ModelConfig(Strict):
    """Branches, their fusion, and the classifier on top."""

    branches: dict[Name, BranchConfig] = Field(min_length=1)
    fusion: FusionConfig = FusionConfig()
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _weights_name_the_branches(self) -> "ModelConfig":
        weights = self.fusion.weights
        if weights is None:
            return self
        if set(weights) != set(self.branches):
            known, named = ", ".join(sorted(self.branches)), ", ".join(sorted(weights))
            raise ValueError(f"fusion.weights: must name the branches {known}, got {named}")
        if sum(weights.values()) <= 0:
            raise ValueError("fusion.weights: must have a weight above 0")
        if self.fusion.kind == "concat":
            raise ValueError(
                "fusion.weights: must not be given for concat, which has no weight vector; use wsum or gate"
            )
        return self


class TrainConfig(Strict):
    """The optimization: counted in steps of one global batch each."""

    steps: int = Field(default=200, ge=1)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.02, gt=0)  # peak, for the global batch as given
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)  # not on norms and biases
    warmup: int = Field(default=10, ge=0)  # steps of linear warm-up; a cosine to zero follows
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    clip_norm: float | None = Field(default=None, gt=0)  # largest gradient norm
    freeze_batchnorm: bool = False  # BatchNorm in evaluation mode
    precision: Literal["fp32", "bf16"] = "fp32"
    micro_batch: int | None = Field(default=None, ge=1)  # largest batch on one worker; more is accumulated
    evaluate_every: int = Field(default=100, ge=1)
    save_every: int = Field(default=100, ge=1)
    log_every: int = Field(default=10, ge=1)
    keep: int = Field(default=2, ge=1)  # checkpoints kept
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)  # of the initial weights; data.seed is the order's


class QuantizeConfig(Strict):
    """Storage bits of convolution and linear weights, by layer group."""

    bits: Bits = 8  # of every group not named below; 32: left in float
    groups: dict[Group, Bits] = Field(default_factory=dict)
    calibration: int = Field(default=256, ge=1)  # training images for the affine correction
    correct: bool = True  # match each convolution's channel mean and deviation to the float model


class Recipe(Strict):
    """Data + model + training: what one process can run, without a cluster."""

    name: Name = "run"
    output: Location = "runs"  # run folder: <output>/<name>
    data: DataConfig
    model: ModelConfig
    train: TrainConfig = TrainConfig()
    quantize: QuantizeConfig = QuantizeConfig()

    @property
    def folder(self) -> Path:
        return Path(self.output) / self.name
