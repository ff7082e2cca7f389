"""run(): a Study: its job trained if need be, the search, the choice. Stopped at any time, the same command goes on.

runs/<study>/study.yaml    what was searched
             trials.jsonl  one row an attempt, failed ones with their cause
             best.yaml     a job: the chosen row's values in place
             bundle/       the chosen model itself, if the search ran on one trained run
             report.html
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.launch import run as run_job
from shards.format.whole import write_text
from shards.settings import ConfigError, dump, load, replace
from tuning.check import space_faults
from tuning.config import Study
from tuning.pareto import choose
from tuning.record import Row
from tuning.report import write_report
from tuning.search import search
from tuning.space import needs_training
from tuning.trial import compared, float_row, realize, share, share_run
from xfer.bundle import open_model
from xfer.checkpoint import latest_checkpoint
from xfer.config import Recipe
from xfer.folds import prepare_folds, untrained
from xfer.history import is_trained
from xfer.prepare import load_document, prepare
from xfer.quantize import ship
from xfer.run import run_lock


@dataclass(frozen=True)
class Searched:
    """What a search came to: the last attempt at each trial, the chosen one (None: all failed), and the page."""

    rows: list[Row]
    best: Row | None
    report: Path


def folder_of(study: Study) -> Path:
    """`<output>/<study>`, beside the run folder."""
    return Path(study.job.recipe.output) / study.name


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """A study. Raises ConfigError with every fault: of its schema, of the space, of the job's data and weights."""
    return load_document(path, Study, overrides, _faults_of_space)


def _faults_of_space(sections: Mapping[str, Any]) -> list[str]:
    both = "job" in sections and "space" in sections
    return space_faults(sections["job"], sections["space"]) if both else []


def run(study: Study, retry_failed: bool = False) -> Searched:
    """Searches and writes the study folder. Trains the study's job first if it is not trained yet.

    retry_failed: trials that failed before are tried again with the same values. Raises ConfigError, and RuntimeError
    if the job's training failed or the cluster is gone; rows that ended by then are kept.
    """
    _check(study)
    folder = folder_of(study)
    with run_lock(folder):
        _check_same(study, folder)
        write_text(folder / "study.yaml", dump(study))
        shared = None
        if not needs_training(study.space):
            _train_first(study)
            print("preparing what the trials share", file=sys.stderr)
            shared = share(study.job, study.search.images)
            write_text(folder / "float.json", json.dumps(float_row(study.job, shared), allow_nan=False))
        rows = search(study, folder, shared, retry_failed)
        best = choose(rows, study.search.tolerance)
        if best is not None:
            job = replace(study.job, {**best.values, "name": f"{study.name}-best"})
            write_text(folder / "best.yaml", dump(job))
            if shared is not None:
                write_text(folder / "recipe.yaml", dump(job.recipe))
                chosen = realize(job.recipe, share_run(study.job.recipe, 1, shared[0].num_classes))
                card = [compared(job.recipe, shared)]
                ship(open_model(study.job.recipe.folder), job.recipe, chosen, folder / "bundle", card)
        return Searched(rows, best, write_report(folder))


def _check(study: Study) -> None:
    """Raises ConfigError with the faults of the space and of the job together."""
    recipe = study.job.recipe
    faults = space_faults(study.job, study.space)
    if folder_of(study) == recipe.folder:
        faults.append(f"name: the study and its job are both called {study.name!r}; give the study another name")
    try:
        trains = not needs_training(study.space) and not _is_trained(recipe)  # says again what is odd
        ranks = study.job.cluster.most if trains else 1
        prepare(recipe, ranks, say=not trains)
        prepare_folds(recipe, ranks, say=not trains)
    except ConfigError as error:
        origin = f"{error.origin}: " if error.origin else ""
        faults += [f"{origin}{fault}" for fault in error.faults]
    if faults:
        raise ConfigError(faults)


def _check_same(study: Study, folder: Path) -> None:
    """A study folder holds one study; more trials may be asked of it, everything else stays."""
    path = folder / "study.yaml"
    if not path.is_file():
        return
    before = load(path, Study)
    job = before.job.model_copy(update={"cluster": study.job.cluster})  # where it runs is no part of what is searched
    same = before.model_copy(update={"search": study.search, "job": job}) == study
    changed = {k for k, v in study.search.model_dump().items() if v != getattr(before.search, k)}
    if not same or changed - {"trials", "concurrent", "tolerance"}:
        what = "the job or the space" if not same else f"search.{', search.'.join(sorted(changed))}"
        raise ConfigError(
            f"{folder} holds another study: {what} differ(s); give this one another name=... or remove it"
        )


def _train_first(study: Study) -> None:
    recipe = study.job.recipe
    if not _is_trained(recipe):
        print(f"{recipe.folder} is not trained yet: training it first")
        result = run_job(study.job)
        if result.error:
            raise RuntimeError(f"training {recipe.folder} failed: {result.error}")


def _is_trained(recipe: Recipe) -> bool:
    """Whether the run of a recipe is at its end, and its folds, if it has any."""
    return is_trained(recipe, latest_checkpoint(recipe.folder / "checkpoints")) and not untrained(recipe.folder, recipe)
