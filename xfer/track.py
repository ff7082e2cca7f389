"""Trackers: the rows of metrics.jsonl in the programs that people watch many runs with.

metrics.jsonl is the truth and a tracker a copy of it: at every start it gets the rows that stand there, then each new
one. So a run that goes on is the same run in its tracker, without a step twice and without a hole, whatever was lost
when it stopped. Only rank 0 has trackers. One that fails is said, once, and left out; training goes on. Nothing leaves
the machine unless its own settings say where to, and addresses are shown without user, password and query.

    runs/<name>/tensorboard/   event files, written anew at every start
                wandb/         an offline run, written anew at every start under the same id; `wandb sync` sends it
                track.json     which run this is in MLflow and W&B
    runs/mlflow/               mlflow.db, unless MLFLOW_TRACKING_URI names a server
"""

import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from shards.format.whole import read_json, write_json
from shards.remote.transport import shown
from xfer.config import Recipe

IDS = "track.json"
PROJECT = "xfer"  # the experiment in MLflow, the project in W&B
MOST_METRICS, MOST_PARAMETERS, LONGEST_PARAMETER = 1000, 100, 6000  # of one call to MLflow
Points = Sequence[tuple[int, Mapping[str, float]]]
"""(step, values by name), by rising step."""


class Tracker(Protocol):
    """One run in one tracker: `add` gets all that is on record first, then what is new."""

    def add(self, points: Points) -> None: ...

    def close(self, finished: bool) -> None: ...


class TensorBoard:
    """Event files, by tensorboardX. Those of an earlier start are written again, so no reader sees a step twice."""

    def __init__(self, recipe: Recipe):
        folder = recipe.folder / "tensorboard"
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = import_module("tensorboardX").SummaryWriter(str(folder), flush_secs=10)
        lines = [f"| {key} | {value} |" for key, value in parameters(recipe).items()]
        self._writer.add_text("recipe", "\n".join(["| key | value |", "|---|---|", *lines]))

    def add(self, points: Points) -> None:
        for step, values in points:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self, finished: bool) -> None:
        self._writer.close()


class MLflow:
    """A run on the server that MLflow is set to, else in a SQLite file beside the run folders.

    MLflow takes nothing back. A step it has already is not sent again: made again from a checkpoint it is the same, to
    the bit, unless the recipe was changed in between. Changed parameters are tags, `now.<key>`.
    """

    def __init__(self, recipe: Recipe):
        mlflow, home = import_module("mlflow"), Path(recipe.output) / "mlflow"
        import_module("mlflow.environment_variables").MLFLOW_DISABLE_TELEMETRY.set(True)  # reports to its makers
        import_module("mlflow.telemetry").set_telemetry_client()
        self._entities = import_module("mlflow.entities")
        local = not mlflow.is_tracking_uri_set()
        if local:
            home.mkdir(parents=True, exist_ok=True)
        self._client = mlflow.MlflowClient(f"sqlite:///{home / 'mlflow.db'}" if local else None)
        self._logged: dict[str, set[int]] = {}
        values = {key: value[:LONGEST_PARAMETER] for key, value in parameters(recipe).items()}
        run_id = read_json(recipe.folder / IDS).get("mlflow")
        self._resumed = any(run_id == run.info.run_id for run in self._search(run_id))
        if not self._resumed:
            run_id = self._create(recipe, str(home / "artifacts") if local else None)
            _keep_id(recipe.folder, "mlflow", run_id)
        self.run_id = run_id
        before = self._client.get_run(run_id).data.params
        self._client.update_run(run_id, "RUNNING")
        new = [self._entities.Param(key, value) for key, value in values.items() if key not in before]
        for start in range(0, len(new), MOST_PARAMETERS):
            self._client.log_batch(run_id, params=new[start : start + MOST_PARAMETERS])
        for key in values.keys() & before.keys():
            if values[key] != before[key]:
                self._client.set_tag(run_id, f"now.{key}", values[key])

    def _search(self, run_id: str | None) -> Sequence[Any]:
        experiment = self._client.get_experiment_by_name(PROJECT)
        if run_id is None or experiment is None:
            return ()
        return self._client.search_runs([experiment.experiment_id], f"attributes.run_id = '{run_id}'")

    def _create(self, recipe: Recipe, artifacts: str | None) -> str:
        experiment = self._client.get_experiment_by_name(PROJECT)
        place = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT, artifacts)
        return self._client.create_run(place, run_name=recipe.name, tags={"folder": str(recipe.folder)}).info.run_id

    def add(self, points: Points) -> None:
        now = round(1000 * time.time())
        metrics = [
            self._entities.Metric(name, value, now, step)
            for step, values in points
            for name, value in values.items()
            if step not in self._logged_steps(name)
        ]
        for start in range(0, len(metrics), MOST_METRICS):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + MOST_METRICS])

    def _logged_steps(self, name: str) -> set[int]:
        """Steps of a metric from earlier starts."""
        if name not in self._logged:
            history = self._client.get_metric_history(self.run_id, name) if self._resumed else ()
            self._logged[name] = {metric.step for metric in history}
        return self._logged[name]

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if finished else "FAILED")


class WandB:
    """A W&B run that stays on this machine until `wandb sync` is called. Of the machine and the process it knows
    nothing but what is in the recipe.
    """

    def __init__(self, recipe: Recipe):
        wandb, folder = import_module("wandb"), recipe.folder
        name = read_json(folder / IDS).get("wandb") or _keep_id(folder, "wandb", uuid.uuid4().hex[:12])
        for old in folder.glob(f"wandb/offline-run-*-{name}"):
            shutil.rmtree(old)
        quiet = dict.fromkeys(("silent", "disable_git", "disable_code"), True)
        private = dict.fromkeys(("x_disable_meta", "x_disable_stats", "x_disable_machine_info"), True)
        self._run = wandb.init(
            mode="offline",
            project=PROJECT,
            id=name,
            name=recipe.name,
            dir=str(folder),
            config=parameters(recipe),
            reinit="create_new",
            settings=wandb.Settings(console="off", x_save_requirements=False, **quiet, **private),
        )

    def add(self, points: Points) -> None:
        for step, values in points:
            self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[str, Callable[[Recipe], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}


def track_faults(names: Sequence[str]) -> list[str]:
    """Trackers whose package is not installed."""
    return [
        f"track: {name} needs the package {PACKAGES[name]}, which is not installed here: pip install 'xfer[track]'"
        for name in names
        if find_spec(PACKAGES[name]) is None
    ]


class Tracking:
    """All trackers of a run."""

    def __init__(self, recipe: Recipe, rows: Sequence[Mapping[str, Any]]):
        """rows: those that are on record, by rising step."""
        self._trackers: dict[str, Tracker] = {}
        points = [point for row in rows for point in scalars(row)]
        for name in recipe.track:
            with self._spared(name):
                self._trackers[name] = TRACKERS[name](recipe)
                self._trackers[name].add(points)

    def add(self, row: Mapping[str, Any]) -> None:
        """Hands a new row to each of them."""
        points = list(scalars(row))
        for name, tracker in list(self._trackers.items()):
            with self._spared(name):
                tracker.add(points)

    def close(self, finished: bool) -> None:
        """finished: that the run came to its last step."""
        for name, tracker in list(self._trackers.items()):
            with self._spared(name):
                tracker.close(finished)

    @contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """Whatever goes wrong in a tracker ends the tracker and not the training."""
        try:
            yield
        except Exception as error:
            self._trackers.pop(name, None)
            reason = re.sub(r"//[^/\s]*@", "//", " ".join(f"{type(error).__name__}: {error}".split()))[:300]
            print(f"track: {name} failed and is left out from here on, training goes on: {reason}", file=sys.stderr)


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, float]]]:
    """A row of metrics.jsonl as points: the loss of each step since the row before, then the row's other numbers; those
    by source under `accuracy/<source>`. Memory and damage, which a row of scores has too, are taken from rows of losses
    alone: both may be of one step.
    """
    step, losses = row["step"], row.get("losses", ())
    for at, loss in enumerate(losses, step - len(losses) + 1):
        yield at, {"loss": loss}
    numbers = {key: value for key, value in row.items() if isinstance(value, (int, float))}
    values = {key: value for key, value in numbers.items() if losses or key.startswith("evaluation_")}
    for key, of in row.items():
        by_source = of.items() if isinstance(of, dict) else ()
        values |= {f"{key}/{source}": value for source, value in by_source if isinstance(value, (int, float))}
    yield step, {key: value for key, value in values.items() if key not in ("step", "loss")}


def parameters(recipe: Recipe) -> dict[str, str]:
    """Every value of a recipe by its dotted path, addresses without what gives access to them."""
    return dict(_flat(recipe.model_dump(mode="json", by_alias=True), ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _flat(part, f"{path}.{key}" if path else key)
    else:
        text = value if isinstance(value, str) else repr(value)
        yield path, shown(text) if "://" in text else text


def _keep_id(folder: Path, tracker: str, name: str) -> str:
    write_json(folder / IDS, read_json(folder / IDS) | {tracker: name})
    return name
