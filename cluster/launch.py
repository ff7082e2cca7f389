"""run(): a Job on a Ray cluster, with Ray Train and DeepSpeed, watched from here.

Resume is ours: every start of the workers, the first one, one after a lost worker and the next run of the same
command, begins at the newest whole checkpoint of the run folder. The run folder has to be on storage that every node
sees.
"""

import math
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from cluster.config import Job
from cluster.failure import Failure
from cluster.session import connect
from cluster.stopping import saving_first
from shards.loading.batch import Slot
from shards.settings import dump
from xfer.begin import begin, features_folder
from xfer.checkpoint import latest_checkpoint, model_checkpoint
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.folds import prepare_folds, train_folds
from xfer.follow import follow
from xfer.history import last_step, model_row, read_metrics
from xfer.prepare import prepare
from xfer.run import all_done, fit, run_lock
from xfer.seeds import check_not_seeded, train_seeds
from xfer.stop import stoppable
from xfer.train import Row

POLL_S = 0.5
PATIENCE_S = 30.0  # between words while nothing is trained yet


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


def run(job: Job, seeds: int | None = None) -> RunResult:
    """Trains `job` to its last step; with data.validation: leave_one_source_out, the runs without a source first.
    `seeds`: that many runs of it, one after the other, which differ in their seeds only (xfer/seeds.py).

    Raises ConfigError for what can be seen to be wrong before a worker starts.
    """
    recipe, cache_folder = job.recipe, features_folder(job.recipe)
    with ExitStack() as stack:
        # one session for all that is left to train; none if nothing is
        session = cache(lambda: stack.enter_context(connect(job.cluster.address, job.cluster.timeout_s)))

        def train(one: Recipe, what: str, say: bool = False) -> Failure | None:
            return _train_with_folds(job.model_copy(update={"recipe": one}), what, session, cache_folder, say)

        if seeds is not None:
            failure = train_seeds(recipe, seeds, train, job.cluster.most)
        else:
            check_not_seeded(recipe.folder)
            failure = train(recipe, recipe.name, say=True)
    latest, _ = model_checkpoint(recipe.folder / "checkpoints")
    error, comes_again = (failure.message, failure.comes_again) if failure else (None, False)
    return RunResult(recipe.folder, latest.path if latest else None, model_row(recipe.folder), error, comes_again)


def _train_with_folds(job: Job, what: str, session: Callable[[], None], cache: Path, say: bool) -> Failure | None:
    """Trains one job, the runs that leave a source out first."""
    recipe, workers = job.recipe, job.cluster.most

    def train(fold: Recipe, which: str) -> Failure | None:
        failure = _train(job.model_copy(update={"recipe": fold}), f"{what}, {which}", session, cache)
        return replace(failure, message=f"{which}: {failure.message}") if failure else None

    with run_lock(recipe.folder):
        prepare(recipe, workers, say)
        return train_folds(recipe, prepare_folds(recipe, workers, say), train) or _train(job, what, session, cache)


def _train(job: Job, what: str, session: Callable[[], None], cache: Path) -> Failure | None:
    """Trains a job's recipe from its newest checkpoint on, called `what` in the terminal. `session` connects to Ray;
    `cache`: folder of features.
    """
    recipe = job.recipe
    if all_done(recipe, what, dump(job), cache):
        return None
    if not last_step(recipe):  # nothing to train after the probe: no workers
        begin(recipe, dump(job), cache)
        fit(recipe, Slot(), build_engine, lambda row: None)
        return None
    session()
    from cluster.attempts import attempt
    from cluster.capacity import check_capacity

    workers = check_capacity(job.cluster, recipe.data.batch_size)
    begin(recipe, dump(job), cache)
    fewer = f" of {job.cluster.most}" if workers < job.cluster.most else ""
    print(f"starting {workers}{fewer} Ray workers: half a minute or more", file=sys.stderr)
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    done = checkpoint.state.step if checkpoint else 0
    with ExitStack() as stack:
        stack.enter_context(stoppable(recipe.folder))
        ended = stack.enter_context(saving_first(recipe.folder, done))
        show = stack.enter_context(follow(what, last_step(recipe), done))
        stack.enter_context(_tail(recipe.folder, done, show))
        return attempt(job, workers, ended)


class _tail:
    """Hands the rows that rank 0 appends to metrics.jsonl to `show`, from a thread, as they come. Until the first one
    it says every half minute that it waits.
    """

    def __init__(self, folder: Path, done: int, show: Callable[[Row], None]):
        self.folder, self.done, self.show = folder, done, show
        self._seen = len(read_metrics(folder))
        self._ended = threading.Event()
        self._next_word = time.monotonic() + PATIENCE_S
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def _loop(self) -> None:
        while not self._ended.wait(POLL_S):
            self._look()
            if time.monotonic() > self._next_word:
                self._next_word += PATIENCE_S
                print("no step yet: Ray starts processes, and each imports torch", file=sys.stderr)

    def _look(self) -> None:
        rows = read_metrics(self.folder)
        if len(rows) > self._seen:
            self._next_word = math.inf
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
