"""Which samples of which built data sets a run trains, validates and tests on.

A view is one split of one data set and the samples of it that pass some filters. The training/validation cut goes by
the hash of each sample's key and by nothing else: every run, seed and blend cuts a data set at the same samples, and
rebuilding it moves none. Reads manifests and indexes only, never a tar; a filter keeps a count for each shard, not a
row for each sample, so memory does not grow with the data. Filtering costs one pass over the index, 0.1 s for 10^7
samples.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from shards.config import DataConfig, SourceConfig, WhereConfig
from shards.format.hashing import Ints, in_share, mix_array
from shards.format.manifest import Manifest, manifest_name, open_index, parse_manifest, read_manifest
from shards.remote.cache import cached_path
from shards.remote.store import Remote, Store
from shards.remote.transport import StoreError, join, shown
from shards.settings import ConfigError, is_url

_CHUNK = 1 << 20
_SALTS = {"validation": 0, "where": 0x8EBC6AF09C88C6E3, "fraction": 0xA0761D6478BD642F}


class Filter(Protocol):
    """Says of index rows (INDEX [n]) which pass."""

    def passes(self, index: np.ndarray) -> np.ndarray: ...

    def identity(self) -> dict: ...


@dataclass(frozen=True)
class InShare:
    """Samples whose key's hash, read as a fraction, lies in [low, high). Cuts of different kinds are independent."""

    kind: str
    low: float
    high: float

    def passes(self, index: np.ndarray) -> np.ndarray:
        """bool [n]."""
        salt = np.uint64(_SALTS[self.kind])
        return in_share(mix_array(index["key"] ^ salt) if salt else index["key"], self.low, self.high)

    def identity(self) -> dict:
        """For plans."""
        return {self.kind: [self.low, self.high]}


@dataclass(frozen=True)
class OfClasses:
    """Samples of these classes, given as the manifest's indices."""

    labels: tuple[int, ...]

    def passes(self, index: np.ndarray) -> np.ndarray:
        """bool [n]."""
        return np.isin(index["label"], self.labels)

    def identity(self) -> dict:
        """For plans."""
        return {"classes": list(self.labels)}


@dataclass(frozen=True, eq=False)
class View:
    """The samples of one source that pass all filters."""

    name: str
    folder: str
    manifest: Manifest
    filters: tuple[Filter, ...] = ()
    index_path: str = ""
    """Where the index is, if not beside the manifest."""
    store: Store | None = None
    """Fetches the shards, if they are not in a local folder. Stays in the process that trains."""

    def __getstate__(self) -> dict:
        return {**self.__dict__, "store": None, "cache": self.cache}

    @cached_property
    def cache(self) -> str:
        """Folder with local copies of remote shards; empty: they are read in place."""
        return self.store.folder if self.store else ""

    def shard_path(self, shard: int) -> str:
        """Where a shard is on this machine, or will be once it is fetched."""
        file = self.manifest.shards[shard]
        return cached_path(self.cache, file) if self.cache else os.path.join(self.folder, file.path)

    def remote(self, shard: int) -> Remote:
        """A shard and where to fetch it from."""
        file = self.manifest.shards[shard]
        return Remote(join(self.folder, file.path), file)

    @cached_property
    def renumber(self) -> Ints:
        """The view's class index for each of the manifest's, -1 for classes that are filtered out; int64 [classes]."""
        kept = np.ones(len(self.manifest.classes), bool)
        for one in self.filters:
            if isinstance(one, OfClasses):
                kept &= np.isin(np.arange(len(kept)), one.labels)
        return np.where(kept, np.cumsum(kept) - 1, -1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the target indices."""
        return tuple(name for name, new in zip(self.manifest.classes, self.renumber, strict=True) if new >= 0)

    @property
    def num_samples(self) -> int:
        """Samples that pass the filters."""
        return int(self.kept_starts[-1])

    @cached_property
    def shard_starts(self) -> Ints:
        """Index row of each shard's first sample, and the end; int64 [shards + 1]."""
        return np.cumsum([0] + [shard.samples for shard in self.manifest.shards])

    @cached_property
    def shard_samples(self) -> Ints:
        """Samples of the view in each shard, int64 [shards]."""
        counts = np.diff(self.shard_starts)
        if not self.filters:
            return counts
        counts = np.zeros_like(counts)
        index = self.index()
        for start in range(0, len(index), _CHUNK):
            rows = start + np.flatnonzero(self._passes(index[start : start + _CHUNK]))
            counts += np.diff(np.searchsorted(rows, self.shard_starts))
        return counts

    @cached_property
    def kept_starts(self) -> Ints:
        """As `shard_starts`, counting only samples of the view; int64 [shards + 1]."""
        return np.concatenate([[0], np.cumsum(self.shard_samples)])

    def index(self) -> np.ndarray:
        """The whole index of the split, INDEX [samples], memory-mapped."""
        return open_index(self.folder, self.manifest, self.index_path)

    def rows_of(self, shard: int, index: np.ndarray) -> Ints:
        """Index rows of the view's samples in a shard, int64 ascending."""
        start, end = self.shard_starts[shard : shard + 2]
        return start + np.flatnonzero(self._passes(index[start:end])) if self.filters else np.arange(start, end)

    def locate(self, i: int) -> tuple[int, int]:
        """Shard and row in it of the view's i-th sample."""
        shard = int(np.searchsorted(self.kept_starts, i, side="right")) - 1
        return shard, i - int(self.kept_starts[shard])

    @property
    def rows(self) -> Ints:
        """Index rows of all the view's samples, int64 [num_samples]: 8 bytes a sample."""
        return np.flatnonzero(self._passes(self.index())) if self.filters else np.arange(self.manifest.num_samples)

    def labels(self) -> Ints:
        """The view's class index of each sample, int64 [num_samples]; -1 where samples have none."""
        labels = self.index()["label"][self.rows]
        return np.where(labels >= 0, self.renumber[labels], -1) if len(self.renumber) else labels.astype(np.int64)

    def key_hashes(self) -> np.ndarray:
        """Hash of each sample's key, uint64 [num_samples]."""
        return np.array(self.index()["key"][self.rows])

    def fraction(self, low: float, high: float) -> "View":
        """The samples whose share falls into [low, high): adjoining fractions are disjoint and together complete.

        Independent of the cut between training and validation, and of `where`.
        """
        return self.where(InShare("fraction", low, high))

    def where(self, *filters: Filter) -> "View":
        """The samples that pass these filters too."""
        return replace(self, filters=(*self.filters, *filters))

    def identity(self) -> dict:
        """What decides this view's samples, for plans; 64 bits of the version keep the state of a stream small."""
        return {
            "version": self.manifest.version.removeprefix("sha256:")[:16],
            "samples": self.num_samples,
            "where": [one.identity() for one in self.filters],
        }

    def overlaps(self, other: "View") -> bool:
        """Whether a sample is in both views: the same row of the same content."""
        if self.manifest.version != other.manifest.version:
            return False
        index = self.index()
        chunks = (index[start : start + _CHUNK] for start in range(0, len(index), _CHUNK))
        return any((self._passes(chunk) & other._passes(chunk)).any() for chunk in chunks)

    def _passes(self, index: np.ndarray) -> np.ndarray:
        passing = np.ones(len(index), bool)
        for one in self.filters:
            passing &= one.passes(index)
        return passing


@dataclass(frozen=True)
class Data:
    """The views of a configuration, each group sorted by name. `validation` has one for each of `train`, or none."""

    train: tuple[View, ...]
    validation: tuple[View, ...]
    test: tuple[View, ...]


def open_data(config: DataConfig) -> Data:
    """Opens every source of the configuration. Raises ConfigError with the faults of all of them."""
    faults: list[str] = []
    locations = [config.location(source) for source in (*config.sources.values(), *config.test.values())]
    cache = config.cache
    store = Store(cache.folder, round(cache.gb * 1e9), cache.timeout_s) if any(map(is_url, locations)) else None
    sources = _open_all(config, "sources", config.sources, store, faults)
    test = _open_all(config, "test", config.test, store, faults)
    train, validation = [], []
    for view in sources:
        parts = view, None
        if config.validation:
            parts = tuple(
                view.where(InShare("validation", *s)) for s in ((config.validation, 1), (0, config.validation))
            )
        for part, purpose in zip(parts, ("train", "validate"), strict=True):
            if part is not None and not part.num_samples:
                faults.append(
                    f"data.validation: {config.validation} of sources.{view.name} ({view.num_samples} samples) leaves "
                    f"none to {purpose} on; give another fraction, or more samples"
                )
        train.append(parts[0])
        validation += [parts[1]] if parts[1] is not None else []
    faults += _leaks(sources, test)
    if faults:
        raise ConfigError(faults)
    return Data(tuple(train), tuple(validation), tuple(test))


def open_view(folder: str | Path, split: str = "train", name: str | None = None) -> View:
    """A whole split of a local folder; `name`: that of the data set if none is given. Raises ConfigError."""
    manifest = read_manifest(folder, split)
    open_index(folder, manifest)
    missing = [shard.path for shard in manifest.shards if not os.path.isfile(os.path.join(folder, shard.path))]
    if missing:
        raise ConfigError(f"{folder}: {len(missing)} shards are missing ({', '.join(missing[:3])}); build it again")
    return View(name or manifest.name, str(folder), manifest)


def _open_all(
    config: DataConfig, section: str, group: Mapping[str, SourceConfig], store: Store | None, faults: list[str]
) -> list[View]:
    views = []
    for name, source in sorted(group.items()):
        try:
            folder = config.location(source)
            remote = store if is_url(folder) else None
            view = _open_remote(name, folder, source.split, remote) if remote else open_view(folder, source.split, name)
            if not view.manifest.num_samples:
                raise ConfigError(f"{folder}: split {source.split!r} has no samples")
            views.append(_filtered(view, source.where))
        except ConfigError as error:
            faults += [f"data.{section}.{name}: {fault}" for fault in error.faults]
    return views


def fetch_manifest(folder: str, split: str, read: Callable[[str], bytes]) -> Manifest:
    """The manifest of a split in a store; `read`: the bytes of a URL. Raises ConfigError."""
    where = join(folder, manifest_name(split))
    with _faults_of_stores(split):
        return parse_manifest(read(where), shown(where))


def filters_of(view: View, where: WhereConfig) -> list[Filter]:
    """The filters that `where` means for a view. Raises ConfigError."""
    filters: list[Filter] = [InShare("where", *where.hash)] if where.hash else []
    if where.classes:
        names = view.manifest.classes
        unknown = [name for name in where.classes if name not in names]
        if unknown:
            raise ConfigError(f"where.classes: {', '.join(unknown)} not in {view.folder}; it has {', '.join(names)}")
        if view.manifest.task != "classification":
            raise ConfigError(
                f"where.classes: samples of {view.folder} have no class of their own ({view.manifest.task})"
            )
        filters.append(OfClasses(tuple(sorted(names.index(name) for name in where.classes))))
    return filters


def _open_remote(name: str, folder: str, split: str, store: Store) -> View:
    manifest = fetch_manifest(folder, split, store.read_bytes)
    with _faults_of_stores(split):
        index_path = store.keep(Remote(join(folder, manifest.index.path), manifest.index))
    open_index(folder, manifest, index_path)
    return View(name, folder, manifest, index_path=index_path, store=store)


@contextmanager
def _faults_of_stores(split: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"{error.filename}: no such file; expected a folder of shards with split {split!r}") from None
    except PermissionError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}") from None
    except StoreError as error:
        raise ConfigError(str(error)) from None


def _filtered(view: View, where: WhereConfig | None) -> View:
    if where is None:
        return view
    view = view.where(*filters_of(view, where))
    if not view.num_samples:
        raise ConfigError(f"where: none of {view.folder}'s {view.manifest.num_samples} samples passes")
    return view


def _leaks(sources: Sequence[View], test: Sequence[View]) -> list[str]:
    """The same samples under another path or filter are leakage too."""
    return [
        f"data.test.{view.name}: samples of {view.folder} are also in sources.{other.name} ({other.folder}): the model "
        "would be tested on what it was trained on"
        for view in test
        for other in sources
        if view.overlaps(other)
    ]
