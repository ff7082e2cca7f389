"""A Recipe becomes a run folder: the same code on one process and on each of many ranks.

runs/<name>/recipe.yaml        what was run
            metrics.jsonl      one row a report: losses by step, accuracy by source
            checkpoints/       the newest whole ones; the same command goes on from there
            damage-*.jsonl     samples that were damaged and replaced, if there are any; one file a rank
            evaluation-damage-*.jsonl   the same of validation: these are left out
"""

import fcntl
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shards.format.whole import naming, write_text
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.open import open_data
from shards.loading.state import StreamState
from shards.loading.subset import Subset
from shards.loading.train import TrainStream, train_stream
from shards.settings import ConfigError, dump
from xfer.checkpoint import TrainState, latest_checkpoint, remove_stale_drafts, write_checkpoint
from xfer.config import Recipe
from xfer.engine import Engine
from xfer.evaluate import evaluate, score_row
from xfer.labels import Objective, annotated
from xfer.model import FusionModel, build_model
from xfer.train import DivergedError, Row, Training, check_finite, train

EngineFactory = Callable[[FusionModel, Recipe, Slot], Engine]


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the run folder for one process; a second one is refused. The lock dies with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder}: another process is running this; choose another name=... or wait") from None
        try:
            yield
        finally:
            if [path.name for path in folder.iterdir()] == [".lock"]:  # nothing came of it
                (folder / ".lock").unlink()
                folder.rmdir()


def begin(recipe: Recipe, job: str | None = None) -> None:
    """Writes what is about to run beside its results: recipe.yaml, and job.yaml if there is one."""
    recipe.folder.mkdir(parents=True, exist_ok=True)
    write_text(recipe.folder / "recipe.yaml", dump(recipe))
    if job:
        write_text(recipe.folder / "job.yaml", job)


def _cut_metrics(folder: Path, step: int) -> None:
    """Leaves out the rows behind `step`: they will be made again."""
    rows = [row for row in read_metrics(folder) if row["step"] <= step]
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(folder: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl; a half-written last line is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def last_scored(folder: Path, step: int) -> int:
    """The step, up to `step`, of the newest evaluation that is on record; 0: there is none."""
    scored = [row["step"] for row in read_metrics(folder) if "loss" not in row and row["step"] <= step]
    return max(scored, default=0)


def fit(recipe: Recipe, slot: Slot, make_engine: EngineFactory, report: Callable[[Row], None]) -> TrainState:
    """Trains one rank of a recipe, from the newest whole checkpoint on. Rank 0 writes metrics and checkpoints.

    Raises DivergedError if the loss is no longer finite; the newest checkpoint is from before.
    """
    data = open_data(recipe.data)
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    if checkpoint:
        data = data.numbered(checkpoint.state.classes)
    model = build_model(recipe.model, len(data.classes), recipe.train.seed, load_weights=checkpoint is None)
    if checkpoint:
        model.load_state_dict(checkpoint.model())
    engine = make_engine(model, recipe, slot)
    state = checkpoint.state if checkpoint else TrainState(classes=list(data.classes))
    scored = last_scored(recipe.folder, state.step)
    if slot.rank == 0:
        remove_stale_drafts(recipe.folder / "checkpoints")
        _cut_metrics(recipe.folder, state.step)
    if checkpoint:
        engine.load_optimizer(checkpoint.optimizer(), state.step)

    gpu = engine.device if engine.device.type == "cuda" else None
    stream = train_stream(
        data.train, recipe.data, slot, StreamState(**state.stream), damage_log=recipe.folder, device=gpu
    )
    masks, names = annotated(data.train, len(data.classes)), [subset.name for subset in data.train]
    objective = Objective(masks.to(engine.device), names, recipe.train.label_smoothing)
    record = RunRecord(recipe, slot, engine, stream, data.validation, data.classes, report)
    run = Training(engine, stream, objective, recipe.train, recipe.data.batch_size, record, scored)
    try:
        return train(run, state)
    except DivergedError as error:
        raise DivergedError(f"{error}\n{_advice(recipe)}") from None


class RunRecord:
    """The run folder as the loop sees it: evaluation rows, checkpoints, reports. Only rank 0 writes."""

    def __init__(
        self,
        recipe: Recipe,
        slot: Slot,
        engine: Engine,
        stream: TrainStream,
        validation: Sequence[Subset],
        classes: Sequence[str],
        report: Callable[[Row], None],
    ):
        self._recipe, self._writes, self._engine, self._stream = recipe, slot.rank == 0, engine, stream
        self._classes, self._report = classes, report
        self._sources = [subset.name for subset in validation]
        self._batches = eval_stream(validation, recipe.data, slot, damage_log=recipe.folder) if validation else None

    def evaluate(self) -> Row:
        """Accuracy and loss by validation source; empty without validation data. A collective."""
        if self._batches is None:
            return {}
        engine = self._engine
        scores = evaluate(engine.module, self._batches, self._sources, self._classes, engine.device, engine.sum)
        for name, score in scores.items():
            if score.count and not math.isfinite(score.loss):
                raise DivergedError(f"the validation loss of {name} is {score.loss}")
        return score_row(scores)

    def save(self, state: TrainState) -> None:
        """Writes a checkpoint. A collective."""
        tensors, optimizer = self._engine.state()
        check_finite({**tensors, **optimizer}, state.step)
        state.stream = self._stream.state().to_json()
        if self._writes:
            folder, keep = self._recipe.folder / "checkpoints", self._recipe.train.keep
            write_checkpoint(folder, state, tensors, optimizer, keep)

    def report(self, row: Row) -> None:
        """Appends to metrics.jsonl, and hands the row on."""
        if self._writes:
            row |= {"replaced": len(lost)} if (lost := self._stream.damaged) else {}
            row |= {"left_out": len(lost)} if self._batches and (lost := self._batches.damaged) else {}
            path = self._recipe.folder / "metrics.jsonl"
            with naming(path), path.open("a") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        self._report(row)


def _advice(recipe: Recipe) -> str:
    """What to do about a loss that is not finite."""
    t, newest = recipe.train, latest_checkpoint(recipe.folder / "checkpoints")
    kept = f"the last finite checkpoint is {newest.path}" if newest else "no checkpoint was written yet"
    clip = "none" if t.clip_norm is None else f"{t.clip_norm:g}"
    return (
        f"{kept}; nothing after it is saved. Go on from there with a lower train.learning_rate (now "
        f"{t.learning_rate:g}), a longer train.warmup (now {t.warmup}) or a smaller train.clip_norm (now {clip})"
    )
