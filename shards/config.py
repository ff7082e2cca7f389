"""The `data` section of a recipe: which shards, in which blend, cut into which batches.

pydantic stops here: `open_data` and `train_stream` read these values once, everything below takes plain arguments.
Faults that need no look at the disk (leakage between training and test, half-given weights) are refused here; the
rest in `open_data`.
"""

import os
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from shards.settings import Location, Strict, is_url

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


def _ordered(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"expected two fractions of the image's area, 0 < low <= high <= 1, not {list(scale)}")
    return scale


class SourceConfig(Strict):
    """One built data set."""

    path: str = Field(min_length=1)
    """Folder of shards: relative to `data.root`, or absolute."""
    split: str = "train"
    """Which split of the folder: `<split>.manifest.json` must be there."""
    weight: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Share of the samples, relative to the other sources' weights. None everywhere: share by number of samples."""


class AugmentConfig(Strict):
    """What training does to an image; evaluation never does any of it."""

    scale: Annotated[tuple[float, float], AfterValidator(_ordered)] = (0.6, 1.0)
    """The crop's area as a fraction of the image's, drawn evenly between the two."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of a left-right flip."""
    color: float = Field(default=0.0, ge=0, le=1)
    """Strength of brightness, contrast and saturation jitter: each factor is drawn from 1 - color to 1 + color."""


class DataConfig(Strict):
    """Sources and how they are read. The order of `sources` and `test` never matters, only their names do."""

    root: Location = "data"
    """Folder that relative source paths start from."""
    sources: dict[Name, SourceConfig] = Field(min_length=1)
    """What is trained on."""
    test: dict[Name, SourceConfig] = Field(default_factory=dict)
    """What is only ever evaluated."""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of every source, chosen by the hash of each sample's key, that is validated on and never trained on."""
    image_size: int = Field(default=112, ge=8, le=4096)
    """Images reach the model as image_size x image_size pixels."""
    batch_size: int = Field(default=64, ge=1)
    """Global batch: samples a step over all ranks together."""
    workers: int = Field(default=1, ge=0, le=256)
    """Loader processes of each rank; 0 loads in the training process itself."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides order and augmentation, nothing else."""
    augment: AugmentConfig = AugmentConfig()
    """Random changes to training images."""
    lanes: int = Field(default=16, ge=1, le=4096)
    """Parts of a source that are read side by side; ranks get neighbouring lanes."""
    window: int = Field(default=4096, ge=1)
    """Samples of a lane that are shuffled together."""
    block: int | None = Field(default=None, ge=1)
    """Positions after which the blend is exact. None: the global batch. Set it if batch_size may change on resume."""
    max_replaced: float = Field(default=0.001, ge=0, lt=1)
    """Fraction of a source's samples that may turn out damaged (at least 8 may) before training stops."""
    strict: bool = False
    """Stop at the first damaged sample instead of replacing it."""

    def location(self, source: SourceConfig) -> str:
        """Absolute folder (or URL) of a source."""
        return source.path if is_url(source.path) else os.path.abspath(self._join(os.path.expanduser(source.path)))

    def _join(self, path: str) -> str:
        return path if os.path.isabs(path) else os.path.join(self.root, path)

    @model_validator(mode="after")
    def _no_leakage(self) -> "DataConfig":
        seen: dict[tuple[str, str], str] = {}
        for section, group in (("sources", self.sources), ("test", self.test)):
            for name, source in group.items():
                place = (self.location(source), source.split)
                if place in seen:
                    why = "the model would be tested on what it was trained on" if section == "test" else "give it once"
                    raise ValueError(
                        f"{section}.{name} is the same data as {seen[place]} ({place[0]}, {place[1]}): {why}"
                    )
                seen[place] = f"{section}.{name}"
        return self

    @model_validator(mode="after")
    def _all_weights_or_none(self) -> "DataConfig":
        missing = sorted(name for name, source in self.sources.items() if source.weight is None)
        if missing and len(missing) < len(self.sources):
            raise ValueError(
                f"sources {', '.join(missing)} have no weight and others have: give all of them one, or none"
            )
        weighted = sorted(name for name, source in self.test.items() if source.weight is not None)
        if weighted:
            raise ValueError(f"test.{weighted[0]}.weight: a test source is read whole, it has no weight")
        return self
