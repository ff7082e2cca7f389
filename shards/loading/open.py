"""A `data` section becomes subsets: every source is opened, cut into training and validation, and checked for leaks.

Reads manifests and indexes only, never a tar. All faults of all sources come in one ConfigError.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from shards.config import DataConfig, SourceConfig, WhereConfig
from shards.format.annotations import VOID
from shards.format.manifest import Manifest, manifest_name, open_index, parse_manifest, read_manifest
from shards.labels import LabelSpace, label_space
from shards.loading.leaks import leaks
from shards.loading.subset import Filter, InShare, OfClasses, Subset
from shards.remote.store import Remote, Store
from shards.remote.transport import StoreError, join, shown
from shards.settings import ConfigError, is_url


@dataclass(frozen=True)
class Splits:
    """The subsets of a configuration, each group sorted by name. `validation` has one for each of `train`, or none, or
    the sources that are held out whole; `apart`: of those that give any, what is set apart.

    classes: the one numbering of all of them: targets, boxes and masks of every batch hold places in it, or -1 where it
    lacks the class; a target that is a set of places has a number behind them (`Subset.sets`). At first the class names
    of the training sources, joined by exactly equal names or as `data.labels` says, and sorted.
    """

    train: tuple[Subset, ...]
    validation: tuple[Subset, ...]
    test: tuple[Subset, ...]
    classes: tuple[str, ...]
    apart: tuple[Subset, ...] = ()

    def numbered(self, classes: Sequence[str]) -> "Splits":
        """The same subsets in another numbering, such as that of a model that is trained."""
        train, validation, test, apart = (
            tuple(one.numbered(classes) for one in part)
            for part in (self.train, self.validation, self.test, self.apart)
        )
        return Splits(train, validation, test, tuple(classes), apart)

    def widened(self, classes: Sequence[str]) -> "Splits":
        """The same subsets in a numbering that has these classes too."""
        return self.numbered(sorted({*self.classes, *classes})) if classes else self


def open_data(config: DataConfig, unfit: Callable[[Subset], Sequence[str]] = lambda subset: ()) -> Splits:
    """Opens every source of the configuration. Raises ConfigError with the faults of all of them; `unfit`: what is
    wrong with a source for the use that is made of it.
    """
    faults: list[str] = []
    locations = [config.location(source) for source in (*config.sources.values(), *config.test.values())]
    cache = config.cache
    store = Store(cache.folder, round(cache.gb * 1e9), cache.timeout_s) if any(map(is_url, locations)) else None
    sources = _open_all(config, "sources", config.sources, store, unfit, faults)
    test = _open_all(config, "test", config.test, store, unfit, faults)
    if config.labels:
        sources, test = _named(config, sources, test, faults)
    train, validation, apart = [], [], []
    for whole in sources:
        subset, given = _cut_apart(whole, config.apart_of(whole.name), faults)
        apart += [given] if given is not None else []
        if subset.name in config.held_sources:
            validation.append(subset)
            continue
        share, parts = config.held_fraction, (subset, None)
        if share:
            parts = tuple(subset.where(InShare("validation", *s)) for s in ((share, 1), (0, share)))
        for part, purpose in zip(parts, ("train", "validate"), strict=True):
            if part is not None and not part.num_samples:
                faults.append(
                    f"data.validation: {share} of sources.{subset.name} ({subset.num_samples} samples) "
                    f"leaves none to {purpose} on; give another fraction, or more samples"
                )
        train.append(parts[0])
        validation += [parts[1]] if parts[1] is not None else []
    with _faults_of_stores("test"):
        faults += leaks(sources, test)
    classes = _leaves(train)
    faults += numbering_faults([*sources, *test], classes)
    if faults:
        raise ConfigError(faults)
    return Splits(tuple(train), tuple(validation), tuple(test), (), tuple(apart)).numbered(classes)


def _named(
    config: DataConfig, sources: list[Subset], test: list[Subset], faults: list[str]
) -> tuple[list[Subset], list[Subset]]:
    """The same with their classes called as in the label space of the configuration."""
    assert config.labels is not None
    opened = {subset.name: subset.manifest.classes for subset in (*test, *sources)}
    closed = [name for name in (*config.sources, *config.test) if name not in opened]  # said already
    try:
        space = label_space(config.labels, opened, closed)
    except ConfigError as error:
        faults += [f"data.labels: {fault}" for fault in error.faults]
        return sources, test
    return [_called(subset, space) for subset in sources], [_called(subset, space) for subset in test]


def _called(subset: Subset, space: LabelSpace) -> Subset:
    names = space.names[subset.name]
    return replace(subset, names=tuple(names[name] for name in subset.manifest.classes), parts=space.parts)


def _leaves(train: Sequence[Subset]) -> list[str]:
    """The classes of training sources, less those of which two parts or more are trained: such a one is the set of
    these.
    """
    names = {name for subset in train for name in subset.classes}
    parts = train[0].parts if train else {}
    return sorted(name for name in names if sum(part in names for part in parts.get(name, ())) < 2)


def _cut_apart(subset: Subset, share: float, faults: list[str]) -> tuple[Subset, Subset | None]:
    """What is left of a source, and what is set apart of it, nothing of a share of 0."""
    if not share:
        return subset, None
    left, apart = (subset.where(InShare("apart", *cut)) for cut in ((share, 1), (0, share)))
    if not (left.num_samples and apart.num_samples):
        faults.append(
            f"data.set_apart: {share} of sources.{subset.name} ({subset.num_samples} samples) leaves none on one side; "
            "give another fraction, or more samples"
        )
    return left, apart


def numbering_faults(subsets: Sequence[Subset], classes: Sequence[str]) -> list[str]:
    """Why subsets cannot have one numbering."""
    masked = [subset.name for subset in subsets if "mask" in subset.manifest.fields]
    if len(classes) <= VOID or not masked:
        return []
    return [f"data.sources: have {len(classes)} classes together, and the masks of {', '.join(masked)} can hold {VOID}"]


def open_subset(folder: str | Path, split: str = "train", name: str | None = None) -> Subset:
    """A whole split of a local folder; `name`: that of the data set if none is given. Raises ConfigError."""
    manifest = read_manifest(folder, split)
    open_index(folder, manifest)
    missing = [shard.path for shard in manifest.shards if not os.path.isfile(os.path.join(folder, shard.path))]
    if missing:
        raise ConfigError(f"{folder}: {len(missing)} shards are missing ({', '.join(missing[:3])}); build it again")
    return Subset(name or manifest.name, str(folder), manifest)


def _open_all(
    config: DataConfig,
    section: str,
    group: Mapping[str, SourceConfig],
    store: Store | None,
    unfit: Callable[[Subset], Sequence[str]],
    faults: list[str],
) -> list[Subset]:
    subsets = []
    for name, source in sorted(group.items()):
        try:
            folder = config.location(source)
            remote = store if is_url(folder) else None
            subset = (
                _open_remote(name, folder, source.split, remote) if remote else open_subset(folder, source.split, name)
            )
            if not subset.manifest.num_samples:
                raise ConfigError(f"{folder}: split {source.split!r} has no samples")
            subsets.append(_filtered(subset, source.where))
            faults += [f"data.{section}.{name}: {fault}" for fault in unfit(subsets[-1])]
        except ConfigError as error:
            faults += [f"data.{section}.{name}: {fault}" for fault in error.faults]
    return subsets


def fetch_manifest(folder: str, split: str, read: Callable[[str], bytes]) -> Manifest:
    """The manifest of a split in a store; `read`: the bytes of a URL. Raises ConfigError."""
    where = join(folder, manifest_name(split))
    with _faults_of_stores(split):
        return parse_manifest(read(where), shown(where))


def filters_of(subset: Subset, where: WhereConfig) -> list[Filter]:
    """The filters that `where` means for a subset. Raises ConfigError."""
    filters: list[Filter] = [InShare("where", *where.hash)] if where.hash else []
    if where.classes:
        names = subset.manifest.classes
        unknown = [name for name in where.classes if name not in names]
        if unknown:
            raise ConfigError(f"where.classes: {', '.join(unknown)} not in {subset.folder}; it has {', '.join(names)}")
        if subset.manifest.task != "classification":
            raise ConfigError(
                f"where.classes: samples of {subset.folder} have no class of their own ({subset.manifest.task})"
            )
        filters.append(OfClasses(tuple(sorted(names.index(name) for name in where.classes))))
    return filters


def _open_remote(name: str, folder: str, split: str, store: Store) -> Subset:
    manifest = fetch_manifest(folder, split, store.read_bytes)
    with _faults_of_stores(split):
        index_path = store.keep(Remote(join(folder, manifest.index.path), manifest.index))
    open_index(folder, manifest, index_path)
    return Subset(name, folder, manifest, index_path=index_path, store=store)


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


def _filtered(subset: Subset, where: WhereConfig | None) -> Subset:
    if where is None:
        return subset
    subset = subset.where(*filters_of(subset, where))
    if not subset.num_samples:
        raise ConfigError(f"where: none of {subset.folder}'s {subset.manifest.num_samples} samples passes")
    return subset
