"""Which samples of which built data sets a run trains, validates and tests on.

A view is one split of one data set and the samples of it that pass a filter. The training/validation cut goes by the
hash of each sample's key and by nothing else: every run, seed and blend cuts a data set at the same samples, and
rebuilding it moves none. Reads manifests and indexes only, never a tar.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from shards.config import DataConfig, SourceConfig
from shards.manifest import Manifest, open_index, read_manifest
from shards.order import Ints, mix_array
from shards.settings import ConfigError, is_url

_SUBSPLIT = np.uint64(0xA0761D6478BD642F)


@dataclass(frozen=True, eq=False)
class View:
    """The samples of one source that pass a filter. `keep`: their rows in the index, int64 ascending; None: all."""

    name: str
    folder: str
    manifest: Manifest
    keep: Ints | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the target indices."""
        return self.manifest.classes

    @property
    def num_samples(self) -> int:
        """Samples that pass the filter."""
        return self.manifest.num_samples if self.keep is None else len(self.keep)

    @property
    def rows(self) -> Ints:
        """Index rows of the view's samples, int64 [num_samples]."""
        return np.arange(self.manifest.num_samples) if self.keep is None else self.keep

    @property
    def shard_starts(self) -> Ints:
        """Index row of each shard's first sample, and the end; int64 [shards + 1]."""
        return np.cumsum([0] + [shard.samples for shard in self.manifest.shards])

    @property
    def kept_starts(self) -> Ints:
        """As `shard_starts`, counting only samples of the view; int64 [shards + 1]."""
        return self.shard_starts if self.keep is None else np.searchsorted(self.keep, self.shard_starts)

    @property
    def shard_samples(self) -> Ints:
        """Samples of the view in each shard, int64 [shards]."""
        return np.diff(self.kept_starts)

    def labels(self) -> np.ndarray:
        """Class index of each sample, int32 [num_samples]; reads the index only."""
        return np.array(open_index(self.folder, self.manifest)["label"][self.rows])

    def key_hashes(self) -> np.ndarray:
        """Hash of each sample's key, uint64 [num_samples]."""
        return np.array(open_index(self.folder, self.manifest)["key"][self.rows])

    def fraction(self, low: float, high: float) -> "View":
        """The samples whose share falls into [low, high): adjoining fractions are disjoint and together complete.

        Drawn anew within the view, independent of the cut between training and validation.
        """
        return self.where(_share(mix_array(self.key_hashes() ^ _SUBSPLIT), low, high))

    def where(self, chosen: np.ndarray) -> "View":
        """The samples where bool [num_samples] `chosen` holds."""
        return self if chosen.all() else replace(self, keep=self.rows[chosen])

    def identity(self) -> dict:
        """What decides this view's samples, for plans: version, and which rows."""
        rows = None if self.keep is None else "sha256:" + hashlib.sha256(self.keep.astype("<i8").tobytes()).hexdigest()
        return {"version": self.manifest.version, "samples": self.num_samples, "rows": rows}


@dataclass(frozen=True)
class Data:
    """The views of a configuration, each group sorted by name. `validation` has one for each of `train`, or none."""

    train: tuple[View, ...]
    validation: tuple[View, ...]
    test: tuple[View, ...]


def open_data(config: DataConfig) -> Data:
    """Opens every source of the configuration. Raises ConfigError with the faults of all of them."""
    faults: list[str] = []
    sources = _open_all(config, "sources", config.sources, faults)
    test = _open_all(config, "test", config.test, faults)
    train, validation = [], []
    for view in sources:
        hashes = view.key_hashes()
        parts = (view.where(_share(hashes, config.validation, 1)), view.where(_share(hashes, 0, config.validation)))
        train.append(parts[0])
        validation += [parts[1]] if config.validation else []
        for part, purpose in zip(parts, ("train", "validate"), strict=True):
            if not part.num_samples and (config.validation or purpose == "train"):
                faults.append(
                    f"data.validation: {config.validation} of sources.{view.name} ({view.num_samples} samples) leaves "
                    f"none to {purpose} on; give another fraction, or more samples"
                )
    faults += _leaks(sources, test)
    if faults:
        raise ConfigError(faults)
    return Data(tuple(train), tuple(validation), tuple(test))


def _open_all(config: DataConfig, section: str, group: Mapping[str, SourceConfig], faults: list[str]) -> list[View]:
    views = []
    for name, source in sorted(group.items()):
        try:
            views.append(_open(name, config.location(source), source.split))
        except ConfigError as error:
            faults += [f"data.{section}.{name}: {fault}" for fault in error.faults]
    return views


def _open(name: str, folder: str, split: str) -> View:
    if is_url(folder):
        raise ConfigError(f"{folder}: shards are read from local or mounted folders only; copy it to one")
    manifest = read_manifest(folder, split)
    open_index(folder, manifest)
    missing = [shard.path for shard in manifest.shards if not os.path.isfile(os.path.join(folder, shard.path))]
    if missing:
        raise ConfigError(f"{folder}: {len(missing)} shards are missing ({', '.join(missing[:3])}); build it again")
    if not manifest.num_samples:
        raise ConfigError(f"{folder}: split {split!r} has no samples")
    return View(name, folder, manifest)


def _leaks(sources: list[View], test: list[View]) -> list[str]:
    """The same content under another path is leakage too."""
    trained = {view.manifest.version: view for view in sources}
    return [
        f"data.test.{view.name}: {view.folder} has the same content as sources.{trained[view.manifest.version].name} "
        f"({trained[view.manifest.version].folder}): the model would be tested on what it was trained on"
        for view in test
        if view.manifest.version in trained
    ]


def _share(hashes: np.ndarray, low: float, high: float) -> np.ndarray:
    """Whether each uint64 hash, read as a fraction, lies in [low, high); bool [n]."""
    fraction = (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return (fraction >= low) & (fraction < high)
