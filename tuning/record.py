"""Every ended trial becomes a row of trials.jsonl at once, so a search that is stopped loses only the trials under
way.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.tune import Callback

from shards.progress import Advance
from tuning.pareto import Row, read_rows


class Recorder(Callback):
    """Appends a row to trials.jsonl as soon as a trial ends, well or not."""

    def __init__(self, folder: Path, advance: Advance):
        self.folder, self.advance = folder, advance
        self.best = max((row.accuracy for row in read_rows(folder)), default=0.0)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        result = trial.last_result
        row = Row(
            trial.trial_id,
            result["values"],
            result["accuracy"],
            int(result["bytes"]),
            result["by_source"],
            round(result["seconds"], 2),
        )
        self.best = max(self.best, row.accuracy)
        self._write(row, f"best {100 * self.best:.1f} %")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        error = trial.get_error()
        cause = getattr(error, "cause", None) or error
        self._write(Row(trial.trial_id, error=f"{type(cause).__name__}: {cause}"[:2000]), "one failed")

    def _write(self, row: Row, note: str) -> None:
        with (self.folder / "trials.jsonl").open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        self.advance(1, note)
