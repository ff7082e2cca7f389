"""What NVIDIA Megatron-Energon's `energon prepare` leaves beside tars: which of them make a split, and the fields.

    .nv-meta/.info.json       (or .info.yaml) {"shard_counts": {"a/000.tar": 100}}
    .nv-meta/split.yaml       (or split.json) {"split_parts": {"train": ["a/{000..009}.tar"]}, "exclude": [...]}
    .nv-meta/dataset.yaml     {"sample_type": ..., "field_map": {"image": "jpg", "label": "json[label]"}}

Checked against Energon 7.4. Only names are taken from it: `__module__`, `__class__` and `sample_loader` say what
Energon would import and run, and are passed over.
"""

import itertools
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from shards.format.fields import Roles
from shards.settings import ConfigError, read_yaml

META = ".nv-meta"
_MOST_SHARDS = 1_000_000
_IMAGE, _LABEL, _SIDE = ("image",), ("label", "label_name"), ("caption", "text", "context")
_ACCESS = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")


@dataclass(frozen=True)
class Prepared:
    """One split of a prepared folder: its shards (relative paths), keys left out (`<shard>/<key>`), and the roles."""

    shards: tuple[str, ...]
    excluded: frozenset[str]
    roles: Roles


def read_prepared(folder: Path, split: str) -> Prepared | None:
    """What Energon knows about a split; None if it never prepared the folder. Raises ConfigError."""
    meta = folder / META
    if not meta.is_dir():
        return None
    content = _read(meta, "split.yaml", "split.json")
    if content is None:
        raise ConfigError(f"{meta}: no split.yaml; run `energon prepare` again, or move {META} away")
    parts = content.get("split_parts")
    if not isinstance(parts, dict) or not all(_are_texts(names) for names in parts.values()):
        raise ConfigError(f"{meta}/split.yaml: expected split_parts: a list of tars for each split")
    if split not in parts:
        raise ConfigError(f"{meta}/split.yaml: no split {split!r}; it has {', '.join(map(str, parts)) or 'none'}")
    exclude = content.get("exclude") or []
    if not _are_texts(exclude):
        raise ConfigError(f"{meta}/split.yaml: exclude: expected a list of names")
    excluded = frozenset(_expand(exclude, meta))
    shards = tuple(name for name in _expand(parts[split], meta) if name not in excluded)
    outside = [name for name in shards if os.path.isabs(name) or ".." in Path(name).parts]
    if outside:
        raise ConfigError(f"{meta}/split.yaml: {outside[0]!r} leads out of the folder")
    if not shards:
        raise ConfigError(f"{meta}/split.yaml: split {split!r} has no shards")
    return Prepared(shards, excluded, _roles(_read(meta, "dataset.yaml") or {}))


def _roles(dataset: dict[str, Any]) -> Roles:
    fields = dataset.get("field_map")
    if not isinstance(fields, dict):
        return Roles()
    image, label, side = (
        next((_options(fields[name]) for name in names if name in fields), []) for names in (_IMAGE, _LABEL, _SIDE)
    )
    return Roles(tuple(image), label[0] if label else None, side=side[0] if side else None)


def _options(access: Any) -> list[str]:
    """`jpg,png` -> [jpg, png]; `json[meta][label]` -> [json:meta.label]: alternatives, as Energon reads them."""
    options = []
    for option in str(access).lower().split(",") if "[" not in str(access) else str(access).split(","):
        found = _ACCESS.fullmatch(option.strip())
        if found:
            path = ".".join(re.findall(r"\[([^\[\]]+)\]", found.group(2)))
            options.append(f"{found.group(1)}:{path}" if path else found.group(1))
    return options


def _read(meta: Path, *names: str) -> dict[str, Any] | None:
    for name in names:
        path = meta / name
        if not path.is_file():
            continue
        if path.suffix == ".yaml":
            return read_yaml(path)
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not JSON: {error}") from None
        return content if isinstance(content, dict) else {}
    return None


def _expand(patterns: list[str], meta: Path) -> list[str]:
    """Names from `{000..009}` patterns; `{0..999999999}` must not fill the memory."""
    for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", " ".join(patterns)):
        if len(first) > 9 or len(last) > 9 or abs(int(first) - int(last)) > _MOST_SHARDS:
            raise ConfigError(f"{meta}/split.yaml: {{{first}..{last}}} names more than {_MOST_SHARDS:,} tars")
    try:
        names = [name for pattern in patterns for name in itertools.islice(braceexpand(pattern), _MOST_SHARDS + 1)]
    except ValueError as error:
        raise ConfigError(f"{meta}/split.yaml: {error}") from None
    if len(names) > _MOST_SHARDS:
        raise ConfigError(f"{meta}/split.yaml: names more than {_MOST_SHARDS:,} tars")
    return names


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
