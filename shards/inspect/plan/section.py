"""The data section of a YAML file, and the few numbers around it that a plan of the data needs.

The file is a data section, or holds one as `data`, by itself or inside other documents (`recipe`, `job`), each inline
or as the path of its own file. Nothing else in them is looked at. An override of anything else is refused: it would
change nothing here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.config import DataConfig
from shards.settings import ConfigError, Strict, parse, read_overrides, read_yaml

_AROUND = ("job", "recipe")
_NUMBERS = {"train.steps": "steps", "train.evaluate_every": "evaluate_every", "cluster.workers": "ranks"}


class _Holder(Strict):
    data: DataConfig


@dataclass(frozen=True)
class Section:
    """A data section, and what the documents around it say of the run; None: they do not."""

    data: DataConfig
    steps: int | None = None
    evaluate_every: int | None = None
    ranks: int | None = None


def read_section(path: str | Path, overrides: Sequence[str] = ()) -> Section:
    """The data section of a YAML file, with overrides applied. Raises ConfigError listing every fault."""
    documents = list(_documents(path))
    inner = documents[-1]
    changes, faults = read_overrides(overrides)
    if "data" not in inner and "sources" in inner and len(documents) == 1:
        changes = {name.removeprefix("data."): value for name, value in changes.items()}
        return Section(parse(inner, DataConfig, changes, faults, path))
    if "data" not in inner:
        found = ", ".join(map(str, inner)) or "nothing"
        expected = "a recipe (`data:`), a job (`recipe:`), a study (`job:`) or a data section by itself (`sources:`)"
        raise ConfigError(f"no data section; expected {expected}, found {found}", path)
    changes = {name.removeprefix("job.").removeprefix("recipe."): value for name, value in changes.items()}
    others = [name for name in changes if name.partition(".")[0] != "data" and name not in _NUMBERS]
    faults += [f"{name}: has no part in a plan of the data; expected data.*, {', '.join(_NUMBERS)}" for name in others]
    numbers = {name: changes.get(name, _at(documents, name)) for name in _NUMBERS}
    faults += [
        f"{name}: must be a whole number of at least 1, got {number!r}"
        for name, number in numbers.items()
        if number is not None and not (type(number) is int and number >= 1)
    ]
    data = {name: value for name, value in changes.items() if name.partition(".")[0] == "data"}
    return Section(
        parse({"data": inner["data"]}, _Holder, data, faults, path).data,
        **{_NUMBERS[name]: number for name, number in numbers.items()},
    )


def _documents(path: str | Path) -> Iterator[dict[str, Any]]:
    """The document in a file and those inside it, the outermost first."""
    content, folder = read_yaml(path), Path(path).parent
    yield content
    for name in _AROUND:
        if name not in content:
            continue
        inner = content[name]
        if isinstance(inner, str):
            content, folder = read_yaml(folder / inner), (folder / inner).parent
        elif isinstance(inner, dict):
            content = inner
        else:
            raise ConfigError(f"{name}: must be a mapping or the path of its own file, got {inner!r}", path)
        yield content


def _at(documents: Sequence[Mapping[str, Any]], name: str) -> Any:
    """The value at `section.key` in whichever document has it; None if there is none."""
    section, _, key = name.partition(".")
    found = [document.get(section) for document in documents]
    return next((one.get(key) for one in found if isinstance(one, Mapping)), None)
