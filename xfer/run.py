"""A Recipe becomes a run folder: the same code on one process and on each of many ranks.

runs/<name>/recipe.yaml        what was run
            trained_on.json    what it was trained on (xfer/trained_on.py)
            metrics.jsonl      one row a report: losses by step, accuracy by source
            chain.jsonl        proof of which images and losses each step had (xfer/chain.py)
            checkpoints/       the newest whole ones; the same command goes on from there. Step 0: a linear probe
            tensorboard/, wandb/, track.json   with `track` (xfer/track.py)
            timing-*.jsonl     where the time of steps went; one file a rank (xfer/timing.py)
            damage-*.jsonl     samples that were damaged and replaced, if there are any; one file a rank
            evaluation-damage-*.jsonl   the same of validation: these are left out
"""

import fcntl
import json
import math
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor, tensor

from shards.format.lock import Locks
from shards.format.whole import naming
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.open import open_data
from shards.loading.state import StreamState
from shards.loading.subset import Subset
from shards.loading.train import TrainStream, train_stream
from shards.settings import ConfigError, read_yaml
from xfer import chain, timing
from xfer.begin import begin
from xfer.bundle import restore
from xfer.checkpoint import (
    WEIGHTS,
    TrainState,
    checkpoint_name,
    choose,
    chosen,
    latest_checkpoint,
    remove_stale_drafts,
    sha256_of,
    start_weights,
    write_checkpoint,
)
from xfer.config import Recipe
from xfer.cost import memory_mb
from xfer.engine import Engine, default_device, shares
from xfer.evaluate import evaluate, score_row
from xfer.fusion import WeightedSum
from xfer.history import (
    best_step,
    evaluated,
    is_stalled,
    is_trained,
    last_scored,
    last_step,
    read_metrics,
    scores,
    write_metrics,
)
from xfer.labels import annotated, sets_of
from xfer.learn import build_learner, weighed
from xfer.measure import measured
from xfer.model import FusionModel, build_model
from xfer.optimizer import hold_near, hold_together
from xfer.portable import trained_weights
from xfer.side import dropping, has_side
from xfer.stop import is_asked
from xfer.tasks.known import task_of
from xfer.tasks.task import Supervision
from xfer.track import Tracking
from xfer.train import DivergedError, Row, Training, check_finite, train
from xfer.transfer.side import know
from xfer.transfer.stages import stages
from xfer.transfer.teacher import build_teacher

_LOCKS = Locks()
EngineFactory = Callable[[FusionModel, Recipe, Slot], Engine]


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the run folder for one process; a second one is refused. The lock dies with the process; loader processes
    that it forked have no share in it.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = _LOCKS.take(str(path), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from None
    if held is None:
        raise ConfigError(f"{folder}: another process is running this; choose another name=... or wait")
    try:
        yield
    finally:
        if [one.name for one in folder.iterdir()] == [".lock"]:  # nothing came of it
            path.unlink()
            folder.rmdir()
        _LOCKS.drop(held)


def fit(
    recipe: Recipe,
    slot: Slot,
    make_engine: EngineFactory,
    report: Callable[[Row], None],
    watch: Callable[[Row], None] = lambda row: None,
) -> TrainState:
    """Trains one rank of a recipe, from the newest whole checkpoint on. Rank 0 writes metrics and checkpoints. `watch`
    gets, on each rank, the rows of its timing.

    Raises DivergedError if the loss is no longer finite; the newest checkpoint is from before.
    """
    data = open_data(recipe.data)
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    if checkpoint:
        data = data.numbered(checkpoint.state.classes)
    tensors, optimizer = (checkpoint.model(), checkpoint.optimizer()) if checkpoint else (None, {})
    state = checkpoint.state if checkpoint else TrainState(classes=list(data.classes))
    rows = read_metrics(recipe.folder, state.step)
    scored = last_scored(rows) if checkpoint else 0
    if slot.rank == 0:
        remove_stale_drafts(recipe.folder / "checkpoints")
        write_metrics(recipe.folder, rows)  # those behind the checkpoint will be made again
        timing.cut(recipe.folder, state.step)  # the others write when they have the first losses, with this rank
        chain.cut(recipe.folder, state.step, checkpoint and chain.of_weights(state.step, checkpoint.weights_sha256))

    device = default_device()
    gpu = device if device.type == "cuda" else None
    stream = train_stream(
        data.train, recipe.data, slot, StreamState(**state.stream), damage_log=recipe.folder, device=gpu
    )
    masks, names = annotated(data.train, len(data.classes)), [subset.name for subset in data.train]
    record = RunRecord(recipe, slot, stream, data.validation, data.classes, report, rows, watch, state.step)
    batches = iter(stream)
    if recipe.model.side:
        batches = dropping(batches, recipe.model.side.dropout, recipe.data.seed)
    task, teacher = task_of(recipe.model.task), build_teacher(recipe.train.teacher, data.classes)
    left = [stage for stage in stages(recipe) if stage.end > state.step]
    with record:
        for stage in left or stages(recipe)[-1:]:
            begun = state.step > stage.start
            weights = trained_weights(tensors, optimizer) if tensors and begun else tensors
            model = _model(stage.recipe, data.classes, weights).to(device)
            accumulation = shares(recipe, slot.world_size)[1]
            if recipe.transfer.l2_sp:
                start = start_weights(recipe.folder / "checkpoints")
                hold_near(model, start, recipe.transfer.l2_sp, accumulation)
            if model.table is not None and (penalty := recipe.model.head.delta_penalty):
                hold_together(model.head.weight, model.table.pull(penalty, masks.any(0)), accumulation)
            engine = make_engine(model, stage.recipe, slot)
            if tensors and begun:
                engine.load(tensors, optimizer, state.step - stage.start)
            record.engine = engine
            taught = teacher and teacher.to(engine.device)
            smoothing, sets = recipe.train.label_smoothing, sets_of(data.train)
            objective = task.loss(Supervision(masks.to(engine.device), names, smoothing, taught, sets))
            config, steps = stage.recipe.train, range(stage.start, stage.end)
            learner = build_learner(recipe, engine, data, len(data.classes), slot, objective, state.step)
            run = Training(engine, batches, objective, config, recipe.data.batch_size, steps, record, scored, learner)
            try:
                train(run, state)
            except DivergedError as error:
                raise DivergedError(f"{error}\n{_advice(recipe)}") from None
            if stage.end == recipe.steps or record.is_over():
                break
            tensors, optimizer, scored = engine.state()[0], {}, state.step
            engine.close()
    return state


def _model(recipe: Recipe, classes: Sequence[str], tensors: Mapping[str, Tensor] | None) -> FusionModel:
    """Of a checkpoint's tensors; None: as it begins."""
    if tensors is not None:
        return restore(recipe, len(classes), tensors)
    model = build_model(weighed(recipe), len(classes), recipe.train.seed)
    model.name_classes(classes, recipe.model.head.encoder)
    know(model, recipe.folder)
    return model


class RunRecord:
    """The run folder as the loop sees it: evaluation rows, checkpoints, reports, and the trackers that the recipe names
    while it is entered. Only rank 0 writes.
    """

    def __init__(
        self,
        recipe: Recipe,
        slot: Slot,
        stream: TrainStream,
        validation: Sequence[Subset],
        classes: Sequence[str],
        report: Callable[[Row], None],
        rows: Sequence[Row] = (),
        watch: Callable[[Row], None] = lambda row: None,
        since: int = 0,
    ):
        """`rows`: those of the run so far; `watch`: as for `fit`; `since`: the step it goes on from."""
        self._slot, self._watch = slot, watch
        self._recipe, self._writes, self._stream = recipe, slot.rank == 0, stream
        self.engine: Engine  # of the stage that is trained; set before each
        self._classes, self._report = classes, report
        self._task, self._validation = task_of(recipe.model.task), validation
        whole, log = self._task.sees_whole, recipe.folder
        self._batches = (
            eval_stream(validation, recipe.data, slot, damage_log=log, originals=whole) if validation else None
        )
        mixes = recipe.transfer.wise_ft < 1
        self._start = start_weights(recipe.folder / "checkpoints") if mixes else None
        self._tracking: Tracking | None = None
        self._rows, self._scores = rows, scores(rows)
        self._evaluated, self._end = evaluated(rows), last_step(recipe)
        self._stops = False
        self._since = since

    def __enter__(self) -> "RunRecord":
        if self._writes:
            self._choose()
            self._tracking = Tracking(self._recipe, self._rows) if self._recipe.track else None
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._tracking:
            self._tracking.close(finished=kind is None)

    def evaluate(self) -> Row:
        """Accuracy (or the task's measure) and loss by validation source; empty without validation data. A
        collective.
        """
        if self._batches is None:
            return {}
        engine, task, resize = self.engine, self._task, self._recipe.data.resize
        both = range(1 + has_side(engine.module))
        collected, *more = (task.scores(self._validation, self._classes, resize, engine.device) for _ in both)
        side = more[0] if more else None
        with engine.averaged(), self._as_handed_over():
            batches, module = self._batches, engine.module
            scores = evaluate(module, batches, collected, engine.device, engine.sum, engine.gather, with_side=side)
        row = score_row(scores, task.measure)
        for what in ("evaluation_loss", task.measure):
            for name, value in row.get(what, {}).items():
                if not math.isfinite(value):
                    raise DivergedError(
                        f"the validation {'loss' if what != task.measure else what} of {name} is {value}"
                    )
        return row

    @contextmanager
    def _as_handed_over(self) -> Iterator[None]:
        """Inside, the module is what `open_model` makes of its checkpoint: its weights are mixed with those of step 0
        (transfer.wise_ft), and branches that it will be without (model.fusion.prune) have a weight of 0. A collective.
        """
        fusion, prune = self.engine.module.fusion, self._recipe.model.fusion.prune
        with ExitStack() as inside:
            if self._start:
                inside.enter_context(self.engine.moved_back(self._start, self._recipe.transfer.wise_ft))
            if prune and isinstance(fusion, WeightedSum):
                inside.enter_context(fusion.ignoring(fusion.below(prune)))
            yield

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint. A collective."""
        tensors, optimizer = self.engine.state()
        check_finite({**tensors, **optimizer}, state.step)
        state.stream = self._stream.state().to_json()
        if self._writes:
            folder, keep = self._recipe.folder / "checkpoints", self._recipe.train.keep
            steps = self._evaluated if self._recipe.train.keep_evaluated else ()
            path = write_checkpoint(folder, state, tensors, optimizer, keep, steps)
            chain.append(self._recipe.folder, [chain.of_weights(state.step, sha256_of(path / WEIGHTS))])

    def timed(self, row: Row) -> None:
        """Appends to this rank's timing, and hands the row on."""
        stream = self._stream
        worked = {"reading": stream.reading_s, "decoding": stream.decoding_s, "replaced": stream.replaced}
        stream.reading_s, stream.decoding_s, stream.replaced = 0.0, 0.0, 0
        place = {"since": self._since, "rank": self._slot.rank, "ranks": self._slot.world_size}
        machine = {
            "node": socket.gethostname(),
            "workers": self._recipe.data.workers,
            "cpus": len(os.sched_getaffinity(0)),
        }
        row = row | place | machine | worked | memory_mb(self.engine.device)
        timing.append(self._recipe.folder, row)
        self._watch(row)

    def prove(self, links: Sequence[chain.Link]) -> None:
        """Appends to chain.jsonl."""
        if self._writes:
            chain.append(self._recipe.folder, links)

    def report(self, row: Row) -> None:
        """Appends to metrics.jsonl, and hands the row on."""
        if self._writes:
            row |= {"replaced": len(lost)} if (lost := self._stream.damaged) else {}
            row |= memory_mb(self.engine.device)
            row |= {"left_out": len(lost)} if self._batches and (lost := self._batches.damaged) else {}
            path = self._recipe.folder / "metrics.jsonl"
            with naming(path), path.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._tracking:
            self._tracking.add(row)
        self._scores |= scores([row])
        self._evaluated |= evaluated([row])
        if self._writes and measured(row):
            self._choose()
        self._report(row)

    def is_asked_to_stop(self) -> bool:
        """Rank 0 looks, all know. A collective."""
        asked = float(self._writes and is_asked(self._recipe.folder))
        self._stops = bool(self.engine.sum(tensor(asked)) > 0)
        return self._stops

    def is_over(self) -> bool:
        ended = max(self._evaluated, default=-1) >= self._end
        return self._stops or ended or is_stalled(self._scores, self._recipe.train.patience)

    def _choose(self) -> None:
        choose(self._recipe.folder / "checkpoints", _selected(self._recipe, self._scores))


def all_done(recipe: Recipe, what: str, job: str | None = None, cache: Path | None = None, quiet: bool = False) -> bool:
    """Whether a run has all its steps; what the same command changes then (train.select) takes effect and is said.
    `job`, `cache`: as for `begin`.
    """
    if not is_trained(recipe, latest_checkpoint(recipe.folder / "checkpoints")):
        return False
    if changed := _reselect(recipe):
        begin(recipe, job, cache)
    if not quiet:
        print(
            f"{what}: all its steps are done already; nothing is trained, {changed or 'nothing is changed'}",
            file=sys.stderr,
        )
    return True


def _reselect(recipe: Recipe) -> str:
    """Lets a change of train.select take effect on a run that has all its steps. What changed, in words, or empty."""
    folder, saved = recipe.folder / "checkpoints", read_yaml(recipe.folder / "recipe.yaml")
    then = (saved.get("train") or {}).get("select", "last")  # runs of an older version do not name it
    if not (recipe.selects_by_left_out or recipe.train.keep_evaluated):  # else xfer/choice.py has chosen
        choose(folder, _selected(recipe, scores(read_metrics(recipe.folder))))
    if then == recipe.train.select:
        return ""
    name = chosen(folder)
    which = f"of {name}" if name else "of the last step"
    return f"the model is that {which} now (train.select: {recipe.train.select})"


def _selected(recipe: Recipe, found: Mapping[int, float]) -> int | None:
    """The step whose checkpoint is the model: of those that are there, the best; None: the newest."""
    if recipe.train.select == "last":
        return None
    folder = recipe.folder / "checkpoints"
    return best_step({step: score for step, score in found.items() if (folder / checkpoint_name(step)).is_dir()})


def _advice(recipe: Recipe) -> str:
    """What to do about a loss that is not finite."""
    t, newest = recipe.train, latest_checkpoint(recipe.folder / "checkpoints")
    kept = f"the last finite checkpoint is {newest.path}" if newest else "no checkpoint was written yet"
    clip = "none" if t.clip_norm is None else f"{t.clip_norm:g}"
    return (
        f"{kept}; nothing after it is saved. Go on from there with a lower train.learning_rate (now "
        f"{t.learning_rate:g}), a longer train.warmup (now {t.warmup}) or a smaller train.clip_norm (now {clip})"
    )
