"""A model begins as another one: branches, projections and fusion of a run or a bundle are taken over whole, or single
branches of several.

The head is not, unless it is asked for (head.py): its classes are another task's, and the probe fits a new one in
seconds. A packed model has no BatchNorm any more; it gets back one that changes nothing and knows the statistics of the
new images, so that it can be trained on (`unfold`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shards.settings import ConfigError
from shards.text import table
from xfer.bundle import Trained, open_model
from xfer.config import Recipe
from xfer.fusion import WeightedSum
from xfer.heads.known import levels_of
from xfer.model import FusionModel
from xfer.model_config import TASKS, BranchConfig, ModelConfig, model_branch
from xfer.quant.bits import layers
from xfer.quant.fold import pairs
from xfer.quant.keep import keep
from xfer.quant.weights import Codes
from xfer.quantize import kept_faults
from xfer.transfer import head
from xfer.transfer.linear import Linear


@dataclass(frozen=True)
class Taken:
    """What came of each part of the model and of its source, in words; `branches`: those that were taken with their
    projection; `head`: the rows that the probe begins with, if there are any.
    """

    source: Path | None
    branches: tuple[str, ...]
    head: Linear | None
    rows: Sequence[tuple[str, str]]

    def __str__(self) -> str:
        return "\n".join([f"begins as {self.source}:" if self.source else "begins with:", *table(self.rows, left=2)])


@dataclass(frozen=True)
class _Part:
    """A part of the model (branches.main), and the part of another one that it begins as."""

    own: str
    source: Trained
    theirs: str


def take_over(
    model: FusionModel,
    recipe: Recipe,
    classes: Sequence[str],
    taught: Collection[str],
    images: Iterable[Tensor] | None,
) -> Taken:
    """Sets branches, projections and fusion of `model`, on the CPU, to those of the recipe's `model.from`, and branches
    whose weights are those of another model's branch to it. `classes`: of the model; `taught`: those of the sources it
    is trained on. `images`: some of the new task's, uint8 [B, 3, S, S], for the statistics of a packed model; None: it
    is not to be trained, and its layers keep their codes.

    Raises ConfigError naming everything that does not fit.
    """
    config = recipe.model
    source, parts, faults = _parts(recipe)
    if faults:
        raise ConfigError(faults)
    for part in parts:
        _set(model.get_submodule(part.own), _below(part.theirs, part.source.model.state_dict()))
    whole = source is not None and _fuse_alike(model, source.model)
    if source is not None and whole:
        model.fusion.load_state_dict(_below("fusion", source.model.state_dict()))
        if config.fusion.given and isinstance(model.fusion, WeightedSum):
            model.fusion.set_weights([config.fusion.given[name] for name in model.branches])
    packed = [part for part in parts if part.source.codes is not None]
    if images is None:
        for part in packed:
            keep(model, _kept(part))
    elif packed:
        unfold(model, [part.own for part in packed], images)
    names = tuple(name for name in model.branches if any(part.own == f"projections.{name}" for part in parts))
    rows = list(_told(model, config, source, parts, whole))
    if source is None:
        return Taken(None, names, None, rows)
    if recipe.transfer.head == "keep":
        rows += head.told(recipe, source, classes, taught)
        vectors = None if model.table is None else model.table.vectors
        kept = head.kept_rows(source, classes, vectors, config.head.delta_penalty or 0)
        return Taken(source.path, names, kept, rows)
    rows.append(("head", f"new, {len(classes)} classes; that of {source.name}, {len(source.classes)} classes, left"))
    return Taken(source.path, names, None, rows)


def source_faults(recipe: Recipe) -> list[str]:
    """Why the parts of other models cannot be begun with; reads and checks all of them."""
    _, parts, faults = _parts(recipe)
    if recipe.transfer.mode == "quant":
        codes = {name: one for part in parts if part.source.codes is not None for name, one in _kept(part).items()}
        faults += kept_faults(recipe.quantize, codes)
    return faults


def _parts(recipe: Recipe) -> tuple[Trained | None, list[_Part], list[str]]:
    """`model.from`, what is taken of it and of other models, and all that does not fit."""
    config, source, parts, faults = recipe.model, None, [], []
    if config.from_ is not None:
        try:
            source = open_model(config.from_)
        except ConfigError as error:
            return None, [], [f"model.from: {fault}" for fault in error.faults]
        faults += _faults(config, source)
        faults += head.head_faults(recipe, source) if recipe.transfer.head == "keep" else []
        known = [name for name in config.branches if name in source.model.branches]
        kinds = ("branches", "projections") if _project_alike(config, source) else ("branches",)
        parts += [_Part(f"{kind}.{name}", source, f"{kind}.{name}") for name in known for kind in kinds]
    for name, branch in config.branches.items():
        if given := model_branch(branch.weights):
            try:
                parts.append(_branch(name, branch, *given))
            except ConfigError as error:
                faults += [f"model.branches.{name}.weights: {fault}" for fault in error.faults]
    return source, parts, faults


def _branch(name: str, branch: BranchConfig, folder: Path, theirs: str | None) -> _Part:
    """A branch of the model that begins as one of another model. Raises ConfigError."""
    source = open_model(folder)
    there = source.model.branches
    if theirs is None and len(there) > 1:
        some = f"{folder}:{next(iter(there))}"
        raise ConfigError(f"{folder} has the branches {', '.join(there)}; name one, such as {some}")
    theirs = theirs or next(iter(there))
    if theirs not in there:
        raise ConfigError(f"{folder} has no branch {theirs}; it has {', '.join(there)}")
    for key in ("backbone", "stem"):
        own, given = getattr(branch, key), getattr(there[theirs], key)
        if own != given:
            raise ConfigError(f"branch {theirs} of {folder} has {key} {given}, and this one {own}")
    return _Part(f"branches.{name}", source, f"branches.{theirs}")


def _faults(config: ModelConfig, source: Trained) -> list[str]:
    faults, theirs = [], source.model.branches
    known = [name for name in config.branches if name in theirs]
    if not known:
        faults.append(
            f"model.branches: none is in {source.path}, which has {', '.join(theirs)}; take its names, or leave "
            "model.branches out"
        )
    for name in config.branches:
        if name in source.dropped:
            faults.append(
                f"model.branches.{name}: is no part of {source.path}, whose model.fusion.prune left it out; name "
                f"the others in model.branches ({', '.join(theirs)}), or begin with its bundle"
            )
    for name in known:
        branch = config.branches[name]
        for key in ("backbone", "stem"):
            own, given = getattr(branch, key), getattr(theirs[name], key)
            if own != given:
                faults.append(
                    f"model.branches.{name}.{key}: must be {given}, as in {source.path}, got {own}; another name makes "
                    "it a new branch"
                )
        if branch.weights:
            faults.append(f"model.branches.{name}.weights: must not be given for a branch that {source.path} has")
    width = source.model.width if source.model.projects else None
    if config.fusion.width != width and _project_alike(config, source):
        faults.append(
            f"model.fusion.width: must be {width or 'none'}, as in {source.path}, got {config.fusion.width or 'none'}"
        )
    return faults


def _told(
    model: FusionModel, config: ModelConfig, source: Trained | None, parts: Sequence[_Part], whole: bool
) -> Iterable[tuple[str, str]]:
    by_name = {part.own: part for part in parts}
    for name in model.branches:
        backbone, part = config.branches[name].backbone, by_name.get(f"branches.{name}")
        if part is None:
            taken = f"{backbone}, new"
        elif part.source is source and f"projections.{name}" in by_name:
            taken = f"{backbone} and its projection taken{_packed(part.source)}"
        elif part.source is source:
            taken = f"{backbone} taken{_packed(part.source)}; its projections new"
        else:
            theirs = part.theirs.removeprefix("branches.")
            taken = f"{backbone} taken, {theirs} of {part.source.path}{_packed(part.source)}; its projection new"
        yield f"branch {name}", taken
    if source is None:
        return
    for name in source.model.branches:
        if name not in model.branches:
            yield f"branch {name}", "left"
    if source.model.side is not None:
        fields = ", ".join(source.model.side.fields)
        new = f"; new: {', '.join(model.side.fields)}" if model.side is not None else ""
        yield "side inputs", f"{fields}: what was learned of them is left{new}"
    weights = model.fusion_weights
    shown = ", ".join(f"{name} {w:.3f}" for name, w in weights.items()) if weights else "without weights"
    yield f"fusion {config.fusion.kind}", f"{'taken' if whole else 'new'}, {shown}"


def _fuse_alike(one: FusionModel, other: FusionModel) -> bool:
    return type(one.fusion) is type(other.fusion) and {*one.branches} == {*other.branches}


def _project_alike(config: ModelConfig, source: Trained) -> bool:
    """Whether the heads of both read the same levels, and neither pools them while the other does not."""
    own, theirs = config.head.kind, source.model.kind
    pooled = [TASKS[kind] == "classification" for kind in (own, theirs)]
    return levels_of(own) == levels_of(theirs) and pooled[0] == pooled[1]


def _packed(source: Trained) -> str:
    return f", from {min(source.bits.values())} to {max(source.bits.values())} bits" if source.bits else ""


def _kept(part: _Part) -> dict[str, Codes | None]:
    """The codes of a packed part's layers, by their names in the model; None of those left in float."""
    names = [name for name in layers(part.source.model) if name.startswith(f"{part.theirs}.")]
    return {part.own + name.removeprefix(part.theirs): (part.source.codes or {}).get(name) for name in names}


def _below(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a part of a model, by their names in it."""
    return {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}


@torch.no_grad()
def _set(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """All tensors of a module; `values` of a folded one have a bias in place of each BatchNorm."""
    state = module.state_dict()
    for name in state.keys() & values.keys():
        state[name].copy_(values[name])
    if state.keys() == values.keys():
        return
    for name, norm_name in pairs(module):
        convolution, norm = module.get_submodule(name), _norm(module.get_submodule(norm_name))
        norm.bias.copy_(values[f"{name}.bias"])
        norm.weight.fill_(1.0)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)  # folded again, it gives the same weights to the bit
        if isinstance(convolution.bias, Tensor):
            convolution.bias.zero_()


def _norm(module: nn.Module) -> Any:
    """A BatchNorm with statistics; Any, for its buffers may be None by their type."""
    assert isinstance(module, nn.BatchNorm2d)
    assert module.running_mean is not None
    return module


@torch.no_grad()
def unfold(model: FusionModel, parts: Sequence[str], images: Iterable[Tensor]) -> None:
    """Each BatchNorm of parts that were folded (such as branches.main) learns the mean m and variance v of what it gets
    from `images` and undoes them, gamma = sqrt(v + eps), beta' = beta + m: in evaluation nothing changes, and in
    training a batch is normalised by statistics that it has.
    """
    modules = [model.get_submodule(part) for part in parts]
    norms = [_norm(module.get_submodule(name)) for module in modules for _, name in pairs(module)]
    sums = {norm: torch.zeros(3, norm.num_features, dtype=torch.float64) for norm in norms}

    def note(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].double().transpose(0, 1).flatten(1)
        sums[norm] += torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)])

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    training = model.training
    model.eval()
    for batch in images:
        model(batch)
    model.train(training)
    for hook in hooks:
        hook.remove()
    for norm, (count, total, squares) in sums.items():
        mean = total / count
        variance = (squares / count - mean * mean).clamp_min(0)
        norm.bias.copy_(norm.bias.double() + mean)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
