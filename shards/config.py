"""The `data` section of a recipe: which shards, in which blend, cut into which batches.

pydantic stops here: `open_data` and `train_stream` read these values once, everything below takes plain arguments.
Faults that need no look at the disk (half-given weights, unknown stages) are refused here; the rest in `open_data`.
"""

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shards.labels import Labels
from shards.settings import Location, Strict, is_url

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


def _ordered(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"expected two fractions of the image's area, 0 < low <= high <= 1, not {list(scale)}")
    return scale


def _share(share: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= share[0] < share[1] <= 1:
        raise ValueError(f"expected two fractions, 0 <= low < high <= 1, not {list(share)}")
    return share


LEAVE_ONE_OUT = "leave_one_source_out"


def _held_out(given: Any) -> Any:
    """One message for all three forms, where pydantic would give one for each."""
    if isinstance(given, (int, float)) and not isinstance(given, bool) and 0 <= given < 1:
        return given
    if given == LEAVE_ONE_OUT:
        return given
    if isinstance(given, (list, tuple)) and given and all(type(name) is str for name in given):
        return tuple(given)
    raise ValueError(f"must be a fraction from 0 to below 1, a list of source names, or {LEAVE_ONE_OUT}, got {given!r}")


HeldOut = Annotated[float | Literal["leave_one_source_out"] | tuple[str, ...], BeforeValidator(_held_out)]


class WhereConfig(Strict):
    """Which samples of a built data set count: several sources can share its shards."""

    hash: Annotated[tuple[float, float], AfterValidator(_share)] | None = None
    """Samples whose key hashes into [low, high): [0, 0.9] and [0.9, 1] are disjoint and together complete."""
    classes: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Samples of these classes; the others are no classes of the source any more."""

    @model_validator(mode="after")
    def _says_something(self) -> "WhereConfig":
        if self.hash is None and self.classes is None:
            raise ValueError("expected `hash`, `classes`, or both")
        return self


class SourceConfig(Strict):
    """One built data set, or a part of it."""

    path: str = Field(min_length=1)
    """Folder of shards: relative to `data.root`, absolute, or a URL (s3://, https://, gs://, ...)."""
    split: str = "train"
    """Which split of the folder: `<split>.manifest.json` must be there."""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Share of the samples, relative to the other sources' weights. None everywhere: share by number of samples."""
    score: float = Field(default=0.0, allow_inf_nan=False)
    """How much `tilt` favours this source, for shares by number of samples."""
    where: WhereConfig | None = None
    """Which of its samples; None: all."""


class AugmentConfig(Strict):
    """What training does to an image; evaluation never does any of it."""

    scale: Annotated[tuple[float, float], AfterValidator(_ordered)] = (0.6, 1.0)
    """The crop's area as a fraction of the image's, drawn evenly between the two."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right flip."""
    color: float = Field(default=0.0, ge=0, le=1)
    """Strength of brightness, contrast and saturation jitter: each factor is drawn from 1 - color to 1 + color."""
    policy: Literal["trivial", "rand"] | None = None
    """After the rest, as torchvision has them: TrivialAugment, one drawn change, or RandAugment, two of them."""
    mixup: float | None = Field(default=None, gt=0, le=100)
    """Blends each image with its neighbour in the batch; their shares are drawn from Beta(mixup, mixup)."""
    cutmix: float | None = Field(default=None, gt=0, le=100)
    """Puts a box of the neighbour into each image, its area drawn from Beta(cutmix, cutmix). With mixup too: either."""


class StageConfig(Strict):
    """Weights from a position on. A source's samples go on where they were: none is lost or repeated."""

    start: int = Field(gt=0)
    """Position, in samples of all sources together, from which these weights hold."""
    weights: dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    """Weight of each source; one that is not named gets no samples in this stage."""

    @model_validator(mode="after")
    def _some_weight(self) -> "StageConfig":
        if not any(self.weights.values()):
            raise ValueError("weights: at least one must be more than 0")
        return self


class CacheConfig(Strict):
    """Where shards of remote sources are kept; local ones are read in place."""

    folder: Location = "~/.cache/xfer/shards"
    """Shared by all processes of a machine; content-addressed, so runs and sources share what they have in common."""
    gb: float = Field(default=100, gt=0)
    """How large the folder may become, in 10^9 bytes."""
    timeout_s: float = Field(default=300, gt=0)
    """How long a file may fail to arrive, tried again and again, before training stops."""


class DataConfig(Strict):
    """Sources and how they are read. The order of `sources` and `test` never matters, only their names do."""

    root: Location = "data"
    """Folder, or URL, that relative source paths start from."""
    sources: dict[Name, SourceConfig] = Field(min_length=1)
    """What is trained on."""
    test: dict[Name, SourceConfig] = Field(default_factory=dict)
    """What is only ever evaluated."""
    validation: HeldOut = 0.1
    """What is validated on and never trained on. A fraction: that part of every source, chosen by the hash of each
    sample's key. Names: these sources, whole. leave_one_source_out: every source in turn, in a run of its own without
    it, then a run on all of them; what is chosen by it holds better on sources that nobody has seen."""
    set_apart: float = Field(default=0.0, ge=0, lt=1)
    """A part of every source, chosen by the hash of each sample's key, that is neither trained nor validated on: a
    model may choose by it. With sources held out by name it is taken from these, with leave_one_source_out from the
    source that a run leaves out."""
    labels: Labels = None
    """A file of verdicts on classes of different sources (`xfer labels`), or what is in it: which are one, which are
    parts of others. None: classes are one exactly if their names are equal."""
    image_size: int = Field(default=112, ge=8, le=4096)
    """Images reach the model as image_size x image_size pixels."""
    train_size: int | None = Field(default=None, ge=8, le=4096)
    """Size of the images that are trained on, if it is another: image_size is that of evaluation and prediction then.
    Random crops show things larger than whole images do, so a smaller one evens that out, at less time a step: about
    0.8 of image_size where `augment.scale` begins at 0.25 (Touvron et al., *Fixing the train-test resolution
    discrepancy*, NeurIPS 2019)."""
    resize: Literal["centre", "letterbox", "stretch"] = "centre"
    """How they become squares. centre: evaluation sees the largest centred square, training a random crop, stretched.
    letterbox: image and crop keep their ratio, at the top left, and the rest is padded. stretch: evaluation sees the
    whole image, stretched; training is that of centre."""
    batch_size: int = Field(default=64, ge=1)
    """Global batch: samples a step over all ranks together."""
    workers: int = Field(default=1, ge=0, le=256)
    """Loader processes of each rank; 0 loads in the training process itself."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides order and augmentation, nothing else."""
    decode: Literal["cpu", "gpu"] = "cpu"
    """What decodes the JPEGs that are trained on: loader processes, or nvJPEG on the GPU of each rank."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes to training images."""
    lanes: int = Field(default=16, ge=1, le=4096)
    """Parts of a source that are read side by side; ranks get neighbouring lanes."""
    window: int = Field(default=4096, ge=1)
    """Samples of a lane that are shuffled together."""
    block: int | None = Field(default=None, ge=1)
    """Positions after which the blend is exact. None: the global batch (unit: batch: 32 of them). Set it if batch_size
    may change on resume."""
    unit: Literal["sample", "batch"] = "sample"
    """What is blended: samples within each batch, or batches of one source each."""
    temperature: float = Field(default=1.0, gt=0)
    """Without weights, a source of n samples has the share n^(1/temperature): 1 by size, large: all alike."""
    tilt: float = Field(default=0.0, allow_inf_nan=False)
    """Without weights, each share is multiplied by exp(tilt * score of the source)."""
    balance: float = Field(default=0.0, ge=0, le=1)
    """A class of n samples has the share n^(1 - balance) of its source: 0 by size, 1 all classes alike."""
    stages: tuple[StageConfig, ...] = ()
    """Later weights, by rising start. Stages still to come may be added, changed or removed on resume."""
    on_change: Literal["stop", "continue"] = "stop"
    """On resume with other data, weights or order: refuse and say what differs, or go on from the same position with
    the sources' counts kept."""
    cache: CacheConfig = CacheConfig()
    """Where shards of remote sources are kept."""
    max_replaced: float = Field(default=0.001, ge=0, lt=1)
    """Fraction of a source's samples that may turn out damaged (at least 8 may) before training stops."""
    strict: bool = False
    """Stop at the first damaged sample instead of replacing it."""

    def location(self, source: SourceConfig) -> str:
        """Absolute folder (or URL) of a source."""
        path = source.path if is_url(source.path) else os.path.expanduser(source.path)
        if is_url(path) or os.path.isabs(path):
            return path
        return (
            f"{self.root.rstrip('/')}/{path}" if is_url(self.root) else os.path.abspath(os.path.join(self.root, path))
        )

    @property
    def held_fraction(self) -> float:
        """The fraction of every source that is validated on; 0 if whole sources are."""
        return self.validation if isinstance(self.validation, float) else 0.0

    @property
    def held_sources(self) -> tuple[str, ...]:
        """Sources that are validated on whole, and not trained on."""
        return self.validation if isinstance(self.validation, tuple) else ()

    def apart_of(self, source: str) -> float:
        """The fraction of a source that is set apart. With leave_one_source_out none is: each run that leaves a source
        out holds it out by name.
        """
        givers = self.held_sources or (() if self.validation == LEAVE_ONE_OUT else self.sources)
        return self.set_apart if source in givers else 0.0

    @model_validator(mode="after")
    def _held_out_sources_exist(self) -> "DataConfig":
        unknown = sorted(set(self.held_sources) - set(self.sources))
        if unknown:
            raise ValueError(
                f"validation: no source is called {', '.join(unknown)}; there are {', '.join(sorted(self.sources))}"
            )
        if set(self.held_sources) == set(self.sources):
            raise ValueError("validation: every source is held out, none is left to train on")
        if self.validation == LEAVE_ONE_OUT and len(self.sources) < 2:
            raise ValueError(f"validation: {LEAVE_ONE_OUT} needs two sources or more, there is one; give a fraction")
        return self

    @model_validator(mode="after")
    def _all_weights_or_none(self) -> "DataConfig":
        missing = sorted(name for name, source in self.sources.items() if source.weight is None)
        if missing and len(missing) < len(self.sources):
            raise ValueError(
                f"sources {', '.join(missing)} have no weight and others have: give all of them one, or none"
            )
        if not missing and (self.temperature != 1 or self.tilt):
            raise ValueError("temperature and tilt make weights from the number of samples: give these, or weights")
        weighted = sorted(name for name, source in self.test.items() if source.weight is not None)
        if weighted:
            raise ValueError(f"test.{weighted[0]}.weight: a test source is read whole, it has no weight")
        return self

    @model_validator(mode="after")
    def _stages_in_order(self) -> "DataConfig":
        starts = [stage.start for stage in self.stages]
        if sorted(set(starts)) != starts:
            raise ValueError(f"stages: starts must rise, not {starts}")
        unknown = sorted({name for stage in self.stages for name in stage.weights} - set(self.sources))
        if unknown:
            raise ValueError(f"stages: no source is called {', '.join(unknown)}; there are {', '.join(self.sources)}")
        return self

    @model_validator(mode="after")
    def _whole_units(self) -> "DataConfig":
        if self.unit == "batch" and self.block and self.block % self.batch_size:
            raise ValueError(f"block: with unit: batch, expected a multiple of batch_size, {self.batch_size}")
        return self
