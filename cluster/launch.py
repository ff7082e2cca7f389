"""run(): a Job on a Ray cluster, with Ray Train and DeepSpeed, watched from here.

Resume is ours: every start of the workers, the first one, one after a lost worker and the next run of the same
command, begins at the newest whole checkpoint of the run folder. The run folder has to be on storage that every node
sees.
"""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config import Job
from cluster.failure import Failure
from cluster.session import connect
from shards.settings import dump
from xfer.checkpoint import latest_checkpoint
from xfer.config import Recipe
from xfer.folds import prepare_folds, train_folds
from xfer.follow import follow
from xfer.prepare import prepare
from xfer.run import begin, last_scored, read_metrics, run_lock
from xfer.train import Row

POLL_S = 0.5


@dataclass(frozen=True)
class RunResult:
    """How a run ended. `metrics`: its last evaluation row; `error`: the workers' failure, None if all went well;
    `comes_again`: the same command would meet it again.
    """

    path: Path
    checkpoint: Path | None
    metrics: Row
    error: str | None = None
    comes_again: bool = False


def run(job: Job) -> RunResult:
    """Trains `job` to its last step; with data.validation: leave_one_source_out, the runs without a source first.

    Raises ConfigError for what can be seen to be wrong before a worker starts.
    """
    recipe = job.recipe
    with run_lock(recipe.folder):
        prepare(recipe, job.cluster.workers)
        prepared = prepare_folds(recipe, job.cluster.workers)
        failure = train_folds(recipe, prepared, lambda fold, what: _train_fold(job, fold, what))
        failure = failure or _train(job, recipe.name)
        rows = [row for row in read_metrics(recipe.folder) if "accuracy" in row]
        latest = latest_checkpoint(recipe.folder / "checkpoints")
        error, comes_again = (failure.message, failure.comes_again) if failure else (None, False)
        return RunResult(recipe.folder, latest.path if latest else None, rows[-1] if rows else {}, error, comes_again)


def _train_fold(job: Job, fold: Recipe, what: str) -> Failure | None:
    failure = _train(job.model_copy(update={"recipe": fold}), f"{job.recipe.name}, {what}")
    return replace(failure, message=f"{what}: {failure.message}") if failure else None


def _train(job: Job, what: str) -> Failure | None:
    """Trains a job's recipe from its newest checkpoint on, called `what` in the terminal."""
    recipe = job.recipe
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    done = checkpoint.state.step if checkpoint else 0
    if done >= recipe.train.steps and last_scored(recipe.folder, done) >= done:
        return None
    with connect(job.cluster.address, job.cluster.timeout_s):
        from cluster.attempts import attempt
        from cluster.capacity import check_capacity

        check_capacity(job.cluster, recipe.data.batch_size)
        begin(recipe, dump(job))
        print(f"starting {job.cluster.workers} Ray workers: half a minute or more", file=sys.stderr)
        with follow(what, recipe.train.steps, done) as show, _tail(recipe.folder, done, show):
            return attempt(job)


class _tail:
    """Hands the rows that rank 0 appends to metrics.jsonl to `show`, from a thread, as they come."""

    def __init__(self, folder: Path, done: int, show: Callable[[Row], None]):
        self.folder, self.done, self.show = folder, done, show
        self._seen = len(read_metrics(folder))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def _loop(self) -> None:
        while not self._ended.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        rows = read_metrics(self.folder)
        self._seen = min(self._seen, len(rows))  # a restarted worker cuts the rows it will make again
        for row in rows[self._seen :]:
            self.show(row)
        self._seen = len(rows)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()
