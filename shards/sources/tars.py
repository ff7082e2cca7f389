"""Tars that others wrote: which of them make a split, what their members mean, and their samples one by one.

Shared by `index`, which leaves them where they are, and the source `webdataset`, which packs them anew.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from shards.format.fields import PROBED, Roles, find
from shards.format.tar import TarError, parse_sample, spans
from shards.settings import ConfigError
from shards.sources.energon import Prepared, read_prepared

_SPLIT_WORDS = ("train", "training", "val", "valid", "validation", "test", "testing")
_SHOWN = 5
OUTSIDE = "files in tars that belong to no sample (hidden, or without a dot in their names), left out"


@dataclass(frozen=True)
class Foreign:
    """One split: its tars, all in `folder`, the roles of their members, and keys left out by `<tar>/<key>`."""

    folder: Path
    tars: tuple[Path, ...]
    roles: Roles
    excluded: frozenset[str] = frozenset()


def open_foreign(folder: Path, split: str | None, given: Roles, glob: str | None = None) -> Foreign:
    """The tars that `glob` names; else Energon's for the split; else those whose names speak of it, or all.

    Without `split`, all of them. Raises ConfigError with every fault.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; give the folder of tars")
    if glob and ("/" in glob or ".." in glob):
        raise ConfigError(f"--shards: {glob!r}; expected a pattern of file names, such as 'train-*.tar'")
    prepared = read_prepared(folder, split) if split and not glob else None
    tars = _prepared_tars(folder, prepared) if prepared else _matching(folder, split, glob)
    known = prepared.roles if prepared else Roles()
    roles = Roles(given.image or known.image, given.label or known.label, side=given.side or known.side)
    roles = find(_first_samples(tars), roles, str(folder))
    excluded = frozenset(map(_in_its_folder, prepared.excluded)) if prepared else frozenset()
    return Foreign(tars[0].parent, tuple(tars), roles, excluded)


def read_samples(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(key, offset, span) of each sample of a tar, in order. Raises TarError."""
    with open(path, "rb") as file:
        for key, start, end in spans(file):
            file.seek(start)
            yield key, start, file.read(end - start)


def _in_its_folder(excluded: str) -> str:
    """`a/000.tar/cats/7` -> `000.tar/cats/7`: all tars of a split lie in one folder, and a key may hold slashes."""
    tar, ending, key = excluded.partition(".tar/")
    return Path(tar).name + ending + key


def _prepared_tars(folder: Path, prepared: Prepared) -> list[Path]:
    tars = [folder / name for name in prepared.shards]
    missing = [str(tar) for tar in tars if not os.path.isfile(tar)]
    if missing:
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise ConfigError(f"{folder}: tars named in its split.yaml are missing: {', '.join(missing[:_SHOWN])}{more}")
    folders = sorted({tar.parent for tar in tars})
    if len(folders) > 1:
        raise ConfigError(
            f"{folder}: its tars lie in {len(folders)} folders ({', '.join(f.name for f in folders[:_SHOWN])}): index "
            f"each of them with --shards '*.tar'"
        )
    return tars


def _matching(folder: Path, split: str | None, glob: str | None) -> list[Path]:
    tars = sorted(tar for tar in folder.glob(glob or "*.tar") if tar.is_file() and not tar.name.startswith("."))
    if not tars:
        others = sorted(p.name for p in folder.iterdir() if re.search(r"\.tar\.|\.tgz$", p.name))
        hint = f"; {', '.join(others[:_SHOWN])} are compressed: unpack them first" if others else ""
        raise ConfigError(f"{folder}: no file matches {glob or '*.tar'!r}{hint}")
    if glob or not split:
        return tars
    words = {tar: re.match(r"[a-z]*", tar.name.lower()) for tar in tars}
    named = sorted({word.group() for word in words.values() if word and word.group() in _SPLIT_WORDS})
    own = [tar for tar in tars if re.match(re.escape(split) + r"(?![A-Za-z])", tar.name)]
    if named and not own:
        # A folder that holds several splits must not become one of them.
        raise ConfigError(
            f"{folder}: the tars' names speak of {', '.join(named)}, not of split {split!r}; give --split, or say "
            f"which belong to it with --shards"
        )
    return own or tars


def _first_samples(tars: list[Path]) -> list[dict[str, bytes]]:
    """A few samples of the first tar, or of the next that can be read. Raises ConfigError if the first few cannot."""
    faults = []
    for tar in tars[:_SHOWN]:
        found = []
        try:
            for _, _, span in islice(read_samples(tar), PROBED):
                found.append(parse_sample(span)[1])
        except (TarError, OSError) as error:
            faults.append(f"{tar}: {error}")
        if found:
            return found
    if faults:
        raise ConfigError(faults)
    return []
