"""A Recipe becomes a run folder: the same code on one process and on each of many ranks.

runs/<name>/recipe.yaml        what was run
            metrics.jsonl      one row a report: losses by step, accuracy by source
            checkpoints/       the newest whole ones; the same command goes on from there
            damage-*.jsonl     samples that were damaged and replaced, if there are any; one file a rank
"""

import fcntl
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from shards.format.manifest import naming, whole_file
from shards.loading.batch import Slot
from shards.loading.evaluate import eval_stream
from shards.loading.open import Splits, open_data
from shards.loading.state import StreamState
from shards.loading.train import train_stream
from shards.settings import ConfigError, dump
from xfer.checkpoint import TrainState, latest_checkpoint, write_checkpoint
from xfer.config import Recipe
from xfer.engine import Engine, PlainEngine, build_optimizer, default_device
from xfer.evaluate import evaluate, score_row
from xfer.labels import LabelSpace, Objective
from xfer.model import FusionModel, build_model
from xfer.train import Row, learning_rate, train

EngineFactory = Callable[[FusionModel, Recipe, Slot], Engine]


def shares(recipe: Recipe, world_size: int) -> tuple[int, int]:
    """(micro batch, accumulation) of one rank: the user gives the global batch, the rest follows."""
    share = -(-recipe.data.batch_size // world_size)
    micro = min(share, recipe.train.micro_batch or share)
    return micro, -(-share // micro)


def plain_engine(model: FusionModel, recipe: Recipe, slot: Slot) -> Engine:
    """The engine of `xfer fit`: this process, no distributed runtime."""
    t = recipe.train
    device = default_device()
    optimizer = build_optimizer(model.to(device), t.optimizer, t.learning_rate, t.momentum, t.weight_decay)
    return PlainEngine(model, optimizer, shares(recipe, slot.world_size)[1], t.precision, t.clip_norm, device)


def label_space(data: Splits, trained: Sequence[str] = ()) -> LabelSpace:
    """The union of the training sources' classes; the classes of a model that is `trained`, in its order."""
    return LabelSpace.union({subset.name: subset.classes for subset in data.train}, trained)


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
    _write(recipe.folder / "recipe.yaml", dump(recipe))
    if job:
        _write(recipe.folder / "job.yaml", job)


def _cut_metrics(folder: Path, step: int) -> None:
    """Leaves out the rows behind `step`: they will be made again."""
    rows = [row for row in read_metrics(folder) if row["step"] <= step]
    _write(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _write(path: Path, text: str) -> None:
    with whole_file(path) as draft:
        draft.write_text(text)


def read_metrics(folder: Path) -> list[Row]:
    """The rows of a run's metrics.jsonl; a half-written last line is left out."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def fit(recipe: Recipe, slot: Slot, make_engine: EngineFactory, report: Callable[[Row], None]) -> TrainState:
    """Trains one rank of a recipe, from the newest whole checkpoint on. Rank 0 writes metrics and checkpoints."""
    data = open_data(recipe.data)
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    labels = label_space(data, checkpoint.state.classes if checkpoint else ())
    model = build_model(recipe.model, len(labels.classes), recipe.train.seed, load_weights=checkpoint is None)
    if checkpoint:
        model.load_state_dict(checkpoint.model())
    engine = make_engine(model, recipe, slot)
    state = checkpoint.state if checkpoint else TrainState(classes=list(labels.classes))
    if slot.rank == 0:
        _cut_metrics(recipe.folder, state.step)
    if checkpoint:
        engine.load_optimizer(checkpoint.optimizer(), state.step)

    gpu = engine.device if engine.device.type == "cuda" else None
    stream = train_stream(
        data.train, recipe.data, slot, StreamState(**state.stream), damage_log=recipe.folder, device=gpu
    )
    eval_batches = eval_stream(data.validation, recipe.data, slot) if data.validation else None
    sources = {subset.name: subset.classes for subset in data.validation}

    def score() -> Row:
        if eval_batches is None:
            return {}
        return score_row(evaluate(engine.module, eval_batches, sources, labels.classes, engine.device, engine.sum))

    def save(state: TrainState) -> None:
        tensors, optimizer = engine.state()
        state.stream = stream.state().to_json()
        if slot.rank == 0:
            write_checkpoint(recipe.folder / "checkpoints", state, tensors, optimizer, recipe.train.keep)

    def log(row: Row) -> None:
        if slot.rank == 0:
            row |= {"replaced": len(lost)} if (lost := stream.damaged) else {}
            path = recipe.folder / "metrics.jsonl"
            with naming(path), path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        report(row)

    t = recipe.train
    return train(
        engine,
        iter(stream),
        Objective(labels, [subset.name for subset in data.train], engine.device, t.label_smoothing),
        state,
        steps=t.steps,
        global_batch=recipe.data.batch_size,
        rate=partial(learning_rate, steps=t.steps, peak=t.learning_rate, warmup=t.warmup),
        evaluate=score,
        save=save,
        report=log,
        freeze_batchnorm=t.freeze_batchnorm,
        evaluate_every=t.evaluate_every,
        save_every=t.save_every,
        log_every=t.log_every,
    )
