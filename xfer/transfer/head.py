"""transfer.head: keep. The model has the classes of the one it comes from too, and begins with their rows of its head.

A row of the head is weight and bias of one class on the fused features. It means what it meant only where these are the
same: branches, projections, fusion and the size that a branch sees, all as they were; whatever else is refused. The
probe then fits the rows of classes that the new sources annotate, from what they were or from zero. Under the masked
loss a class that no source annotates gets no gradient, and the head has no weight decay, so its row stays to the bit.
"""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from shards.settings import ConfigError
from xfer.bundle import Trained, open_model
from xfer.checkpoint import latest_checkpoint
from xfer.classes import some
from xfer.config import PROBES, Recipe
from xfer.fusion import kind_of
from xfer.model_config import LEFT_OUT
from xfer.transfer.linear import Linear


def kept_classes(recipe: Recipe) -> tuple[str, ...]:
    """The classes that a recipe's model has beside those of its sources: those of the model it comes from. Of a run
    that has begun, as it began. Raises ConfigError if there is no such model.
    """
    if recipe.transfer.head != "keep" or recipe.model.from_ is None:
        return ()
    if begun := latest_checkpoint(recipe.folder / "checkpoints"):
        return tuple(begun.state.classes)
    try:
        return open_model(recipe.model.from_).classes
    except ConfigError as error:
        raise ConfigError([f"model.from: {fault}" for fault in error.faults]) from None


def head_faults(recipe: Recipe, source: Trained) -> list[str]:
    """Why rows of the head of `source` say nothing on the fused features of this recipe's model."""
    ours, theirs, faults = recipe.model, source.model, []

    def differs(key: str, own: object, given: object) -> str:
        why = "transfer.head: keep takes rows that were made for its fused features"
        return f"{key}: must be {given}, as in {source.path}, got {own}; {why}"

    if set(ours.branches) != set(theirs.branches):
        own, given = (", ".join(sorted(names)) for names in (ours.branches, theirs.branches))
        faults.append(differs("model.branches", own, given))
    for name in sorted(set(ours.branches) & set(theirs.branches)):
        size, given = ours.branches[name].size, theirs.sizes[name] or source.image_size
        if (own := size or recipe.data.image_size) != given:
            key = f"model.branches.{name}.size" if size else "data.image_size"
            faults.append(differs(key, f"{own} px for branch {name}", f"{given} px"))
    if ours.head.kind != theirs.kind:
        faults.append(differs("model.head.kind", ours.head.kind, theirs.kind))
    if ours.fusion.kind != (kind := kind_of(theirs.fusion)):
        faults.append(differs("model.fusion.kind", ours.fusion.kind, kind))
    elif ours.fusion.weights and (given := theirs.fusion_weights) and set(ours.branches) == set(given):
        weights = ours.fusion.given or {}
        own = {name: weights[name] / sum(weights.values()) for name in given if weights}
        if not own or any(abs(own[name] - given[name]) > 1e-3 for name in given):
            shown = [", ".join(f"{name} {w:.3f}" for name, w in one.items()) for one in (own, given)]
            faults.append(differs("model.fusion.weights", shown[0] or LEFT_OUT, shown[1]))
    return faults


def kept_rows(source: Trained, classes: Sequence[str], vectors: Tensor | None = None, penalty: float = 0.0) -> Linear:
    """Weight [K, d] and bias [K] of a head of `classes`: the rows of `source`, by name; for others zero, or what a
    table of names says of `vectors` [K, DIMS] of the classes.
    """
    theirs = source.model.head
    weight, bias = torch.zeros(len(classes), theirs.in_features), torch.zeros(len(classes))
    if vectors is not None and source.model.table is not None:
        weight, bias = source.model.table.named(vectors, theirs.weight, theirs.bias, penalty)
        bias = bias.clone()
    for row, name in enumerate(classes):
        if name in source.classes:
            place = source.classes.index(name)
            weight[row], bias[row] = theirs.weight[place].detach(), theirs.bias[place].detach()
    return weight, bias


def told(recipe: Recipe, source: Trained, classes: Sequence[str], taught: Collection[str]) -> Iterable[tuple[str, str]]:
    """What came of each row, in words. `taught`: the classes that the new sources annotate."""
    kept, known = [name for name in classes if name not in taught], set(source.classes) & set(taught)
    moving = "" if recipe.transfer.mode in PROBES else ", while the branches below them are trained"
    if kept:
        yield "head, kept", f"{some(kept)}: no source has them, they stay as they are{moving}"
    if known:
        yield "head, taken", f"{some(sorted(known))}: fitted on from what they were"
    if new := [name for name in classes if name not in source.classes]:
        begun = ": begin as their names say" if recipe.model.head.delta_penalty else ""
        yield "head, new", some(new) + begun
