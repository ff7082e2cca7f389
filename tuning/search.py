"""The loop: ask, run, record, tell. Every ended trial is a row on disk before the sampler hears of it.

First come the baselines (the run as it is, at plain 8 and plain 4 bits), then failed trials that are to be tried again,
then new values, each once, until there are enough or all combinations were tried.
"""

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace as with_changes
from functools import partial
from pathlib import Path
from typing import Any

from cluster.session import connect, set_environment
from shards.progress import progress
from shards.settings import replace
from tuning.config import Study
from tuning.record import Recorder, Row, latest, num_trials, read_history, trial_run
from tuning.space import needs_training, size, to_sampled, values_in
from tuning.suggest import Suggester
from tuning.trial import Shared

BASELINE_BITS = (8, 4)


def baselines(study: Study) -> list[Row]:
    """What the search has to beat, as rows still to be filled in. One that lies in the space counts as tried."""
    rows = []
    for bits in BASELINE_BITS:
        values: dict[str, Any] = {"quantize.bits": bits, "quantize.groups": {}}
        job = replace(study.job, values)
        own = values_in(job, study.space)
        in_space = to_sampled(study.space, own) is not None and replace(study.job, own) == job
        label = f"plain {bits} bits"
        rows.append(Row(label.replace(" ", "-"), own if in_space else values, baseline=label, in_space=in_space))
    return rows


def search(study: Study, folder: Path, shared: tuple[Shared, ...] | None, retry_failed: bool = False) -> list[Row]:
    """Runs what is missing of the study, in a Ray session, and returns the last attempt at each trial.

    Raises ClusterGoneError; the rows that ended by then are kept.
    """
    address = study.job.cluster.address
    set_environment(address)
    plan = Plan(study, folder, retry_failed)
    if not plan.more:
        return plan.rows
    print("starting Ray: half a minute or more", file=sys.stderr)
    make = partial(_make, study.job.model_dump(mode="json"), study.search.images, shared)
    # A session of its own: an ended Ray Train run keeps its workers' CPUs reserved until its session ends.
    with connect(address):
        _run_all(plan, study, folder, make)
    return plan.rows


def _run_all(plan: "Plan", study: Study, folder: Path, make: Any) -> None:
    from tuning.workers import Workers

    with (
        progress(f"study {study.name}", plan.total, "trials", plan.done) as advance,
        Workers(make, study.job.cluster.resources, study.search.concurrent) as workers,
    ):
        for row in _run(plan, workers, folder):
            plan.end(row)
            good = [each.accuracy for each in plan.rows if each.error is None and each.in_space]
            note = f"best {100 * max(good):.1f} %" if good else ""
            advance(int(row.baseline is None), f"{note}; {row.trial} failed" if row.error else note)


class Plan:
    """What is still to be run, and the rows that ended. total, done: trials, without baselines."""

    def __init__(self, study: Study, folder: Path, retry_failed: bool):
        config, space = study.search, study.space
        history = latest(read_history(folder))
        again = [_again(row) for row in history if row.error is not None and retry_failed]
        new = [row for row in baselines(study) if row.trial not in {old.trial for old in history}]
        self._trains = needs_training(space)
        if self._trains and not again and any(row.baseline and row.error for row in history):
            new = []  # the run they share failed
        self._baselines = deque(row for row in [*again, *new] if row.baseline)
        self._again = deque(row for row in again if not row.baseline)
        self._baseline_runs = False
        self._rows = {row.trial: row for row in history}
        self._recorder = Recorder(folder)

        tried = [row for row in history if row.in_space]
        under_way = [row.values for row in new if row.in_space]
        self._suggester = Suggester(space, config.sampler, config.seed, tried, under_way)
        combinations = size(space)
        for_trials = combinations and combinations - sum(row.baseline is not None for row in tried) - len(under_way)
        self.total = config.trials if for_trials is None else min(config.trials, for_trials)
        self.done = num_trials(history) - len(self._again)
        self._left = self.total - num_trials(history)
        self._last = max((int(row.trial) for row in history if row.trial.isdecimal()), default=0)

    @property
    def rows(self) -> list[Row]:
        return list(self._rows.values())

    @property
    def more(self) -> bool:
        return bool(self._baselines or self._again) or self._left > 0

    def next(self) -> Row | None:
        """A row to be filled in, or None if there is nothing to begin now."""
        if self._baselines and not (self._trains and self._baseline_runs):  # they share one training
            self._baseline_runs = True
            return self._baselines.popleft()
        if self._again:
            return self._again.popleft()
        values = self._suggester.next() if self._left > 0 else None
        if values is None:
            self._left = 0
            return None
        self._left -= 1
        self._last += 1
        return Row(str(self._last), values)

    def end(self, row: Row) -> None:
        self._recorder.write(row)
        self._rows[row.trial] = row
        self._suggester.tell(row)
        if row.baseline:
            self._baseline_runs = False
            if row.error and self._trains:
                self._baselines.clear()


def _run(plan: Plan, workers: Any, folder: Path) -> Iterator[Row]:
    """Rows as they end."""
    from tuning.workers import Task

    begun: dict[str, tuple[Row, float]] = {}
    while plan.more or workers.busy:
        while workers.free > 0 and (row := plan.next()) is not None:
            begun[row.trial] = (row, time.monotonic())
            run = trial_run(folder, row)
            workers.begin(Task(row.trial, {"values": row.values, "run": run}, row.attempt))
        for answer in workers.wait():
            row, started = begun.pop(answer.task.name)
            seconds = round(time.monotonic() - started, 2)
            row = with_changes(row, host=answer.host, attempt=answer.task.attempt, seconds=seconds)
            if answer.result is None:
                yield with_changes(row, error=answer.error, traceback=answer.traceback)
            else:
                yield with_changes(row, **answer.result)


def _again(row: Row) -> Row:
    return Row(row.trial, row.values, attempt=row.attempt + 1, baseline=row.baseline, in_space=row.in_space)


def _make(job: dict[str, Any], num_images: int, shared: tuple[Shared, ...] | None) -> Any:
    """In the worker: what is called for each trial."""
    from tuning.trial import trial

    return partial(trial, job=job, num_images=num_images, shared=shared)
