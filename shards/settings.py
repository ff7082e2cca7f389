"""Strict YAML configuration: every fault of a file in one message, each with its dotted path.

A document is a pydantic model (`Strict`: unknown keys refused, values frozen). Where a document holds another one (a
study its job, a job its recipe), the YAML gives it inline or as the relative path of its own file. Overrides name a
value by its dotted path; `data.seed=1` reaches the recipe inside a job or a study without naming the documents around
it.

Types are strict: `true` is no number, `1` is not true, `'3'` is text, and a name that YAML takes for something else
(`no`, `007`) is refused with the advice to quote it, never guessed back. Two words are read as YAML 1.2 reads them:
`1e-3` is a number, and a date is the text that it is.
"""

import copy
import difflib
import json
import math
import numbers
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from shards.faults import in_words, not_text, rest, switches

_DEEPEST = 100


class ConfigError(Exception):
    """What a user can fix. `faults` holds one line for each fault; the command line prints them all and exits with
    2.
    """

    def __init__(self, faults: str | Sequence[str], origin: str | Path | None = None):
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        self.origin = origin
        head = f"{origin}: " if origin else ""
        count = len(self.faults)
        super().__init__(head + (self.faults[0] if count == 1 else f"{count} faults\n  " + "\n  ".join(self.faults)))


class SchemaError(ConfigError):
    """A document that is not as its schema says. `sections`: its sections and the documents in it, by name, each
    without what is faulty in it, for checks that go on all the same; those of which too little is left are not there.
    `given`: the same as they were written, as plain values.
    """

    def __init__(
        self, faults: Sequence[str], origin: str | Path | None, sections: Mapping[str, Any], given: Mapping[str, Any]
    ):
        super().__init__(faults, origin)
        self.sections, self.given = dict(sections), dict(given)

    def __reduce__(self) -> tuple[Any, ...]:
        """It crosses processes: pickle would make it from its message alone."""
        return type(self), (self.faults, self.origin, self.sections, self.given)


class Strict(BaseModel):
    """A section of configuration: unknown keys are refused, values cannot change after reading, numbers are finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, serialize_by_alias=True
    )


Kind = TypeVar("Kind", bound=Strict)


def is_url(location: str) -> bool:
    """Whether `location` names a remote store (`s3://...`) and not a local path."""
    return "://" in location


def absolute(location: str) -> str:
    """A local path against the current folder, `~` read; a URL as it is."""
    return location if is_url(location) else os.path.abspath(os.path.expanduser(location))


Location = Annotated[str, AfterValidator(absolute)]
"""A URL, or a local path made absolute against the current folder: workers on a cluster run in another one."""


_EXPONENT = re.compile(r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_DATE = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """yaml.SafeLoader that refuses a key given twice instead of keeping the last, and reads `1e-3` as a number."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _DATE]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if key in seen:
                raise ConfigError(f"line {line}: key {key!r} is given twice (first in line {seen[key]})")
            seen[key] = line
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        value = float(node.value)
        return int(value) if value.is_integer() and "." not in node.value and "-" not in node.value[1:] else value


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read otherwise."""


for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver("!exponent", _EXPONENT, list("-+.0123456789"))
_Loader.add_constructor("!exponent", _Loader.construct_number)


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
    if path.is_dir():
        inside = sorted(one.name for one in path.glob("*.y*ml"))
        raise ConfigError(f"a folder, and no YAML file{'; there is ' + ', '.join(inside[:5]) if inside else ''}", path)
    if not path.is_file():
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")] or [""])
        hint = f"; did you mean {path.parent / close[0]}?" if close and close[0] else ""
        raise ConfigError(f"no such file{hint}", path)
    try:
        text = path.read_text()
        if _depth(text) > _DEEPEST:
            raise ConfigError(f"more than {_DEEPEST} brackets inside each other")
        content = yaml.load(text, _Loader)
    except ConfigError as error:
        raise ConfigError(error.faults, path) from None
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:  # ValueError: no text
        raise ConfigError(f"not a YAML file: {' '.join(str(error).split())}", path) from None
    if not isinstance(content, dict):
        found = "nothing: it is empty" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"must hold keys and values, found {found}", path)
    return content


def load(path: str | Path, kind: type[Kind], overrides: Sequence[str] = ()) -> Kind:
    """Reads the document `kind` from a YAML file, with `dotted.path=value` overrides applied.

    Raises ConfigError listing every fault.
    """
    content = _with_files(read_yaml(path), kind, Path(path).parent)
    return _build(kind, content, *read_overrides(overrides), path)


def read_overrides(overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Values by dotted path of what is written `dotted.path=value`, and a fault for each that cannot be read."""
    changes, faults = {}, []
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name:
            faults.append(f"{override!r}: an override is written dotted.path=value")
            continue
        try:
            changes[name] = yaml.load(value, _Loader) if value else None
        except (yaml.YAMLError, ValueError, ConfigError):
            faults.append(f"{name}: {value!r} is not a YAML value")
    return changes, faults


def parse(
    content: Mapping[str, Any],
    kind: type[Kind],
    changes: Mapping[str, Any] | None = None,
    faults: Sequence[str] = (),
    origin: str | Path | None = None,
) -> Kind:
    """The document `kind` from plain values, held to the same rules as a file. `changes`: values by dotted path;
    `faults`: those found already. Raises ConfigError listing every fault.
    """
    return _build(kind, copy.deepcopy(dict(content)), changes or {}, faults, origin)


def replace(config: Kind, changes: Mapping[str, Any]) -> Kind:
    """A copy of `config` with the values at dotted paths replaced, validated again. Raises ConfigError."""
    return _build(type(config), config.model_dump(mode="json"), changes, [])


def dump(config: Strict) -> str:
    """The document as YAML text that `load` reads back to an equal value."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def in_one_line(value: Any) -> str:
    """A plain value as YAML on one line, that `load` reads back to an equal one."""
    flow = {"default_flow_style": True, "width": math.inf, "sort_keys": False, "allow_unicode": True}
    return yaml.dump(value, Dumper=_Dumper, **flow).removesuffix("\n").removesuffix("\n...")


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


def _build(
    kind: type[Kind],
    content: dict[str, Any],
    changes: Mapping[str, Any],
    faults: Sequence[str],
    origin: str | Path | None = None,
) -> Kind:
    """`faults`: those found already; they do not hide what else is wrong."""
    faults = [*faults, *_change(kind, content, changes)]
    content = _plain(content, "", faults)
    try:
        config = kind.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        faults += [line for _, line in in_words(kind, error.errors())] + rest(kind, content)[1]
    else:
        faults += switches(content, config.model_dump(mode="json"))
        if not faults:
            return config
    raise SchemaError(list(dict.fromkeys(faults)), origin, *_sound(kind, content))


def _change(kind: type[Strict], content: dict[str, Any], changes: Mapping[str, Any]) -> Iterator[str]:
    """Puts the changes in their places; yields what is wrong with the places."""
    for path, value in changes.items():
        *parents, last = full_path(kind, path).split(".")
        section = content
        for parent in parents:
            if section.get(parent) is None:
                section[parent] = {}
            section = section[parent]
            if not isinstance(section, dict):
                yield f"{path}: {parent!r} is a plain value, it has no {last!r}"
                break
        else:
            section[last] = value


def _plain(value: Any, where: str, faults: list[str]) -> Any:
    """What JSON can hold of a value, its names checked to be text: strict types are pydantic's for JSON."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping):
        wrong = [name for name in value if not isinstance(name, str)]
        faults += [not_text(f"{where or 'the file'}: a name in it", name) for name in wrong]
        inside = f"{where}." if where else ""
        return {name: _plain(one, inside + name, faults) for name, one in value.items() if isinstance(name, str)}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one, f"{where}.{number}", faults) for number, one in enumerate(value)]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _sound(kind: type[Strict], content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections of a document and the documents in it, with their sections, by name: without what is faulty, and as
    they were written.
    """
    sections: dict[str, Any] = {}
    given: dict[str, Any] = {}
    documents = dict(_documents(kind))
    for name, info in kind.model_fields.items():
        value = content.get(name)
        given |= {name: value} if name in content else {}
        if isinstance(value, dict):
            inner = _sound(documents[name], value) if name in documents else ({}, {})
            found, _ = rest(info.annotation, value)
            sections |= inner[0] | ({} if found is None else {name: found})
            given |= inner[1]
    return sections, given
