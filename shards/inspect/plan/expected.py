"""What a run will find in its sources, from their manifests alone: no index, no shard and no cache is touched.

Which samples pass `where` and the cut for validation only an index says, so they are counted as expected shares:
exact if there is neither, else off by about the square root of what is cut. Costs a second and 100 MB for 10^5 shards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from shards.config import DataConfig, SourceConfig, WhereConfig
from shards.format.manifest import read_manifest
from shards.inspect.plan.downloads import Shape
from shards.loading.open import fetch_manifest, filters_of
from shards.loading.subset import Subset
from shards.remote.transport import Errand, Transport
from shards.settings import ConfigError, is_url


@dataclass(frozen=True)
class Expected:
    """A source: all of its split, and the share of its samples that training is expected to get."""

    whole: Subset
    share: float
    validated: float
    """The share that validation is expected to get."""

    @cached_property
    def subset(self) -> Subset:
        """A subset that holds in each shard as many samples as training is expected to get from it."""
        manifest = self.whole.manifest
        if self.share == 1:
            return self.whole
        counts = np.diff(np.rint(self.whole.shard_starts * self.share).astype(np.int64)).tolist()
        shards = tuple(replace(file, samples=n) for file, n in zip(manifest.shards, counts, strict=True))
        index = replace(manifest.index, samples=sum(counts))
        return replace(self.whole, manifest=replace(manifest, shards=shards, index=index))

    @cached_property
    def shape(self) -> Shape:
        """Samples that are expected, and bytes, of each shard."""
        sizes = [file.bytes for file in self.whole.manifest.shards]
        return Shape(self.subset.name, self.subset.shard_samples, np.array(sizes, np.float64))

    @property
    def is_remote(self) -> bool:
        """Whether nodes fetch it; else it is read where it is."""
        return is_url(self.whole.folder)

    @property
    def is_indexed(self) -> bool:
        """Whether the tars are those of others: samples lie in the order that they gave them."""
        return "indexed" in self.whole.manifest.made_by


def open_expected(config: DataConfig) -> tuple[list[Expected], list[Expected]]:
    """What is trained on and what is tested on, each sorted by name. Raises ConfigError with the faults of all."""
    faults: list[str] = []
    transport = Transport(config.cache.timeout_s)
    trained = {name: source for name, source in config.sources.items() if name not in config.held_sources}
    sources = _open_all(config, "sources", trained, config.held_fraction, transport, faults)
    test = _open_all(config, "test", config.test, 0.0, transport, faults)
    if faults:
        raise ConfigError(faults)
    return sources, test


def _open_all(
    config: DataConfig,
    section: str,
    group: Mapping[str, SourceConfig],
    validation: float,
    transport: Transport,
    faults: list[str],
) -> list[Expected]:
    found = []
    for name, source in sorted(group.items()):
        try:
            folder = config.location(source)
            if is_url(folder):
                manifest = fetch_manifest(folder, source.split, lambda url: transport.read(Errand(url, aloud=True)))
            else:
                manifest = read_manifest(folder, source.split)
            apart = config.apart_of(name) if section == "sources" else 0.0
            found.append(_expect(Subset(name, folder, manifest), source.where, validation, apart))
        except ConfigError as error:
            faults += [f"data.{section}.{name}: {fault}" for fault in error.faults]
    return found


def _expect(whole: Subset, where: WhereConfig | None, validation: float, apart: float) -> Expected:
    passing = (_passing(whole, where) if where else 1.0) * (1 - apart)
    expected = Expected(whole, passing * (1 - validation), passing * validation)
    if not whole.num_samples:
        raise ConfigError(f"{whole.folder}: split {whole.manifest.split!r} has no samples")
    if not expected.subset.num_samples:
        reported = f"of {whole.num_samples:,} samples about {whole.num_samples * expected.share:.1g}"
        raise ConfigError(f"{reported} pass `where` and are not validated on: nothing to train on")
    return expected


def _passing(whole: Subset, where: WhereConfig) -> float:
    """The share of the samples that is expected to pass."""
    filters_of(whole, where)  # refuses what is wrong with it
    share = where.hash[1] - where.hash[0] if where.hash else 1.0
    if not where.classes:
        return share
    manifest = whole.manifest
    of = dict(zip(manifest.classes, manifest.stats.class_counts, strict=True))
    return share * sum(of[name] for name in set(where.classes)) / max(1, manifest.num_samples)
