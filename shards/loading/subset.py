"""Which samples of which built data sets a run trains, validates and tests on.

A subset is one split of one data set and the samples of it that pass some filters. The training/validation cut goes by
the hash of each sample's key and by nothing else: every run, seed and blend cuts a data set at the same samples, and
rebuilding it moves none. Reads manifests and indexes only, never a tar; a filter keeps a count for each shard, not a
row for each sample, so memory does not grow with the data. Filtering costs one pass over the index, 0.1 s for 10^7
samples.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from shards.format.hashing import Ints, in_share, mix_array
from shards.format.manifest import Manifest, open_content, open_index
from shards.remote.cache import cached_path
from shards.remote.store import Remote, Store
from shards.remote.transport import join

_CHUNK = 1 << 20
_SALTS = {"validation": 0, "where": 0x8EBC6AF09C88C6E3, "fraction": 0xA0761D6478BD642F, "apart": 0xE7037ED1A0B428DB}
CUTS = ("apart", "validation")  # kinds of shares that cut a source into what is trained on and what is not


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
class Subset:
    """The samples of one source that pass all filters."""

    name: str
    folder: str
    manifest: Manifest
    filters: tuple[Filter, ...] = ()
    index_path: str = ""
    """Where the index is, if not beside the manifest."""
    store: Store | None = None
    """Fetches the shards, if they are not in a local folder. Stays in the process that trains."""
    numbering: tuple[str, ...] | None = None
    """The class names whose places are the numbers of classes; None: the subset's own, in the manifest's order."""
    names: tuple[str, ...] | None = None
    """What the manifest's classes are called in a label space (shards/labels.py); None: as in the manifest."""
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of that label space, the same for all subsets: by the name of a class that has parts, these."""

    def __repr__(self) -> str:
        return f"Subset({self.name!r}, {self.num_samples:,} samples, {len(self.classes)} classes, {self.folder!r})"

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
        """The number of each of the manifest's classes, int64 [classes]; -1 for those that are filtered out, or that
        the numbering lacks. A class that it has only parts of has a number behind its K places, see `sets`.
        """
        if self.numbering is not None:
            places = {name: place for place, name in enumerate((*self.numbering, *self._wholes))}
            named = zip(self.class_names, self._kept, strict=True)
            return np.array([places.get(name, -1) if kept else -1 for name, kept in named], np.int64)
        return np.where(self._kept, np.cumsum(self._kept) - 1, -1)

    @property
    def _wholes(self) -> dict[str, list[int]]:
        """Classes that the numbering lacks and has parts of: the places of these."""
        assert self.numbering is not None
        numbering, places = self.numbering, {name: place for place, name in enumerate(self.numbering)}
        found = {
            whole: [places[part] for part in self.parts[whole] if part in places]
            for whole in sorted(self.parts)
            if whole not in numbering
        }
        return {whole: parts for whole, parts in found.items() if parts}

    @property
    def numbered_names(self) -> tuple[str, ...]:
        """The names of all numbers: of the numbering, and behind it of the classes that it has only parts of."""
        assert self.numbering is not None
        return (*self.numbering, *self._wholes)

    @property
    def sets(self) -> np.ndarray | None:
        """The places in the numbering that each number stands for, bool [K + W, K] with W classes of which only parts
        are there; None if there are none: each number is its place.
        """
        wholes = self._wholes.values() if self.numbering is not None else ()
        if not wholes:
            return None
        sets = np.eye(len(self.numbering or ()) + len(wholes), len(self.numbering or ()), dtype=bool)
        for row, places in zip(sets[-len(wholes) :], wholes, strict=True):
            row[places] = True
        return sets

    def known_in(self, classes: Sequence[str]) -> list[str]:
        """The subset's own classes that a model of `classes` knows, or knows parts of."""
        numbers = self.numbered(classes).renumber
        return [name for name, number in zip(self.class_names, numbers, strict=True) if number >= 0]

    @cached_property
    def _kept(self) -> np.ndarray:
        """Which of the manifest's classes no filter leaves out, bool [classes]."""
        kept = np.ones(len(self.manifest.classes), bool)
        for one in self.filters:
            if isinstance(one, OfClasses):
                kept &= np.isin(np.arange(len(kept)), one.labels)
        return kept

    def numbered(self, classes: Sequence[str]) -> "Subset":
        """The same samples, with targets, boxes and masks numbered by the places of names in `classes`."""
        return replace(self, numbering=tuple(classes))

    @property
    def class_names(self) -> tuple[str, ...]:
        """What each of the manifest's classes is called."""
        return self.manifest.classes if self.names is None else self.names

    @property
    def classes(self) -> tuple[str, ...]:
        """The subset's own class names, in the manifest's order."""
        return tuple(name for name, kept in zip(self.class_names, self._kept, strict=True) if kept)

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
        """Samples of the subset in each shard, int64 [shards]."""
        counts = np.diff(self.shard_starts)
        if not self.filters:
            return counts
        counts = np.zeros_like(counts)
        index = self.index()
        for start in range(0, len(index), _CHUNK):
            rows = start + np.flatnonzero(self.passes(index[start : start + _CHUNK]))
            counts += np.diff(np.searchsorted(rows, self.shard_starts))
        return counts

    @cached_property
    def kept_starts(self) -> Ints:
        """As `shard_starts`, counting only samples of the subset; int64 [shards + 1]."""
        return np.concatenate([[0], np.cumsum(self.shard_samples)])

    def index(self) -> np.ndarray:
        """The whole index of the split, INDEX [samples], memory-mapped."""
        return open_index(self.folder, self.manifest, self.index_path)

    def content(self) -> np.ndarray | None:
        """Hash of each image of the whole split, CONTENT [samples], memory-mapped; None if there are none.

        Fetched where the split is remote. Raises ConfigError, StoreError.
        """
        if self.store is None or self.manifest.content is None:
            return open_content(self.folder, self.manifest)
        file = self.manifest.content
        try:
            path = self.store.keep(Remote(join(self.folder, file.path), file))
        except FileNotFoundError:  # not copied there
            return None
        return open_content(self.folder, self.manifest, path)

    def rows_of(self, shard: int, index: np.ndarray) -> Ints:
        """Index rows of the subset's samples in a shard, int64 ascending."""
        start, end = self.shard_starts[shard : shard + 2]
        return start + np.flatnonzero(self.passes(index[start:end])) if self.filters else np.arange(start, end)

    def locate(self, i: int) -> tuple[int, int]:
        """Shard and row in it of the subset's i-th sample."""
        shard = int(np.searchsorted(self.kept_starts, i, side="right")) - 1
        return shard, i - int(self.kept_starts[shard])

    @property
    def rows(self) -> Ints:
        """Index rows of all the subset's samples, int64 [num_samples]: 8 bytes a sample."""
        return np.flatnonzero(self.passes(self.index())) if self.filters else np.arange(self.manifest.num_samples)

    def labels(self) -> Ints:
        """The subset's class index of each sample, int64 [num_samples]; -1 where samples have none."""
        labels = self.index()["label"][self.rows]
        return np.where(labels >= 0, self.renumber[labels], -1) if len(self.renumber) else labels.astype(np.int64)

    def key_hashes(self) -> np.ndarray:
        """Hash of each sample's key, uint64 [num_samples]."""
        return np.array(self.index()["key"][self.rows])

    def fraction(self, low: float, high: float) -> "Subset":
        """The samples whose share falls into [low, high): adjoining fractions are disjoint and together complete.

        Independent of the cut between training and validation, and of `where`.
        """
        return self.where(InShare("fraction", low, high))

    def where(self, *filters: Filter) -> "Subset":
        """The samples that pass these filters too."""
        return replace(self, filters=(*self.filters, *filters))

    def identity(self) -> dict:
        """What decides this subset's samples, for plans; 64 bits of the version keep the state of a stream small."""
        return {
            "version": self.manifest.version.removeprefix("sha256:")[:16],
            "samples": self.num_samples,
            "where": [one.identity() for one in self.filters],
        }

    def passes(self, index: np.ndarray) -> np.ndarray:
        """Which of these index rows are in the subset, bool [n]; index INDEX [n]."""
        passing = np.ones(len(index), bool)
        for one in self.filters:
            passing &= one.passes(index)
        return passing
