"""What changed between two splits in words, from the manifests to single samples, and as a table (.csv).

Keys stand in the tars alone: those that are reported are read for it, all of them for the table.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from shards.config import DataConfig, SourceConfig
from shards.format.hashing import Ints
from shards.format.manifest import Manifest, older_split, splits_in
from shards.inspect.diff import PARTS, Changes, reading
from shards.loading.state import differences, make_plan
from shards.loading.subset import Subset
from shards.settings import is_url
from shards.text import counted, printable, short, size, table

_KEYS, _ROWS, _LONGEST = 3, 12, 28
COLUMNS = ("change", "what", "key", "class_a", "class_b", "shard_a", "shard_b")


def diff_lines(a: Subset, b: Subset, changes: Changes | None) -> list[str]:
    """The whole report; `changes` None: both are of one version."""
    lines = [*_head(a, b), *_facts(a.manifest, b.manifest), ""]
    if changes:
        lines += [*_samples(a, b, changes), "", *_run(a, b)]
    else:
        lines += ["the same version: the same samples in the same order, and a run on A goes on with B"]
    return [printable(line) for line in lines]


def csv_rows(a: Subset, b: Subset, changes: Changes) -> Iterator[list[str]]:
    """Every sample that differs, a row of COLUMNS each."""
    removed, added, ours, theirs = (
        zip(_class_names(subset, rows), _shards(subset, rows), strict=True)
        for subset, rows in ((a, changes.removed), (b, changes.added), (a, changes.a), (b, changes.b))
    )
    for (_, sample), (name, shard) in zip(reading(a, changes.removed), removed, strict=True):
        yield ["removed", "", sample.key, name, "", shard, ""]
    for (_, sample), (name, shard) in zip(reading(b, changes.added), added, strict=True):
        yield ["added", "", sample.key, "", name, "", shard]
    for n, ((_, sample), our, their) in enumerate(zip(reading(a, changes.a), ours, theirs, strict=True)):
        what = [part for part, is_other in zip(PARTS, changes.parts[n], strict=True) if is_other]
        what = ["label"] * bool(changes.label[n]) + what + ["unreadable"] * bool(changes.unread[n])
        yield ["changed", " ".join(what), sample.key, our[0], their[0], our[1], their[1]]


def _head(a: Subset, b: Subset) -> list[str]:
    rows = []
    for side, subset in (("A", a), ("B", b)):
        manifest = subset.manifest
        shards, total = len(manifest.shards), sum(shard.bytes for shard in manifest.shards)
        reported = [f"{manifest.num_samples:,} samples", counted(shards, "shard"), size(total)]
        rows.append([side, subset.folder, older_split(manifest), *reported])
    return table(rows, 3)


def _facts(a: Manifest, b: Manifest) -> list[str]:
    """What the manifests say otherwise."""
    ours, theirs = _said(a), _said(b)
    names = [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]
    rows = [[name, _shown(ours.get(name)), _shown(theirs.get(name))] for name in names]
    return (["", *table([["", "A", "B"], *rows], 3)] if rows else []) + _classes(a.classes, b.classes)


def _said(manifest: Manifest) -> dict[str, Any]:
    stats = manifest.stats
    return {
        "name": manifest.name,
        "split": manifest.split,
        "task": manifest.task,
        **{f"fields.{role}": member for role, member in manifest.fields.items()},
        "width": stats.width,
        "height": stats.height,
        "channel mean": stats.channel_mean,
        "channel std": stats.channel_std,
        "parent": manifest.parent,
        **{f"made_by.{name}": value for name, value in manifest.made_by.items()},
    }


def _shown(value: Any) -> str:
    """A value of a manifest; ranges as such, versions by their first digits."""
    if isinstance(value, tuple):
        return (" to " if len(value) == 2 else ", ").join(f"{part:.4g}" for part in value)
    return str(value).removeprefix("sha256:")[:_LONGEST] if value is not None else "none"


def _classes(ours: Sequence[str], theirs: Sequence[str]) -> list[str]:
    gone, new = [name for name in ours if name not in theirs], [name for name in theirs if name not in ours]
    lines = [
        f"classes that only {side} has: {', '.join(names[:_ROWS])}" + ", ..." * (len(names) > _ROWS)
        for side, names in (("A", gone), ("B", new))
        if names
    ]
    if [name for name in ours if name in theirs] != [name for name in theirs if name in ours]:
        lines.append("classes that both have come in another order")
    return ["", *lines] if lines else []


def _samples(a: Subset, b: Subset, changes: Changes) -> list[str]:
    counts = {"removed": len(changes.removed), "added": len(changes.added), "changed": len(changes.a)}
    reported = ", ".join(f"{count:,} {what}" for what, count in counts.items())
    lines = [f"samples: {changes.num_same:,} the same, {reported}"]
    if groups := _groups(a, b, changes):
        keys = _first_keys(a, b, groups)
        rows = zip(groups, keys, strict=True)
        lines += table([[group.what, group.which, f"{len(group.rows):,}", some] for group, some in rows], 2, 1)
    if len(changes.removed) and len(changes.added):
        lines.append("the same images under other keys? `xfer shards dups` finds them")
    if changes.nothing and changes.in_order:
        return [*lines, "order: the same, only cut into other shards"]
    order = "the same order" if changes.in_order else "another order"
    return [*lines, f"order: samples that are in both come in {order}"] if changes.num_same else lines


@dataclass(frozen=True)
class _Group:
    """Samples that changed in one way, by rows of A, or of B if they are only there."""

    what: str
    which: str
    rows: Sequence[int]
    in_b: bool = False


def _groups(a: Subset, b: Subset, changes: Changes) -> list[_Group]:
    """Samples by what changed and their class, or both classes if it is that; the largest groups of each kind."""
    kinds = [("removed", a, changes.removed), ("added", b, changes.added)]
    kinds += [(part, a, changes.a[changes.parts[:, column]]) for column, part in enumerate(PARTS)]
    kinds += [("unreadable", a, changes.a[changes.unread])]
    groups = []
    for what, subset, rows in kinds:
        groups += _largest(what, _class_names(subset, rows), rows, what == "added")
    ours, theirs = changes.a[changes.label], changes.b[changes.label]
    both = zip(_class_names(a, ours), _class_names(b, theirs), strict=True)
    return groups + _largest("label", [f"{old or 'none'} -> {new or 'none'}" for old, new in both], ours, False)


def _largest(what: str, names: Sequence[str], rows: Ints, in_b: bool) -> list[_Group]:
    by_name: dict[str, list[int]] = defaultdict(list)
    for name, row in zip(names, rows.tolist(), strict=True):
        by_name[name].append(row)
    order = sorted(by_name, key=lambda name: (-len(by_name[name]), name))
    groups = [_Group(what, name, by_name[name], in_b) for name in order[:_ROWS]]
    if rest := [row for name in order[_ROWS:] for row in by_name[name]]:
        groups.append(_Group(what, f"and {len(order) - _ROWS:,} more", rest, in_b))
    return groups


def _first_keys(a: Subset, b: Subset, groups: Sequence[_Group]) -> list[str]:
    """The first keys of each group."""
    keys: dict[tuple[bool, int], str] = {}
    for in_b, subset in ((False, a), (True, b)):
        rows = {row for group in groups if group.in_b is in_b for row in group.rows[:_KEYS]}
        for row, sample in reading(subset, np.array(sorted(rows), np.int64)):
            keys[in_b, row] = sample.key
    return [
        ", ".join(short(keys[group.in_b, row], _LONGEST) for row in group.rows[:_KEYS])
        + ", ..." * (len(group.rows) > _KEYS)
        for group in groups
    ]


def _run(a: Subset, b: Subset) -> list[str]:
    """What a run that began on A says of B, and what to do about it."""
    config = DataConfig(sources={"name": SourceConfig(path=a.folder)}, validation=0)
    ours, theirs = (make_plan([replace(subset, name="name")], config) for subset in (a, b))
    lines = ["a run that began on A does not go on with B by itself; it stops and says:"]
    lines += [f"  {line.replace('sources.name', 'sources.NAME')}" for line in differences(ours, theirs, 0)]
    lines.append("`on_change: continue` goes on with B, from the same position.")
    kept = older_split(a.manifest)
    if not is_url(b.folder) and kept in splits_in(b.folder):
        lines[-1] += f" `split: {kept}` goes on with A, which is kept beside B."
    return lines


def _class_names(subset: Subset, rows: Ints) -> list[str]:
    """The class of each row; empty if it has none of its own."""
    classes = subset.manifest.classes
    return [classes[label] if 0 <= label < len(classes) else "" for label in subset.index()["label"][rows].tolist()]


def _shards(subset: Subset, rows: Ints) -> list[str]:
    """The tar of each row."""
    places = np.searchsorted(subset.shard_starts, rows, side="right") - 1
    return [subset.manifest.shards[place].path for place in places.tolist()]
