"""Whether the class names of the data make a classifier: what cannot be trained is refused, what is odd is said."""

import unicodedata
from collections.abc import Mapping, Sequence

from shards.loading.open import Splits
from shards.loading.subset import Subset
from xfer.config import TASKS

_SHOWN = 12


def label_faults(data: Splits) -> list[str]:
    """Why a classifier cannot be trained or tested on sources that have classes: a line for each of them."""
    held = [subset for subset in data.validation if subset.name not in {other.name for other in data.train}]
    faults = [
        f"data.sources.{subset.name}: has only one class, {subset.classes[0]}; the loss of its samples is a softmax "
        "over its own classes, so it would be 0 whatever the model says; give it another class, or leave it out"
        for subset in data.train
        if len(subset.classes) == 1
    ]
    occur = sorted({name for subset in data.train for name in _occurring(subset)})
    if not faults and len(occur) < 2:
        faults.append(f"data.sources: all samples are of the class {occur[0]}; there is nothing to tell apart")
    held_at = [
        *((one, f"data.sources.{one.name}") for one in held),
        *((one, f"data.test.{one.name}") for one in data.test),
    ]
    return faults + [
        fault
        for subset, where in held_at
        for fault in scoring_faults(subset, data.classes, where, class_faults(subset))
    ]


def scoring_faults(subset: Subset, trained: Sequence[str], where: str, faults: Sequence[str]) -> list[str]:
    """Why a model that knows the classes `trained` cannot be scored on a subset, with both lists: names that only look
    alike are seen at once. `where`: what the user calls the subset; `faults`: why its samples cannot be used at all.
    """
    if faults or set(_occurring(subset)) & set(trained):
        return [f"{where}: {fault}" for fault in faults]
    return [
        f"{where}: shares no class with the model: it has {some(_occurring(subset))}, the model {some(trained)}; "
        "classes are joined by exactly equal names"
    ]


def class_faults(subset: Subset) -> list[str]:
    """Why samples of a subset have no class."""
    manifest = subset.manifest
    if manifest.task != "classification":
        has = ", ".join(role for role in manifest.fields if role not in ("label", "side")) or "texts"
        return [
            f"{subset.folder} is for {manifest.task} (its samples have {has}, no class of their own), and this model "
            f"is a classifier; leave it out, build it again from its classes{_other_heads(manifest.task)}"
        ]
    without = manifest.num_samples - sum(manifest.stats.class_counts)
    if without > 0 and len(subset.classes) == len(manifest.classes):
        return [f"{without:,} of the {manifest.num_samples:,} samples of {subset.folder} have no class"]
    return []


def _other_heads(task: str) -> str:
    heads = [kind for kind, name in TASKS.items() if name == task]
    return f", or name a head for {task}: model.head.kind: {' or '.join(heads)}" if heads else ""


def _occurring(subset: Subset) -> list[str]:
    counts = dict(zip(subset.manifest.classes, subset.manifest.stats.class_counts, strict=False))
    return [name for name in subset.classes if counts.get(name, 1)]


def label_notes(sources: Mapping[str, Sequence[str]]) -> list[str]:
    """What is odd about the class names of several sources, though it may be meant so."""
    groups: list[tuple[list[str], set[str]]] = []  # sources that share classes, directly or through others
    for source, classes in sources.items():
        joined = [group for group in groups if group[1] & set(classes)]
        groups = [group for group in groups if group not in joined]
        names = [*(name for group in joined for name in group[0]), source]
        groups.append((names, set(classes).union(*(group[1] for group in joined))))
    notes = []
    if len(groups) > 1:
        listed = "; ".join(f"{', '.join(names)} ({some(sorted(classes))})" for names, classes in groups)
        notes.append(
            f"these sources share no class: {listed}. No sample says how the classes of one differ from those of "
            "another, so the model is not trained to tell them apart"
        )
    alike: dict[str, set[str]] = {}
    for name in {name for classes in sources.values() for name in classes}:
        alike.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), set()).add(name)
    for names in sorted(sorted(group) for group in alike.values() if len(group) > 1):
        notes.append(f"the classes {', '.join(map(repr, names))} are different ones: names have to be exactly equal")
    return notes


def some(names: Sequence[str]) -> str:
    """A list of names, cut where it is long."""
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
