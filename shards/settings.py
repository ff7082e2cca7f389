"""Strict YAML configuration: every fault of a file in one message, each with its dotted path.

A document is a pydantic model (`Strict`: unknown keys refused, values frozen). Where a document holds another one (a
study its job, a job its recipe), the YAML gives it inline or as the relative path of its own file. Overrides name a
value by its dotted path; `data.seed=1` reaches the recipe inside a job or a study without naming the documents around
it.
"""

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

_DEEPEST = 100


class ConfigError(Exception):
    """What a user can mend. `faults` holds one line for each fault; the command line prints them all and exits with
    2.
    """

    def __init__(self, faults: str | Sequence[str], origin: str | Path | None = None):
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        self.origin = origin
        head = f"{origin}: " if origin else ""
        count = len(self.faults)
        super().__init__(head + (self.faults[0] if count == 1 else f"{count} faults\n  " + "\n  ".join(self.faults)))


class Strict(BaseModel):
    """A section of configuration: unknown keys are refused, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


Kind = TypeVar("Kind", bound=Strict)


def is_url(location: str) -> bool:
    """Whether `location` names a remote store (`s3://...`) and not a local path."""
    return "://" in location


def _absolute(location: str) -> str:
    return location if is_url(location) else os.path.abspath(os.path.expanduser(location))


Location = Annotated[str, AfterValidator(_absolute)]
"""A URL, or a local path made absolute against the current folder: workers on a cluster run in another one."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """yaml.SafeLoader that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise ConfigError(f"line {line}: key {key!r} is given twice (first in line {seen[key]})")
            seen[key] = line
        return super().construct_mapping(node, deep)


def _depth(text: str) -> int:
    """How many brackets are open at once, at most. PyYAML's time grows with the square of it: minutes for 100 kB."""
    depth = deepest = 0
    for found in re.finditer(r"[\[\]{}]", text):
        depth = depth + 1 if found.group() in "[{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    return deepest


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError if it is missing, not YAML, or not a mapping."""
    path = Path(path)
    if not path.is_file():
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")] or [""])
        hint = f"; did you mean {path.parent / close[0]}?" if close and close[0] else ""
        raise ConfigError(f"no such file{hint}", path)
    try:
        text = path.read_text()
        if _depth(text) > _DEEPEST:
            raise ConfigError(f"more than {_DEEPEST} brackets inside each other")
        content = yaml.load(text, _UniqueKeyLoader)
    except ConfigError as error:
        raise ConfigError(error.faults, path) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, a date like 2026-13-32
        raise ConfigError(f"not a YAML file: {' '.join(str(error).split())}", path) from None
    if not isinstance(content, dict):
        raise ConfigError(f"expected a mapping of keys to values, found {type(content).__name__}", path)
    return content


def load(path: str | Path, kind: type[Kind], overrides: Sequence[str] = ()) -> Kind:
    """Reads the document `kind` from a YAML file, with `dotted.path=value` overrides applied.

    Raises ConfigError listing every fault.
    """
    content = _with_files(read_yaml(path), kind, Path(path).parent)
    changes, faults = {}, []
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name:
            faults.append(f"{override!r}: an override is written dotted.path=value")
            continue
        try:
            changes[name] = yaml.load(value, _UniqueKeyLoader) if value else None
        except (yaml.YAMLError, ConfigError):
            faults.append(f"{name}: {value!r} is not a YAML value")
    if faults:
        raise ConfigError(faults)
    return _build(kind, content, changes, path)


def replace(config: Kind, changes: Mapping[str, Any]) -> Kind:
    """A copy of `config` with the values at dotted paths replaced, validated again. Raises ConfigError."""
    return _build(type(config), config.model_dump(mode="json"), changes, None)


def dump(config: Strict) -> str:
    """The document as YAML text that `load` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def get(config: Strict, path: str) -> Any:
    """The value at a dotted path. Raises ConfigError if there is no such value."""
    value: Any = config
    for part in full_path(type(config), path).split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, Strict) and part in type(value).model_fields:
            value = getattr(value, part)
        else:
            raise ConfigError(f"{path}: no such value")
    return value


def full_path(kind: type[Strict], path: str) -> str:
    """`path` with the documents around it: `data.seed` of a study is `job.recipe.data.seed`.

    A document is a field of Strict type that `kind` marks with `json_schema_extra={"document": True}`.
    """
    head = path.split(".")[0]
    if head in kind.model_fields:
        return path
    for name, inner in _documents(kind):
        found = full_path(inner, path)
        if found.split(".")[0] in inner.model_fields:
            return f"{name}.{found}"
    return path


def _documents(kind: type[Strict]) -> Iterator[tuple[str, type[Strict]]]:
    for name, info in kind.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("document"):
            candidates = [info.annotation, *get_args(info.annotation)]
            yield from ((name, c) for c in candidates if isinstance(c, type) and issubclass(c, Strict))


def _with_files(content: dict[str, Any], kind: type[Strict], folder: Path) -> dict[str, Any]:
    """Documents given as the path of their own file, read in."""
    for name, inner in _documents(kind):
        value = content.get(name)
        if isinstance(value, str):
            path = folder / value
            content[name] = _with_files(read_yaml(path), inner, path.parent)
        elif isinstance(value, dict):
            content[name] = _with_files(value, inner, folder)
    return content


def _build(kind: type[Kind], content: dict[str, Any], changes: Mapping[str, Any], origin: str | Path | None) -> Kind:
    faults = []
    for path, value in changes.items():
        *parents, last = full_path(kind, path).split(".")
        section = content
        for parent in parents:
            if section.get(parent) is None:
                section[parent] = {}
            section = section[parent]
            if not isinstance(section, dict):
                faults.append(f"{path}: {parent!r} is a plain value, it has no {last!r}")
                break
        else:
            section[last] = value
    if faults:
        raise ConfigError(faults, origin)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError([_fault(kind, fault) for fault in error.errors()], origin) from None


def _fault(kind: type[Strict], fault: ErrorDetails) -> str:
    where = ".".join(str(part) for part in fault["loc"]) or "the file"
    given = fault["input"]
    shown = f", not {given!r}" if not isinstance(given, (dict, list, Strict)) else ""
    match fault["type"]:
        case "extra_forbidden":
            known = _keys_at(kind, fault["loc"][:-1])
            close = difflib.get_close_matches(str(fault["loc"][-1]), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(known)) or 'nothing'}"
            return f"{where}: unknown key; {hint}"
        case "missing":
            return f"{where}: required, but not given"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"{where}: expected a section of keys and values{shown}"
        case _:
            message = fault["msg"].removeprefix("Value error, ")
            return f"{where}: {message[0].lower()}{message[1:]}{shown if fault['type'] != 'value_error' else ''}"


def _keys_at(kind: Any, location: Sequence[int | str]) -> list[str]:
    """The keys that are accepted at a location inside the annotation `kind`; empty where anything goes."""
    if _is_strict(kind):
        if not location:
            return list(kind.model_fields)
        info = kind.model_fields.get(str(location[0]))
        return _keys_at(info.annotation, location[1:]) if info else []
    rest = location[1:] if get_origin(kind) in (dict, list, tuple) else location
    return [key for inner in get_args(kind) for key in _keys_at(inner, rest)]


def _is_strict(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Strict)
