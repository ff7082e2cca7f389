"""The stages of a run: which layers of the pretrained branches are trained when, and at what rate.

`full` is one stage. `staged` unfreezes from the top: first fusion, head and layer4, then one stage of the ResNets more
at a time, each at a lower rate (gradual unfreezing, and lower rates for lower layers: Howard & Ruder, Universal
Language Model Fine-tuning for Text Classification, ACL 2018, sec. 3). BatchNorm's statistics, if they may move, are
still until the last. The optimizer begins anew with each stage. Stages are a function of the recipe alone: a run goes
on in the middle of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from shards.settings import replace
from xfer.config import Recipe
from xfer.model_config import Depth

DEPTHS: tuple[Depth, ...] = ("none", "layer4", "layer3", "layer2", "layer1", "all")


@dataclass(frozen=True)
class Stage:
    """Steps `start` + 1 to `end` of a run, trained as `recipe` says. The rate warms up and falls in each stage."""

    start: int
    end: int
    recipe: Recipe

    def __str__(self) -> str:
        train = self.recipe.train
        depth = max((branch.train_from for branch in self.recipe.model.branches.values()), key=DEPTHS.index)
        what = {"none": "fusion and head", "all": "all layers"}.get(depth, f"{depth} and above")
        still = ", BatchNorm frozen" if train.freeze_batchnorm else ""
        return f"steps {self.start + 1} to {self.end}: {what}, learning rate {train.learning_rate:.3g}{still}"


def stages(recipe: Recipe) -> list[Stage]:
    """At least one; the last one ends with the run. No branch is trained deeper than its `train_from` says."""
    if recipe.transfer.mode != "staged":
        return [Stage(0, recipe.steps, recipe)]
    depths = {name: DEPTHS.index(branch.train_from) for name, branch in recipe.model.branches.items()}
    count = max(1, *depths.values())
    found = []
    for number in range(count):
        changes: dict[str, object] = {
            f"model.branches.{name}.train_from": DEPTHS[min(depth, number + 1)] for name, depth in depths.items()
        }
        changes["train.learning_rate"] = recipe.train.learning_rate * recipe.transfer.stage_rate**number
        if number < count - 1:
            changes["train.freeze_batchnorm"] = True
        start, end = (recipe.train.steps * at // count for at in (number, number + 1))
        found.append(Stage(start, end, replace(recipe, changes)))
    return found


def _wise_ft_faults(recipe: Recipe) -> Iterator[str]:
    """Why the weights that a run began with can be no part of its model."""
    if not recipe.steps:
        yield f"transfer.wise_ft: must be left out with transfer.mode {recipe.transfer.mode}, which trains no branch"
    elif recipe.probe_images == 0 or recipe.model.new_branches:
        dense = f", and model.head.kind {recipe.model.head.kind} begins with layers that are not fitted"
        yield (
            "transfer.wise_ft: mixes the trained weights with those of step 0, the linear probe of branches that all "
            f"have weights{dense if recipe.model.is_dense else ''}; leave it out"
        )
    elif not recipe.train.freeze_batchnorm:
        yield (
            "transfer.wise_ft: needs train.freeze_batchnorm: true: statistics that moved are not those of mixed weights"
        )


def transfer_faults(recipe: Recipe) -> list[str]:
    """Why a recipe's `transfer` section cannot be followed."""
    mode, faults = recipe.transfer.mode, []
    if recipe.model.taken_from and recipe.train.probe_images == 0:
        faults.append("train.probe_images: must be at least 1 with parts of another model, which get a new head")
    if recipe.transfer.l2_sp and (not recipe.pretrained or recipe.train.probe_images == 0):
        faults.append(
            "transfer.l2_sp: holds pretrained branches near the weights of step 0, the linear probe, and this run has "
            "none: give model.branches.<name>.weights, and train.probe_images above 0"
        )
    if recipe.transfer.l2_sp and not recipe.steps:
        faults.append(f"transfer.l2_sp: must be left out with transfer.mode {mode}, which trains no branch")
    if recipe.transfer.wise_ft < 1:
        faults += _wise_ft_faults(recipe)
    if recipe.transfer.head == "keep" and recipe.model.from_ is None and not recipe.model.is_dense:
        faults.append("transfer.head: keep takes rows of the head of another model: give model.from, or use fit")
    if recipe.transfer.head == "keep" and recipe.model.fusion.kind == "late":
        faults.append("transfer.head: must be fit for fusion.kind late, whose probe fits each branch a classifier anew")
    if mode == "full":
        return faults
    if not recipe.pretrained:
        faults.append(
            f"transfer.mode: {mode} moves pretrained branches, and none has weights: give "
            "model.branches.<name>.weights or model.from, or use full"
        )
    elif recipe.train.probe_images == 0 and not recipe.model.taken_from:
        faults.append(f"train.probe_images: must be at least 1 for transfer.mode {mode}, which begins with the probe")
    if mode == "quant" and (recipe.quantize.searches or recipe.quantize.layers):
        faults.append(
            "quantize: must give bits and groups with transfer.mode quant, which rounds the branches before there is a "
            "head to measure by, not budget, max_drop or layers"
        )
    if mode == "quant":
        faults += [
            f"model.branches.{name}.train_from: must be left out for transfer.mode quant, which trains no branch, got "
            f"{branch.train_from}"
            for name, branch in recipe.model.branches.items()
            if branch.train_from not in ("all", "none")
        ]
    count = len(stages(recipe))
    if recipe.train.steps < count:
        faults.append(f"train.steps: must be at least {count}, one for each stage of transfer.mode staged")
    return faults
