"""`shards.open`: data for a script or a notebook, from the same configuration that recipes have.

Everything it gives numbers classes in one way: by their places in `Data.classes`.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import torch

from shards.config import DataConfig
from shards.loading.batch import Slot
from shards.loading.loaders import EvalLoader, TrainLoader
from shards.loading.open import Splits, open_data
from shards.loading.source import Source
from shards.loading.subset import CUTS, InShare
from shards.settings import ConfigError, parse, read_yaml


class Data(Mapping[str, Source]):
    """Opened data: `data["photo"]` is a source, `train()`, `validation()` and `test()` are loaders.

    classes: the names of all classes that are trained on, sorted; a target is a place in it. A class that only a test
    source has gets the target -1.
    """

    def __init__(self, config: DataConfig, splits: Splits):
        self.config, self.classes, self._splits = config, splits.classes, splits
        held = [subset for subset in self._splits.validation if subset.name in config.held_sources]
        whole = [changed(subset, filters=_but_the_cuts(subset)) for subset in (*self._splits.train, *held)]
        self.sources = {one.name: one for one in sorted(whole, key=lambda one: one.name)}
        """The sources by name, each with all its samples, those held out among them."""
        self.tests = {subset.name: subset for subset in self._splits.test}
        """The test sources by name."""
        both = sorted(set(self.sources) & set(self.tests))
        if both:
            raise ConfigError([f"data.test.{name}: a source has this name too; give it another one" for name in both])

    def train(
        self,
        rank: int = 0,
        world_size: int = 1,
        steps: int | None = None,
        device: torch.device | str | None = None,
        pin_memory: bool = False,
    ) -> TrainLoader:
        """This rank's share of every global batch, in the one exact order. `steps`: batches of a pass; None: endless.
        `device`: where batches are put, and what decodes them with `decode="gpu"`; None: they stay in host memory.
        """
        on = None if device is None else torch.device(device)
        return TrainLoader(self._splits.train, self.config, Slot(rank, world_size), steps, on, pin_memory)

    def validation(self, rank: int = 0, world_size: int = 1, pin_memory: bool = False) -> EvalLoader:
        """One exact pass over what is held out of the sources. Raises ConfigError if nothing is."""
        if not self._splits.validation:
            raise ConfigError("data.validation: nothing is held out; give a fraction above 0, or names of sources")
        return EvalLoader(self._splits.validation, self.config, Slot(rank, world_size), pin_memory)

    def test(self, rank: int = 0, world_size: int = 1, pin_memory: bool = False) -> EvalLoader:
        """One exact pass over the test sources. Raises ConfigError if there are none."""
        if not self._splits.test:
            raise ConfigError("data.test: no test source is given")
        return EvalLoader(self._splits.test, self.config, Slot(rank, world_size), pin_memory)

    def __getitem__(self, name: str) -> Source:
        known = {**self.sources, **self.tests}
        if name not in known:
            raise KeyError(f"{name!r}: the sources are {', '.join(known)}")
        return Source(known[name])

    def __iter__(self) -> Iterator[str]:
        return iter((*self.sources, *self.tests))

    def __len__(self) -> int:
        return len(self.sources) + len(self.tests)

    def __repr__(self) -> str:
        parts = {**self.sources, **{f"test {name}": subset for name, subset in self.tests.items()}}
        listed = ", ".join(f"{name}: {subset.num_samples:,}" for name, subset in parts.items())
        return f"Data({listed}; {len(self.classes)} classes)"


def open(sources: str | Path | Mapping[str, Any] | DataConfig, **keys: Any) -> Data:
    """Opens built data sets.

    `sources`: by name, folders or URLs of shards, or `{"path": ..., "weight": ...}`; or a whole `data` section as a
    mapping, as a DataConfig, or as the path of a YAML file that has one. `keys`: other keys of the section, such as
    image_size, batch_size, workers, seed, validation, test. Relative paths count from the current folder, unless `root`
    is given.

    Raises ConfigError with every fault.
    """
    config = parse({**_section(sources), **{key: _named(key, value) for key, value in keys.items()}}, DataConfig)
    return Data(config, open_data(config))


def _section(given: str | Path | Mapping[str, Any] | DataConfig) -> dict[str, Any]:
    if isinstance(given, DataConfig):
        return given.model_dump(mode="json")
    if not isinstance(given, (str, Path, Mapping)):
        raise ConfigError(f"sources: must be folders by name, or a YAML file, got {type(given).__name__}")
    if isinstance(given, (str, Path)):
        if Path(given).is_dir():
            name = Path(given).resolve().name
            raise ConfigError(f'{given}: a folder needs a name: shards.open({{"{name}": "{given}"}})')
        section = read_yaml(given).get("data")
        if not isinstance(section, dict):
            raise ConfigError("data: required, but not given", given)
        return section
    whole = isinstance(given.get("sources"), Mapping) and "path" not in given["sources"]
    if whole:
        return {key: _named(key, value) for key, value in given.items()}
    return {"root": os.getcwd(), "sources": _named("sources", given)}


def _named(key: str, value: Any) -> Any:
    """Sources given as a path alone are sections with a path."""
    if key not in ("sources", "test") or not isinstance(value, Mapping):
        return value
    return {name: {"path": str(one)} if isinstance(one, (str, Path)) else one for name, one in value.items()}


def _but_the_cuts(subset: Any) -> tuple:
    """The filters of a subset without those that hold parts of its source out."""
    return tuple(one for one in subset.filters if not (isinstance(one, InShare) and one.kind in CUTS))
