"""The data section of any document that holds one: a recipe, a job, a study, or the section in a file of its own.

A recipe's other sections belong to packages above this one; of these only the few numbers are read that a plan of the
data needs. An override of anything else is refused: it would change nothing here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, Field

from shards.config import DataConfig
from shards.settings import ConfigError, Kind, Strict, full_path, load, read_yaml

_READ = ("train.steps", "train.evaluate_every", "cluster.workers")


class _Train(Strict):
    model_config = ConfigDict(extra="ignore")
    steps: int | None = Field(default=None, ge=1)
    evaluate_every: int | None = Field(default=None, ge=1)


class _Cluster(Strict):
    model_config = ConfigDict(extra="ignore")
    workers: int | None = Field(default=None, ge=1)


class _Recipe(Strict):
    model_config = ConfigDict(extra="ignore")
    data: DataConfig
    train: _Train = _Train()


class _Job(Strict):
    model_config = ConfigDict(extra="ignore")
    recipe: _Recipe = Field(json_schema_extra={"document": True})
    cluster: _Cluster = _Cluster()


class _Study(Strict):
    model_config = ConfigDict(extra="ignore")
    job: _Job = Field(json_schema_extra={"document": True})


@dataclass(frozen=True)
class Section:
    """A data section, and what the documents around it say of the run; None: they do not."""

    data: DataConfig
    steps: int | None = None
    evaluate_every: int | None = None
    ranks: int | None = None


def read_section(path: str | Path, overrides: Sequence[str] = ()) -> Section:
    """The data section of a YAML file, with overrides applied. Raises ConfigError listing every fault."""
    content = read_yaml(path)
    if "job" in content:
        return _of_job(_load(path, _Study, overrides).job)
    if "recipe" in content:
        return _of_job(_load(path, _Job, overrides))
    if "data" in content:
        return _of_recipe(_load(path, _Recipe, overrides))
    if "sources" in content:
        return Section(load(path, DataConfig, [override.removeprefix("data.") for override in overrides]))
    told = "a recipe (`data:`), a job (`recipe:`), a study (`job:`) or a data section by itself (`sources:`)"
    raise ConfigError(f"no data section; expected {told}, found {', '.join(map(str, content)) or 'nothing'}", path)


def _of_job(job: _Job) -> Section:
    section = _of_recipe(job.recipe)
    return Section(section.data, section.steps, section.evaluate_every, job.cluster.workers)


def _of_recipe(recipe: _Recipe) -> Section:
    return Section(recipe.data, recipe.train.steps, recipe.train.evaluate_every)


def _load(path: str | Path, kind: type[Kind], overrides: Sequence[str]) -> Kind:
    others = [override for override in overrides if "=" in override and not _is_read(kind, override)]
    told = f"has no part in a plan of the data; expected data.*, {', '.join(_READ)}"
    faults = [f"{override.partition('=')[0]}: {told}" for override in others]
    try:
        found = load(path, kind, [override for override in overrides if override not in others])
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults], error.origin or path) from None
    if faults:
        raise ConfigError(faults, path)
    return found


def _is_read(kind: type[Strict], override: str) -> bool:
    """Whether what an override changes is looked at here."""
    name = full_path(kind, override.partition("=")[0]).removeprefix("job.").removeprefix("recipe.")
    return name.partition(".")[0] == "data" or name in _READ
