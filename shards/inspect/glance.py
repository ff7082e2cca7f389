"""A few samples of a split, to look at: which ones, and their bytes, from a local folder or a remote store.

Which ones depends on the split and a seed alone. A local split gives them evenly from everywhere. Of a remote one whole
shards have to be fetched, so they come from as few shards as hold enough: what `build` wrote is mixed, tars of others
need not be.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from shards.config import CacheConfig, DataConfig, SourceConfig
from shards.format.hashing import Ints, permutation
from shards.loading.open import open_data, open_subset
from shards.loading.reader import DamagedSampleError, Reader, Sample
from shards.loading.subset import Subset
from shards.remote.store import Fetch
from shards.remote.transport import Errand, StoreError
from shards.settings import ConfigError, is_url

_KEY = 4


@dataclass(frozen=True)
class Damaged:
    """A sample that cannot be read, and why."""

    key: str
    reason: str


@contextmanager
def opened(folders: Sequence[str], split: str) -> Iterator[list[Subset]]:
    """A split of several folders or URLs, by the names of the data sets; of two with one name, by their folders.

    Raises ConfigError with the faults of all.
    """
    subsets, faults = [], []
    try:
        for folder in folders:
            try:
                subsets.append(_open(folder, split))
            except ConfigError as error:
                faults += error.faults
        faults += [f"{subset.folder}: split {split!r} has no samples" for subset in subsets if not subset.num_samples]
        if faults or not subsets:
            raise ConfigError(faults or "expected one folder of shards, or several")
        names = [subset.name for subset in subsets]
        yield [subset if names.count(subset.name) == 1 else replace(subset, name=subset.folder) for subset in subsets]
    finally:
        for subset in subsets:
            if subset.store:
                subset.store.close()


def candidates(subset: Subset, enough: int, seed: int) -> Ints:
    """Samples to choose from: all of a local subset, `enough` or more out of few shards of a remote one; ascending."""
    if not subset.store:
        return np.arange(subset.num_samples)
    shards = permutation(len(subset.manifest.shards), seed, _KEY)
    upto = int(np.searchsorted(np.cumsum(subset.shard_samples[shards]), enough)) + 1
    return np.sort(np.concatenate([_samples_of(subset, int(shard)) for shard in shards[:upto]]))


def scattered(subset: Subset, seed: int) -> Iterator[int]:
    """All samples, one shard after the other, shuffled in each: to look for something until it is found."""
    for shard in permutation(len(subset.manifest.shards), seed, _KEY).tolist():
        samples = _samples_of(subset, shard)
        yield from samples[permutation(len(samples), seed, _KEY, shard)].tolist()


def read(subset: Subset, samples: Iterable[int]) -> Iterator[tuple[int, Sample | Damaged]]:
    """Each sample with its place in the subset. Those of one shard must come together; a remote one is fetched once."""
    reader = Reader([subset])
    for shard, group in groupby(samples, lambda i: subset.locate(i)[0]):
        with _at_hand(subset, shard):
            for i in group:
                place = subset.locate(i)
                try:
                    yield i, reader.read(0, *place)
                except DamagedSampleError as error:
                    yield i, Damaged(reader.name(0, *place), str(error))


def _open(folder: str, split: str) -> Subset:
    if not is_url(folder):
        return open_subset(folder, split)
    source = SourceConfig(path=folder, split=split)
    try:
        (subset,) = open_data(DataConfig(sources={"it": source}, validation=0, cache=CacheConfig())).train
    except ConfigError as error:
        raise ConfigError([fault.removeprefix("data.sources.it: ") for fault in error.faults]) from None
    return replace(subset, name=subset.manifest.name, numbering=None)


def _samples_of(subset: Subset, shard: int) -> Ints:
    return np.arange(subset.kept_starts[shard], subset.kept_starts[shard + 1])


@contextmanager
def _at_hand(subset: Subset, shard: int) -> Iterator[None]:
    """A remote shard's copy stays as long as it is read."""
    hold = None
    if subset.store:
        remote = subset.remote(shard)
        try:
            hold = subset.store.fetch(Fetch(remote, Errand(remote.url, aloud=True)))
        except StoreError as error:
            raise RuntimeError(str(error)) from None
    try:
        yield
    finally:
        if hold:
            hold.release()
