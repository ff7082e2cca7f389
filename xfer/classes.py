"""Whether the class names of the data make a classifier: what cannot be trained is refused, what is odd is said."""

from collections.abc import Collection, Mapping, Sequence

from shards.labels import Node, shown
from shards.loading.open import Splits
from shards.loading.subset import Subset
from xfer.model_config import TASKS
from xfer.spelling import plain

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
    if faults or set(_occurring(subset)) & set(subset.known_in(trained)):
        return [f"{where}: {fault}" for fault in faults]
    return [
        f"{where}: shares no class with the model: it has {some(_occurring(subset))}, the model {some(trained)}; "
        "classes are joined by exactly equal names, or as data.labels says (xfer labels)"
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
    counts = dict(zip(subset.class_names, subset.manifest.stats.class_counts, strict=False))
    return [name for name in subset.classes if counts.get(name, 1)]


def label_notes(sources: Mapping[str, Sequence[str]], listed: Collection[frozenset[Node]] = ()) -> list[str]:
    """What is odd about the class names of several sources, though it may be meant so. `listed`: pairs of classes that
    stand in a file of verdicts.
    """
    groups: list[tuple[list[str], set[str]]] = []  # sources that share classes, directly or through others
    for source, classes in sources.items():
        joined = [group for group in groups if group[1] & set(classes)]
        groups = [group for group in groups if group not in joined]
        names = [*(name for group in joined for name in group[0]), source]
        groups.append((names, set(classes).union(*(group[1] for group in joined))))
    notes = []
    if len(groups) > 1:
        apart = "; ".join(f"{', '.join(names)} ({some(sorted(classes))})" for names, classes in groups)
        notes.append(
            f"these sources share no class: {apart}. No sample says how the classes of one differ from those of "
            "another, so the model is not trained to tell them apart"
        )
    if alike := _alike(sources, listed):
        notes.append(f"{some(alike, '; ')} look the same: xfer labels propose RECIPE")
    return notes


def _alike(sources: Mapping[str, Sequence[str]], listed: Collection[frozenset[Node]]) -> list[str]:
    """Pairs of names that are one in another spelling, and stand for two classes. One pair for each two names."""
    forms: dict[str, dict[str, str]] = {}  # by plain form: the names, each with its first source
    for source, classes in sources.items():
        for name, form in plain(classes).items():
            forms.setdefault(form, {}).setdefault(name, source)
    found = []
    for names in forms.values():
        nodes = [(source, name) for name, source in names.items()]
        pairs = [(one, other) for i, one in enumerate(nodes) for other in nodes[i + 1 :] if one[0] != other[0]]
        found += [f"{shown(a)} and {shown(b)}" for a, b in pairs if frozenset((a, b)) not in listed]
    return found


def some(names: Sequence[str], between: str = ", ") -> str:
    """A list of names, cut where it is long."""
    more = f"{between}... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return between.join(names[:_SHOWN]) + more
