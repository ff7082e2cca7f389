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
    raise ValueError(f"{what} among its members ({', '.join(members)}){'' if found else of_dots(members)}")


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
        names = tuple(line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--classes: {path} cannot be read ({error}); expected a text file, one name a line"
        ) from None
    if not names:
        raise ConfigError(f"--classes: {path} is empty; expected one name a line")
    return names


@dataclass(frozen=True)
class Numbering:
    """Class names in order, the class index of each label's text, and what has to be said about that."""

    classes: tuple[str, ...]
    places: dict[str, int]
    notes: tuple[str, ...] = ()


def number_labels(
    found: Iterable[str],
    given: Sequence[str],
    where: str,
    numeric: bool = False,
    own: Sequence[str] = (),
    strict: bool = True,
) -> Numbering:
    """Which class each label is.

    `found`: the labels' texts; `given`: class names of the user's; `own`: the source's own, by index. `numeric`:
    labels are whole numbers by their kind, as in `.cls`, and not texts that look like them. Not `strict`: labels that
    are none of the user's names have no place, instead of being a fault.

    A label is the class of that name, or else an index into the names, if all labels are plain numbers and the names
    are none. Numbers given as names are names. Without names, plain numbers stay their own index and all else is
    sorted; `007` is no plain number. Raises ConfigError if labels and names do not fit, or fit in two ways.
    """
    found = sorted(set(found))
    if own:
        return _renamed(_by_index(found, own, where), given, where) if given else _by_index(found, own, where)
    if given:
        return _by_names(found, given, where, numeric, strict)
    plain = bool(found) and all(is_plain(text) for text in found)
    if len(found) > MOST_CLASSES or (plain and int(max(found, key=int)) >= MOST_CLASSES):
        raise ConfigError(
            f"{where}: {len(found):,} distinct labels ({_some(found)}): are these classes? Name another label with "
            f"--label, or the classes with --classes"
        )
    if len(found) == 1:
        raise ConfigError(f"{where}: only one class, {found[0]!r}; a classifier needs two; all of them: --classes")
    if plain:
        names = tuple(map(str, range(int(max(found, key=int)) + 1)))
        return Numbering(names, {text: int(text) for text in found})
    odd = [text for text in found if is_index(text) and not is_plain(text)]
    notes = (f"labels are names, not numbers: {_some(odd)} begin with a zero",) if odd else ()
    return Numbering(tuple(found), {text: place for place, text in enumerate(found)}, notes)


def _by_index(found: Sequence[str], names: Sequence[str], where: str) -> Numbering:
    """Labels that are places in `names`, or the names themselves."""
    by_name = {name: place for place, name in enumerate(names)}
    places = {text: int(text) if is_plain(text) and int(text) < len(names) else by_name.get(text, -1) for text in found}
    wrong = [text for text, place in places.items() if place < 0]
    if wrong:
        raise ConfigError(f"{where}: labels {_some(wrong)} are none of its {len(names)} classes ({_some(names)})")
    return Numbering(tuple(names), places)


def _renamed(own: Numbering, given: Sequence[str], where: str) -> Numbering:
    """The source's own numbering under names of the user's: by name, or by place if they have no name in common."""
    shared = set(own.classes) & set(given)
    used = {own.classes[place] for place in own.places.values()}
    if used <= set(given):
        places = {text: given.index(own.classes[place]) for text, place in own.places.items()}
        return Numbering(tuple(given), places)
    if shared or len(given) != len(own.classes):
        raise ConfigError(
            f"--classes: {where} names its classes {_some(own.classes)}; expected all of them that occur, in any "
            f"order, or {len(own.classes)} new names for them"
        )
    pairs = [f"{old} -> {new}" for old, new in zip(own.classes, given, strict=True)]
    return Numbering(tuple(given), own.places, (f"classes renamed by --classes: {', '.join(pairs[:10])}",))


def _by_names(found: Sequence[str], given: Sequence[str], where: str, numeric: bool, strict: bool) -> Numbering:
    names = {name: place for place, name in enumerate(given)}
    as_names = {text: names[text] for text in found if text in names}
    numbers = any(is_index(name) for name in given)
    plain = all(map(is_plain, found))
    as_indexes = {text: int(text) for text in found if int(text) < len(given)} if plain else {}
    if plain and not numbers:
        as_names = as_indexes
    if numbers and numeric and len(as_indexes) == len(found) and as_indexes != as_names:
        if len(as_names) < len(found):
            return Numbering(tuple(given), as_indexes, ("labels are read as places in --classes, not as their names",))
        raise ConfigError(
            f"{where}: labels {_some(found)} may be names in --classes or places in it; give names that are no "
            f"numbers ('class 1'), or the numbers from 0 on in order"
        )
    wrong = [text for text in found if text not in as_names]
    if wrong and strict:
        raise ConfigError(f"{where}: labels {_some(wrong)} are none of the {len(given)} --classes")
    return Numbering(tuple(given), as_names)


def is_index(text: str) -> bool:
    """Whether a label reads as a number from 0 on, `007` too."""
    return text.isascii() and text.isdigit() and len(text) <= 18


def is_plain(text: str) -> bool:
    """Whether a label is a whole number from 0 on in its usual spelling: 7, not 007."""
    return is_index(text) and (text == "0" or not text.startswith("0"))


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
            there += next((of_dots(members) for members in samples if of_dots(members)), "")
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


def of_dots(extensions: Iterable[str]) -> str:
    """Why there are such extensions as `5 final.jpg`, in words; nothing if there are none."""
    cut = [one for one in extensions if one.rpartition(".")[0] not in ("", "mask") and one.rpartition(".")[2] in IMAGES]
    if not cut:
        return ""
    return f"; a key ends at the first dot of a name, as in WebDataset, so that {cut[0]!r} is an extension: rename them"


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
