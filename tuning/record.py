"""Rows: what each trial came to, one line of trials.jsonl each, in the file as soon as the trial ends.

A failed trial is a row too. Tried again, it gets another row with the next attempt; its earlier ones stay as history.
A line is written by one call, and a torn last line is cut off before the next one: a search may be killed at any time.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from shards.format.whole import read_json_lines
from shards.settings import ConfigError
from tuning.config import Study
from tuning.space import needs_training
from xfer.metrics import Estimate, mean_of, wilson


@dataclass(frozen=True)
class Row:
    """One attempt at one trial. `error` is None if it went well; otherwise accuracy and bytes say nothing.

    accuracy: the mean over sources of what `measure` names. counts: images of each source that were scored; correct:
    how many of them are right, or, of a detector or a segmenter, intervals: those of its scores. baseline: what the row
    is compared with the search for, such as "plain 8 bits"; None for a trial. in_space: whether the search could draw
    it, so that it may be chosen.
    """

    trial: str
    values: dict[str, Any] = field(default_factory=dict)
    accuracy: float = 0.0
    bytes: int = 0
    by_source: dict[str, float] = field(default_factory=dict)
    measure: str = "accuracy"
    correct: dict[str, int] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    host: str = ""
    attempt: int = 1
    baseline: str | None = None
    in_space: bool = True
    error: str | None = None
    traceback: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy, a mean over sources.

        Intervals of the sources, Wilson's of accuracies, joined by square and add (Zou & Donner, Statistics in Medicine
        2008).
        """
        if not self.counts:
            return (0.0, 1.0)
        if self.intervals:
            sources = [Estimate(self.by_source[name], *ends) for name, ends in self.intervals.items()]
        else:
            right = [(self.correct[source], count) for source, count in self.counts.items()]
            sources = [Estimate(c / n if n else 0.5, *wilson(c, n)) for c, n in right]
        mean = mean_of(sources)
        return max(0.0, mean.low), min(1.0, mean.high)

    @property
    def step(self) -> float:
        """What one more right image is worth in accuracy, in the source where it is worth most; 0 of other measures."""
        if self.intervals:
            return 0.0
        counts = [count for count in self.counts.values() if count]
        return 1 / (min(counts) * len(counts)) if counts else 0.0


def read_history(folder: Path) -> list[Row]:
    """All rows of a study's trials.jsonl as they came; a torn last line is left out. Raises ConfigError if one is
    damaged.
    """
    path, known = folder / "trials.jsonl", {one.name for one in fields(Row)}
    rows = read_json_lines(path)
    for number, row in enumerate(rows, 1):
        if "trial" not in row or not row.keys() <= known:
            odd = ", ".join(sorted(row.keys() - known)) or "no trial"
            raise ConfigError(f"{path}: line {number} is damaged: it has {odd}; mend the line, or take it out")
    return [Row(**row) for row in rows]


def read_rows(folder: Path) -> list[Row]:
    """The last attempt at each trial, in the order of the first attempts."""
    return latest(read_history(folder))


def latest(history: Sequence[Row]) -> list[Row]:
    """The last attempt at each trial, in the order of the first attempts."""
    return list({row.trial: row for row in history}.values())


def num_trials(rows: Sequence[Row]) -> int:
    """Baselines are not counted."""
    return sum(row.baseline is None for row in rows)


class Recorder:
    """Appends rows to trials.jsonl; one process at a time, which holds the study's lock."""

    def __init__(self, folder: Path):
        self.path = folder / "trials.jsonl"
        if self.path.is_file():
            whole = self.path.read_bytes().rpartition(b"\n")
            os.truncate(self.path, len(whole[0]) + len(whole[1]))

    def write(self, row: Row) -> None:
        """In one call and down to the disk. NaN is no JSON, and a row that holds one is a mistake of ours."""
        line = json.dumps(asdict(row), allow_nan=False) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)


def trial_run(folder: Path, row: Row) -> Path:
    """Where a trial of the study in `folder` trains, if it does."""
    return folder / "trials" / ("baseline" if row.baseline else row.trial) / "run"


def chosen_run(study: Study, folder: Path, best: Row) -> Path:
    """The trained run that a row was scored on."""
    return trial_run(folder, best) if needs_training(study.space) else study.job.recipe.folder
