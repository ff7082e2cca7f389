"""Columns of an Arrow table: which is the image, which the class, and what one row becomes.

An image is binary, or a struct {bytes, path} as Hugging Face writes it. A class is a whole number or a text; the names
of numbers stand in Hugging Face's `features`, beside the schema. Names given by the user count before what is found.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shards.format.fields import Numbering, number_labels
from shards.format.manifest import canonical
from shards.settings import ConfigError
from shards.sources.encoded import image_extension
from shards.sources.source import Refused, SourceOptions

_LABELS = ("label", "labels", "class", "cls", "category")


@dataclass(frozen=True)
class Columns:
    """The columns in use. `names`: of the classes by number, if the source tells them; `kind`: what labels are;
    `left_out`: the other columns.
    """

    image: str
    label: str | None
    side: tuple[str, ...]
    names: tuple[str, ...]
    kind: pa.DataType | None = None
    left_out: tuple[str, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether classes are numbers by the type of their column."""
        return self.kind is not None and (pa.types.is_integer(self.kind) or pa.types.is_floating(self.kind))

    @property
    def fields(self) -> dict[str, str]:
        """Roles of the members that a row becomes."""
        return {**({"label": "cls"} if self.label else {}), **({"side": "json"} if self.side else {})}


def find_columns(schema: pa.Schema, features: Mapping[str, Any], options: SourceOptions, where: str) -> Columns:
    """Raises ConfigError with every fault."""
    faults: list[str] = []
    given = {"--image": [options.image], "--label": [options.label], "--side": options.side}
    for option, columns in given.items():
        unknown = [name for name in columns if name is not None and name not in schema.names]
        if unknown:
            faults.append(f"{option}: no column {', '.join(unknown)} in {where}; it has {', '.join(schema.names)}")
    image = _one(
        options.image, _images(schema, features), "--image", "image (binary, or a struct of bytes)", where, faults
    )
    label = options.label
    if not label and _labels(schema, features):
        label = _one(None, _labels(schema, features), "--label", "class", where, faults)
    if not label and not options.side:
        faults.append(f"--label: no column with a class found in {where}; it has {', '.join(schema.names)}")
    if label in schema.names and not _is_label(schema.field(label).type):
        faults.append(f"--label: column {label} holds {schema.field(label).type}; expected numbers, booleans or texts")
    for name in set(options.side) & set(schema.names):
        if not _is_side(schema.field(name).type):
            faults.append(f"--side: column {name} holds {schema.field(name).type}; expected texts, numbers, text lists")
    if faults:
        raise ConfigError(faults)
    assert image
    feature = features.get(label or "")
    names = feature.get("names") if isinstance(feature, dict) else None
    kind = schema.field(label).type if label else None
    own = tuple(map(str, names)) if isinstance(names, list) else ()
    left_out = tuple(name for name in schema.names if name not in (image, label, *options.side))
    return Columns(image, label, options.side, own, kind, left_out)


def numbering_of(texts: Iterable[str], columns: Columns, given: Sequence[str], where: str) -> Numbering:
    """Which class each of the labels' `texts` is. Raises ConfigError."""
    where, texts = f"{where}, column {columns.label}", set(texts)
    unknown = sorted(text for text in texts if is_unknown(text, columns, given))
    texts -= set(unknown)
    if not texts:
        holds = f"holds {', '.join(unknown)} alone, which means no class" if unknown else "is empty"
        raise ConfigError(f"{where} {holds}; expected a class in each row")
    try:
        return number_labels(texts, given, where, columns.numeric, columns.names)
    except ConfigError as error:
        if not unknown:
            raise
        names = ",".join([*unknown, *sorted(texts)][:9])
        more = f"{where}: {', '.join(unknown)} is taken for 'no class'; if it is one: --classes={names}"
        raise ConfigError([*error.faults, more]) from None


def is_unknown(text: str, columns: Columns, given: Sequence[str]) -> bool:
    """Hugging Face writes -1 where the class is not known, as in hidden test sets; a text or a given name it is not."""
    return columns.numeric and text.startswith("-") and text not in given


def image_member(value: Any) -> dict[str, bytes]:
    """The image of a row, as a member. Raises Refused."""
    path = value.get("path") if isinstance(value, dict) else None
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes) or not data:
        raise Refused(f"its image is only the name of a file, {path!r}" if path else "it has no image")
    return {image_extension(data): data}


def side_member(row: Mapping[str, Any]) -> dict[str, bytes]:
    """The side inputs of a row: numbers and lists of texts stay, the rest is text, and nothing is left out."""
    return {"json": canonical({name: value for name, value in row.items() if value is not None})} if row else {}


def _one(given: str | None, found: list[str], option: str, what: str, where: str, faults: list[str]) -> str | None:
    if given or len(found) == 1:
        return given or found[0]
    if found:
        faults.append(
            f"{option}: {where} has several columns with a {what.split(' ')[0]} ({', '.join(found)}); say which"
        )
    else:
        faults.append(f"{option}: no column with an {what} in {where}")
    return None


def _images(schema: pa.Schema, features: Mapping[str, Any]) -> list[str]:
    typed = [name for name in schema.names if _type(features, name) == "Image"]
    return typed or [field.name for field in schema if _is_binary(field.type) or _is_image_struct(field.type)]


def _labels(schema: pa.Schema, features: Mapping[str, Any]) -> list[str]:
    typed = [name for name in schema.names if _type(features, name) == "ClassLabel"]
    return typed or [name for name in _LABELS if name in schema.names][:1]


def _type(features: Mapping[str, Any], name: str) -> str | None:
    feature = features.get(name)
    return feature.get("_type") if isinstance(feature, dict) else None


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_image_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and any(part.name == "bytes" and _is_binary(part.type) for part in kind)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_class(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return pa.types.is_integer(kind) or _is_text(kind)


def _is_label(kind: pa.DataType) -> bool:
    return _is_class(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _is_side(kind: pa.DataType) -> bool:
    texts = (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_text(kind.value_type)
    return texts or pa.types.is_floating(kind) or _is_class(kind)
