"""Which member of a sample is what, in tars that others wrote: the image, the label, the side inputs.

What the user says counts; what is left open is found by looking at the first samples. A role is written as it stands in
`Manifest.fields`: an extension (`cls`, `txt`, `left.jpg`), or a key inside a JSON member (`json:label`,
`json:meta.label`). A label's text is a class index in ASCII decimal or a class name; nothing else is guessed.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shards.settings import ConfigError

IMAGES = ("jpg", "jpeg", "png", "webp", "bmp")
MOST_CLASSES = 100_000
PROBED = 200
"""Samples looked at to find the roles."""

_LABEL_KEYS = ("label", "class", "cls", "category")
_LONGEST_LABEL = 256


@dataclass(frozen=True)
class Roles:
    """`image`: the extensions of which each sample has exactly one; the others: none if there is none."""

    image: tuple[str, ...] = ()
    label: str | None = None
    boxes: str | None = None
    mask: str | None = None
    side: str | None = None

    @property
    def task(self) -> str:
        """What a model can learn from it."""
        known = {"detection": self.boxes, "segmentation": self.mask, "classification": self.label}
        return next((task for task, role in known.items() if role), "captioning")

    def fields(self, images: Iterable[str] = ()) -> dict[str, str]:
        """As a manifest's `fields`; `images`: the image extensions that really occur."""
        named = {**asdict(self), "image": ", ".join(images)}
        return {role: member for role, member in named.items() if member}


def image_extension(members: Mapping[str, bytes], roles: Roles) -> str:
    """The one member that is the image. Raises ValueError."""
    found = [extension for extension in members if extension in roles.image]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} images ({', '.join(found)})" if found else "no image"
    raise ValueError(f"{what} among its members ({', '.join(members)})")


def member_text(members: Mapping[str, bytes], role: str) -> str:
    """What a role's member says, as one line of text. Raises ValueError."""
    extension, _, path = role.partition(":")
    if extension not in members:
        raise ValueError(f"no member {extension!r} (it has {', '.join(members)})")
    if path:
        return _plain(_at(members[extension], path), role)
    try:
        return _checked(members[extension].decode(), role)
    except UnicodeDecodeError:
        raise ValueError(f"its {extension} is not text") from None


def read_classes(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Class names given as names, as `cat,dog`, or as a file with one name a line. Raises ConfigError."""
    if not given:
        return ()
    text = given if isinstance(given, str) else given[0]
    if not isinstance(given, str) and len(given) > 1:
        names = tuple(given)
    elif os.path.isfile(text) or text.endswith(".txt"):
        names = _names_in(text)
    else:
        names = tuple(name.strip() for name in text.split(","))
    unclear = sorted(name for name, count in Counter(names).items() if not name or count > 1)
    if unclear:
        raise ConfigError(f"--classes: {_some(unclear)} given twice or empty; expected names, every one different")
    return names


def _names_in(path: str) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in Path(path).read_text().splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--classes: {path} cannot be read ({error}); expected a text file, one name a line"
        ) from None
    if not names:
        raise ConfigError(f"--classes: {path} is empty; expected one name a line")
    return names


def class_names(found: Sequence[str], given: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names in label order: those given, else the labels' own texts, sorted; numbers stay their own index.

    Raises ConfigError if labels and names do not fit.
    """
    numbers = all(is_index(text) for text in found)
    if given:
        names = set(given)
        wrong = [text for text in found if text not in names and not (is_index(text) and int(text) < len(given))]
        if wrong:
            raise ConfigError(f"{where}: labels {_some(wrong)} are none of the {len(given)} --classes")
        return tuple(given)
    if len(found) > MOST_CLASSES or (numbers and int(max(found, key=int)) >= MOST_CLASSES):
        raise ConfigError(
            f"{where}: {len(found):,} distinct labels ({_some(found)}): are these classes? Name another label with "
            f"--label, or the classes with --classes"
        )
    if len(found) == 1:
        raise ConfigError(f"{where}: only one class, {found[0]!r}; a classifier needs two; all of them: --classes")
    return tuple(map(str, range(int(max(found, key=int)) + 1))) if numbers else tuple(sorted(found))


def label_table(found: Sequence[str], classes: Sequence[str]) -> dict[str, int]:
    """The class index of each label's text: that of the class with this name, else the text as a number."""
    places = {name: place for place, name in enumerate(classes)}
    return {text: places[text] if text in places else int(text) for text in found}


def is_index(text: str) -> bool:
    """Whether a label is a class index and not a name."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def find(samples: list[dict[str, bytes]], given: Roles, where: str) -> Roles:
    """`given` with the rest found in `samples`, the first of `where`. Raises ConfigError with what is there instead."""
    if not samples:
        raise ConfigError(f"{where}: holds no samples (files named <key>.<extension>, an image and a label each)")
    seen = Counter(extension for members in samples for extension in members)
    there = f"the first {len(samples)} samples hold {', '.join(sorted(seen)[:20])}"
    faults, roles = [], given
    if not roles.image:
        roles = replace(roles, image=IMAGES)
        counts = {len(_images(members)) for members in samples}
        if max(counts) == 0:
            faults.append(f"{where}: no images ({', '.join(IMAGES)}); {there}; name their extension with --image")
        elif max(counts) > 1:
            several = next(_images(members) for members in samples if len(_images(members)) > 1)
            faults.append(f"{where}: several images in one sample ({', '.join(several)}); say which with --image")
    if not any((roles.label, roles.boxes, roles.mask)):
        roles = _look_for_annotations(roles, samples, seen)
        if not any((roles.label, roles.boxes, roles.mask, roles.side)):
            keys = sorted({key for members in samples for key in _json_keys(members)})
            more = f"; keys of json: {', '.join(keys[:20])}" if keys else ""
            faults.append(
                f"{where}: no label found (looked for cls, a json key {'/'.join(_LABEL_KEYS)}, txt with few distinct "
                f"texts); {there}{more}; say where it is: --label EXT or --label json:KEY; or --side EXT for captions"
            )
    for option, role in (("--label", given.label), ("--side", given.side)):
        if role and role.partition(":")[0] not in seen:
            faults.append(f"{option}: {role!r} is in none of them; {there} ({where})")
    if faults:
        raise ConfigError(faults)
    return roles


def _look_for_annotations(roles: Roles, samples: list[dict[str, bytes]], seen: Counter[str]) -> Roles:
    if seen["boxes.json"]:
        return replace(roles, boxes="boxes.json")
    if seen["mask.png"]:
        return replace(roles, mask="mask.png")
    if seen["cls"]:
        return replace(roles, label="cls")
    for key in _LABEL_KEYS:
        if any(key in _json_keys(members) for members in samples):
            return replace(roles, label=f"json:{key}")
    texts = [members["txt"] for members in samples if "txt" in members and roles.side != "txt"]
    few = len(set(texts)) <= max(2, len(texts) // 2) and all(len(text) <= _LONGEST_LABEL for text in texts)
    return replace(roles, label="txt" if texts and few else None)


def _images(members: Mapping[str, bytes]) -> list[str]:
    return [extension for extension in members if extension in IMAGES]


def _json_keys(members: Mapping[str, bytes]) -> list[str]:
    try:
        content = json.loads(members.get("json", b"{}"))
    except (ValueError, RecursionError):
        return []
    return list(content) if isinstance(content, dict) else []


def _at(data: bytes, path: str) -> Any:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its json cannot be read: {error}") from None
    for part in path.split("."):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and is_index(part) and int(part) < len(value):
            value = value[int(part)]
        else:
            raise ValueError(f"its json has no key {path!r}")
    return value


def _plain(value: Any, role: str) -> str:
    if isinstance(value, str):
        return _checked(value, role)
    if isinstance(value, int) and not isinstance(value, bool):
        return _checked(str(value), role) if abs(value) < 1 << 62 else _checked("", role)
    raise ValueError(f"its {role} is {json.dumps(value)[:60]}, expected a text or a whole number")


def _checked(text: str, role: str) -> str:
    text = text.strip()
    if not text or len(text) > _LONGEST_LABEL or not text.isprintable():
        raise ValueError(f"its {role} is {text[:60]!r}, expected one line of 1 to {_LONGEST_LABEL} characters")
    if text.startswith("-") and is_index(text[1:]):
        raise ValueError(f"its {role} is {text}, expected a class index of 0 or more")
    return text


def _some(texts: Sequence[str]) -> str:
    return ", ".join(repr(text[:40]) for text in texts[:5]) + (", ..." if len(texts) > 5 else "")
