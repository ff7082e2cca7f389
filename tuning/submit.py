"""A job or a study, read and checked here, as an order for a cluster.

Nothing here needs torch or Ray, so what is wrong is told in a second: of the file, of the space of a study, of the data
and the weights files. What needs a model to be known (classes that a task lacks, a checkpoint that does not fit) the
job itself checks on the cluster before it starts workers, as it does everywhere.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.config import Job
from cluster.jobs import Order
from shards.config import CacheConfig, DataConfig
from shards.loading.open import open_data
from shards.settings import ConfigError, SchemaError, absolute, is_url, load, read_yaml
from tuning.check import space_faults
from tuning.config import Distribution, Study
from xfer.model_config import ModelConfig, missing_weights

CACHE = CacheConfig.model_fields["folder"].default  # below the home folder of whoever reads it


def order(path: Path, overrides: Sequence[str] = (), unseen: bool = False) -> tuple[Order, Job]:
    """What to run for a job or a study, and the job. unseen: data and weights are on storage that this machine does not
    see.

    Raises ConfigError with every fault that can be seen from here.
    """
    content = read_yaml(path)
    if "data" in content and "recipe" not in content and "space" not in content:
        raise ConfigError("this is a recipe; a job names it, with the machines: `recipe: FILE` and `cluster:`", path)
    kind = Study if "space" in content else Job
    try:
        document = load(path, kind, overrides)
    except SchemaError as error:
        faults = [*error.faults, *(() if unseen else _faults(error.sections))]
        raise ConfigError(faults, error.origin) from None
    job = document.job if isinstance(document, Study) else document
    sections = {"data": job.recipe.data, "model": job.recipe.model}
    faults = [] if unseen else _faults(sections)
    if isinstance(document, Study):
        faults += [*space_faults(job, document.space), *_relative(document.space)]
    if faults:
        raise ConfigError(faults, path)
    name = document.name if isinstance(document, Study) else job.recipe.name
    verb = "tune" if isinstance(document, Study) else "train"
    sent, reads = _sent(document), dict(_paths(job.model_dump(mode="json"), ""))
    return Order(verb, name, sent, Path(job.recipe.output) / name, reads), job


def _faults(sections: Mapping[str, Any]) -> list[str]:
    """Of data and weights files, as far as these sections are sound."""
    data, model, faults = sections.get("data"), sections.get("model"), []
    if isinstance(data, DataConfig):
        try:
            open_data(data)
        except ConfigError as error:
            faults += error.faults
            if not is_url(data.root) and not os.path.isdir(data.root):
                faults.append(f"data.root: {data.root} is not on this machine; if the cluster has it, add --unseen")
    return [*faults, *(missing_weights(model.branches) if isinstance(model, ModelConfig) else [])]


def _relative(space: Mapping[str, Distribution]) -> Iterator[str]:
    """Options that are paths from the current folder: in a job they are made absolute, here they may be anything."""
    for path, distribution in space.items():
        for option in distribution.choice or ():
            if isinstance(option, str) and "/" in option and not os.path.isabs(option) and os.path.exists(option):
                yield f"space.{path}: {option} counts from this folder, trials run in others; give {absolute(option)}"


def _sent(document: Job | Study) -> str:
    """The document for the cluster: it joins the one it is on, and what is below the home folder unless it is given
    (the cache of remote shards) is below the home folder there.
    """
    content = document.model_dump(mode="json")
    job = content.get("job", content)
    job["cluster"]["address"] = "auto"
    cache = job["recipe"]["data"]["cache"]
    if cache["folder"] == absolute(CACHE):
        cache["folder"] = CACHE
    return json.dumps(content, indent=1)  # which is YAML


def _paths(content: Any, where: str) -> Iterator[tuple[str, str]]:
    """Absolute local paths in a document, by dotted path without the documents around it."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            inside = "" if name == "recipe" else f"{where}{name}."
            yield from _paths(value, inside)
    elif isinstance(content, str) and os.path.isabs(content) and where != "data.cache.folder.":
        yield where.rstrip("."), content
