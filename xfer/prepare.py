"""Everything that can be wrong with a recipe, found before a worker starts: data, weights, the run folder.

What is only odd (sources that are never told apart, names that look alike) is said, once, on stderr.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from shards.config import LEAVE_ONE_OUT, DataConfig
from shards.labels import LabelsConfig
from shards.loading.open import Splits, open_data
from shards.loading.state import StreamState, resume
from shards.loading.subset import Subset
from shards.loading.train import augment_faults
from shards.settings import ConfigError, SchemaError, Strict, load, read_yaml
from shards.text import counted
from xfer.backbone import DILATABLE, STAGES
from xfer.checkpoint import Checkpoint, find_checkpoint
from xfer.classes import label_notes, some
from xfer.config import Recipe, TrainConfig, TransferConfig
from xfer.engine import shares
from xfer.heads.known import is_dilated, is_two_stage
from xfer.learn import learn_faults, learn_notes
from xfer.model import build_branch, build_model, check_weights_exist
from xfer.model_config import LEFT_OUT, RESNETS, TASKS, BranchConfig, ModelConfig
from xfer.tasks.known import task_of
from xfer.tasks.task import Task
from xfer.timm_branch import TimmBranch, check_maps
from xfer.track import track_faults
from xfer.transfer.head import kept_classes
from xfer.transfer.leaks import leak_faults
from xfer.transfer.side import side_faults
from xfer.transfer.source import source_faults
from xfer.transfer.stages import transfer_faults
from xfer.transfer.teacher import teacher_faults

FIXED = ("optimizer", "seed")  # of `train`: cannot change within a run; all its other values may
SEEN = ("image_size", "train_size", "resize")  # of `data`: cannot change either
DOCUMENTS = {"study": ("tune", "space"), "job": ("train", "recipe"), "recipe": ("fit", "data")}
"""By document: the verb that takes it, and the section that only it has."""
Document = TypeVar("Document", bound=Strict)


def load_document(
    path: str | Path,
    kind: type[Document],
    overrides: Sequence[str] = (),
    more: Callable[[Mapping[str, Any]], Sequence[str]] = lambda sections: (),
) -> Document:
    """A recipe, job or study. A fault of its schema does not hide those of its data and weights, nor what `more` finds
    in its sections, by name, as far as they are sound: raises ConfigError with all of them.
    """
    try:
        return load(path, kind, overrides)
    except SchemaError as error:
        found = next((name for name, (_, key) in DOCUMENTS.items() if key in read_yaml(path)), None)
        wanted = kind.__name__.lower()
        if found and wanted in DOCUMENTS and found != wanted:
            verb = DOCUMENTS[found][0]
            raise ConfigError(f"this is a {found} and no {wanted}: xfer {verb} {path}", path) from None
        data, model, train, transfer = (error.sections.get(name) for name in ("data", "model", "train", "transfer"))
        # which classes the model has beside those of its sources is not known here
        keeps = isinstance(transfer, TransferConfig) and transfer.head == "keep"
        task = _task(error.given.get("model"))
        if task is None:
            opens = open_data
        else:
            opens = partial(open_data, unfit=task.faults) if keeps else partial(open_labelled, task=task)
        faults = _faults_of(lambda: opens(data)) if isinstance(data, DataConfig) else []
        faults += check_weights_exist(model) if isinstance(model, ModelConfig) else []
        faults += teacher_faults(train.teacher, None) if isinstance(train, TrainConfig) else []
        faults += more(error.sections)
        raise ConfigError([*error.faults, *faults], error.origin) from None


def _task(model: Any) -> Task | None:
    """What a model is for, from its section as it was written, which may have faults; None: it does not say."""
    head = model.get("head", {}) if isinstance(model, Mapping) else None
    kind = head.get("kind", "linear") if isinstance(head, Mapping) else None
    return task_of(TASKS[kind]) if isinstance(kind, str) and kind in TASKS else None


def open_labelled(config: DataConfig, known: Sequence[str] = (), task: Task | None = None) -> Splits:
    """Opens the data for a model of a task (None: classification). `known`: classes that it has beside those of its
    sources. Raises ConfigError with every fault, sources without what the task needs among them.
    """
    task = task or task_of("classification")
    data = open_data(config, task.faults).widened(known)
    faults = task.label_faults(data)
    if faults:
        raise ConfigError(faults)
    return data


def prepare(recipe: Recipe, world_size: int = 1, say: bool = True) -> tuple[Splits, Checkpoint | None]:
    """The data of a recipe and the checkpoint that its run goes on from on so many ranks. `say`: what is only odd about
    the classes. Raises ConfigError with every fault.
    """
    faults = (
        check_weights_exist(recipe.model)
        + select_faults(recipe)
        + batchnorm_faults(recipe, world_size)
        + transfer_faults(recipe)
    )
    task = task_of(recipe.model.task)
    faults += task.recipe_faults(recipe)
    faults += track_faults(recipe.track)
    faults += timm_faults(recipe) + label_table_faults(recipe)
    try:
        known = kept_classes(recipe)
        data = open_labelled(recipe.data, known, task)
    except ConfigError as error:
        raise ConfigError([*faults, *error.faults]) from None
    faults += augment_faults(data.train, recipe.data)
    faults += [] if recipe.model.is_dense else teacher_faults(recipe.train.teacher, data.classes)
    faults += label_space_faults(recipe, data) + leak_faults(recipe, data)
    faults += fusion_faults(recipe, data) + learn_faults(recipe, data)
    checkpoint, lost = find_checkpoint(recipe.folder / "checkpoints")
    if checkpoint is None:
        faults += side_faults(recipe, data)
    if faults:
        raise ConfigError(faults)
    if lost and checkpoint is None:
        hint = f"no checkpoint is whole, so this would begin anew: remove {recipe.folder / 'checkpoints'} if it shall"
        raise ConfigError([*lost, hint], recipe.folder)
    for fault in lost:
        print(f"note: passed over: {fault}", file=sys.stderr)
    if checkpoint:
        faults = _differences(recipe, checkpoint, data)
    elif recipe.pretrained:
        faults = source_faults(recipe)
        if faults:
            raise ConfigError(faults)
        build_model(recipe.model, 2, 0)  # do the files fit? Known here it costs a second, in the workers a minute
    if faults:
        raise ConfigError(faults, f"{recipe.folder} holds another run; choose another name=... or remove it")
    named = {subset.name: subset.classes for subset in data.train}
    if known and not checkpoint:
        named[f"{recipe.model.from_} (rows kept)"] = known
    listed = [frozenset(pair.ends) for pair in recipe.data.labels.pairs] if recipe.data.labels else []
    notes = [
        *label_notes(named, listed),
        *_undecided(recipe.data),
        *select_notes(recipe),
        *dilation_notes(recipe),
        *learn_notes(recipe),
    ]
    for note in notes if say else ():
        print(f"note: {note}", file=sys.stderr)
    return data, checkpoint


def _undecided(config: DataConfig) -> list[str]:
    count = sum(pair.verdict == "undecided" for pair in config.labels.pairs) if config.labels else 0
    return [f"data.labels: {counted(count, 'pair')} undecided, as if not there"] if count else []


def select_faults(recipe: Recipe) -> list[str]:
    """Why a checkpoint cannot be chosen as the recipe says."""
    train, faults = recipe.train, []
    if train.patience and train.select != "best":
        faults.append("train.patience: waits for a better checkpoint, so train.select must be best, got last")
    if train.patience and recipe.data.validation == LEAVE_ONE_OUT:
        faults.append(
            f"train.patience: must be left out with data.validation: {LEAVE_ONE_OUT}: the step is chosen by the mean "
            "over left-out sources, for which every run without one is trained to its end, and the run on all sources "
            f"ends at the chosen step anyway, got {train.patience}"
        )
    elif train.patience and recipe.transfer.mode == "staged":
        faults.append(
            "train.patience: must be left out with transfer.mode staged, whose later stages would never begin"
        )
    if train.select == "best" and recipe.data.validation == 0:
        faults.append("train.select: best chooses by validation, and data.validation: 0 holds nothing out")
    return faults


def fusion_faults(recipe: Recipe, data: Splits) -> list[str]:
    """Why fusion weights cannot be chosen as the recipe says."""
    if recipe.model.fusion.weights != LEFT_OUT:
        return []
    faults, key = [], f"model.fusion.weights: {LEFT_OUT}"
    if len(data.train) < 2:
        faults.append(f"{key} scores each training source by the others, and there is only one")
    if recipe.probe_images == 0:
        faults.append(f"{key} chooses by the linear probe, and train.probe_images: 0 has none")
    return faults


def label_table_faults(recipe: Recipe) -> list[str]:
    """Why the rows of a head cannot be pulled to their names as hard as the recipe says."""
    penalty, rate = recipe.model.head.delta_penalty, recipe.train.learning_rate
    if not recipe.steps or recipe.train.optimizer != "sgd" or not penalty or penalty * rate <= 1:
        return []
    return [
        f"model.head.delta_penalty: must be at most {1 / rate:.3g} with train.learning_rate {rate:g}, got {penalty:g}: "
        "a step of sgd would overshoot"
    ]


def label_space_faults(recipe: Recipe, data: Splits) -> list[str]:
    """Why a head cannot learn from sources of different classes."""
    kind = recipe.model.head.kind
    classes = {one.name: tuple(sorted(one.classes)) for one in (*data.train, *data.apart)}
    if not is_two_stage(kind) or len(set(classes.values())) < 2:
        return []
    listed = "; ".join(f"{name} has {some(names)}" for name, names in classes.items())
    able = [one for one, task in TASKS.items() if task == recipe.model.task and not is_two_stage(one)]
    return [
        f"data.sources: must all have the same classes for the head {kind}, whose softmax takes for background what a "
        f"source does not annotate; {listed}. With model.head.kind: {' or '.join(able)} it is left out of the loss"
    ]


def select_notes(recipe: Recipe) -> list[str]:
    """What could choose better than the recipe does."""
    count = len(recipe.data.sources)
    if recipe.train.select != "best" or not recipe.data.held_fraction or count < 3:
        return []
    return [
        f"the best checkpoint is chosen by a random part of the {count} sources (train.select); for images from "
        f"elsewhere data.validation: {LEAVE_ONE_OUT} chooses better, at the cost of {count} more runs, one without each"
    ]


def dilation_notes(recipe: Recipe) -> list[str]:
    """Branches that are too coarse for a head that wants them dilated."""
    kind, strides = recipe.model.head.kind, {}
    if is_dilated(kind):
        strides = {name: _stride(branch, dilated=True) for name, branch in recipe.model.branches.items()}
    return [
        f"{kind} sees the map of {name} at a stride of {stride} pixels, not 8: of its kind only {', '.join(DILATABLE)} "
        "are dilated; the head fpn reads the finer maps of every backbone"
        for name, stride in strides.items()
        if stride > 8
    ]


def batchnorm_faults(recipe: Recipe, world_size: int) -> list[str]:
    """BatchNorm cannot learn from one value a channel: one image in a micro-batch whose deepest map is one pixel."""
    if recipe.train.freeze_batchnorm or not recipe.steps or recipe.data.batch_size < world_size:
        return []
    _, accumulation = shares(recipe, world_size)
    smallest = max(1, recipe.data.batch_size // world_size // accumulation)  # micro-batch of the smallest share
    key = "data.train_size" if recipe.data.train_size else "data.image_size"
    faults = []
    for name, branch in recipe.model.branches.items():
        size = branch.size or _trained_at(recipe)
        stride = _stride(branch, is_dilated(recipe.model.head.kind)) if smallest == 1 else 1
        if smallest == 1 and size <= stride:
            faults.append(
                f"model.branches.{name}: BatchNorm would see one value a channel, from 1 image of {size} px in a "
                f"micro-batch (data.batch_size {recipe.data.batch_size} over {world_size} ranks in {accumulation} "
                f"micro-batches each); use a larger data.batch_size or train.micro_batch, a {key} or branch "
                f"size above {stride}, or train.freeze_batchnorm: true"
            )
    return faults


def _trained_at(recipe: Recipe) -> int:
    return recipe.data.train_size or recipe.data.image_size


def _stride(branch: BranchConfig, dilated: bool) -> int:
    try:
        with torch.random.fork_rng(devices=[]):
            return build_branch(branch, dilated).stride
    except ValueError:  # said by timm_faults
        return 0


def timm_faults(recipe: Recipe) -> list[str]:
    """Why networks of timm cannot be branches of this run: each is built, and sees an image."""
    faults = []
    for name, branch in recipe.model.branches.items():
        if branch.backbone in RESNETS:
            continue
        try:
            with torch.random.fork_rng(devices=[]):
                build_branch(branch)
                for size in {branch.size or recipe.data.image_size, branch.size or _trained_at(recipe)}:
                    check_maps(TimmBranch(branch.backbone), size)
                if recipe.transfer.mode == "staged":
                    TimmBranch(branch.backbone, STAGES[-1])
        except ValueError as error:
            faults.append(f"model.branches.{name}: {error}")
    return faults


def _differences(recipe: Recipe, checkpoint: Checkpoint, data: Splits) -> list[str]:
    faults = []
    saved = recipe.folder / "recipe.yaml"
    if saved.is_file():
        before = load(saved, Recipe)
        pairs = {f"model.{key.rstrip('_')}": (getattr(before.model, key), value) for key, value in recipe.model}
        pairs |= {f"train.{key}": (getattr(before.train, key), getattr(recipe.train, key)) for key in FIXED}
        pairs |= {f"transfer.{key}": (getattr(before.transfer, key), value) for key, value in recipe.transfer}
        if recipe.transfer.mode == "quant":  # decides the branches
            pairs |= {f"quantize.{key}": (getattr(before.quantize, key), value) for key, value in recipe.quantize}
        pairs["train.probe_images"] = (before.probe_images, recipe.probe_images)
        pairs |= {f"data.{key}": (getattr(before.data, key), getattr(recipe.data, key)) for key in SEEN}
        faults += [f"{path}: was {old}, is now {new}" for path, (old, new) in pairs.items() if old != new]
        faults += _other_verdicts(before.data.labels, recipe.data.labels)
    faults += _new_classes(checkpoint.state.classes, data.train)
    told = tuple(f"data.{key}:" for key in SEEN)
    stream = _faults_of(lambda: resume(data.train, recipe.data, StreamState(**checkpoint.state.stream)))
    return faults + [fault for fault in stream if not fault.startswith(told)]


def _other_verdicts(old: LabelsConfig | None, new: LabelsConfig | None) -> list[str]:
    """Under other verdicts the same samples would be of other classes."""
    was, now = ({} if one is None else one.decided for one in (old, new))
    other = sorted({*was, *now}, key=str)
    return [
        f"data.labels: {a} and {b} were {was.get((a, b), 'undecided')}, are now {now.get((a, b), 'undecided')}"
        for a, b in other
        if was.get((a, b)) != now.get((a, b))
    ]


def _new_classes(trained: Sequence[str], subsets: Sequence[Subset]) -> list[str]:
    """A trained head has a place for each class it was trained with, and none for another name."""
    faults = []
    for subset in subsets:
        new = sorted(set(subset.classes) - set(subset.known_in(trained)))
        if new:
            faults.append(
                f"data.sources.{subset.name}: has the classes {', '.join(new)}, which this run was not begun with "
                f"(it has {', '.join(trained)}); renamed or added classes need a run of their own"
            )
    return faults


def _faults_of(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except ConfigError as error:
        return list(error.faults)
    return []
