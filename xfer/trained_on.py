"""What a model was trained on, kept with it: enough to tell later whether images that it is scored on are among that.

    trained_on.json    of a run: one entry for each training source, its own and those of the models it began with; and
                       how many images it is validated on were trained on before, by source

A bundle has the entries in its recipe.yaml, without the folders of the training machine. An entry names the version of
a built data set and what was cut out of it. So an image of the same data set is recognised anywhere, and one that came
into another data set wherever the folder of the entry is still there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from shards.config import CacheConfig, DataConfig
from shards.format.whole import read_json, write_json
from shards.loading.leaks import num_shared
from shards.loading.open import open_data
from shards.loading.subset import Filter, InShare, OfClasses, Subset
from shards.settings import ConfigError, Strict

FILE = "trained_on.json"


class TrainedOn(Strict):
    """One source. `version`, `samples` and `where` are those of `Subset.identity`."""

    name: str
    version: str
    samples: int
    where: tuple[dict[str, tuple[int | float, ...]], ...] = ()
    folder: str | None = None
    split: str = "train"


def entries(subsets: Iterable[Subset]) -> list[TrainedOn]:
    """Of these subsets, each trained on whole."""
    return [TrainedOn(**one.identity(), name=one.name, folder=one.folder, split=one.manifest.split) for one in subsets]


def without_folder(entry: TrainedOn) -> TrainedOn:
    """As it goes into a bundle."""
    return entry.model_copy(update={"folder": None})


def keep_entries(run: Path, found: Sequence[TrainedOn], seen: Mapping[str, int] = MappingProxyType({})) -> None:
    """Adds to what is kept in a run folder: what was trained on once stays so, whatever the run goes on with. `seen`:
    by source, validation images that were trained on before the run began.
    """
    kept = read_entries(run)
    seen = seen or read_json(run / FILE).get("validation", {})
    added = [one for one in dict.fromkeys(map(_text, found)) if one not in set(map(_text, kept))]
    every = [*kept, *(TrainedOn.model_validate_json(text) for text in added)]
    write_json(run / FILE, {"sources": [one.model_dump(mode="json") for one in every], "validation": dict(seen)})


def seen_text(run: Path) -> str:
    """That a run is validated on images that the model it began with was trained on, in words; empty if it is not."""
    seen = read_json(run / FILE).get("validation", {})
    if not seen:
        return ""
    listed = ", ".join(f"{count:,} of {name}" for name, count in seen.items())
    return (
        f"validation images that the model it began with was trained on: {listed}; on them both the probe and what "
        "came of it look too good"
    )


def read_entries(run: Path) -> list[TrainedOn]:
    """What is kept in a run folder; empty if there is nothing. Raises ConfigError if it is damaged."""
    rows = read_json(run / FILE).get("sources", [])
    try:
        return [TrainedOn.model_validate(row) for row in rows]
    except ValueError:
        raise ConfigError("damaged; remove it, and the run forgets what it was trained on", run / FILE) from None


def num_trained_on(subset: Subset, found: Sequence[TrainedOn], cache: CacheConfig) -> tuple[int, list[str]]:
    """How many samples of `subset` are among what the entries name, and the names of entries that cannot be looked
    into: of another data set, whose folder is not here.
    """
    opened = [(one.name, _open(one, subset, cache)) for one in found]
    there = [one for _, one in opened if one is not None]
    return num_shared(subset, there), [name for name, one in opened if one is None]


def _open(entry: TrainedOn, like: Subset, cache: CacheConfig) -> Subset | None:
    """The subset of an entry: of the data set of `like`, if it is the same, or else where it was."""
    if like.identity()["version"] == entry.version:
        return replace(like, filters=_filters(entry))
    if entry.folder is None:
        return None
    source = {"path": entry.folder, "split": entry.split}
    config = {"sources": {"one": source}, "validation": 0, "cache": cache.model_dump(mode="json")}
    try:
        (there,) = open_data(DataConfig.model_validate(config)).train
    except ConfigError:
        return None
    # built again since: the cuts go by the hash of keys and are as they were, the numbers of classes may not be
    same = there.identity()["version"] == entry.version
    return there.where(*(one for one in _filters(entry) if same or isinstance(one, InShare)))


def _filters(entry: TrainedOn) -> tuple[Filter, ...]:
    return tuple(
        OfClasses(tuple(int(label) for label in values)) if kind == "classes" else InShare(kind, *values)
        for one in entry.where
        for kind, values in one.items()
    )


def _text(entry: TrainedOn) -> str:
    return entry.model_dump_json()
