"""run(): a Study with Ray Tune: ask, run, record, tell. Stopped at any time, the same command goes on.

runs/<study>/study.yaml    what was searched
             trials.jsonl  one row a trial, failed ones with their error
             best.yaml     a job: the chosen row's values in place
             bundle/       the chosen model itself, if the search ran on one trained run
             report.html
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from cluster.launch import run as run_job
from cluster.session import beside_main, connect
from shards.progress import progress
from shards.settings import ConfigError, dump, load, replace
from tuning.config import Study
from tuning.pareto import Row, choose, read_rows
from tuning.space import check_space, needs_training, tune_space
from tuning.trial import Shared, float_row, realize, share
from xfer.bundle import open_model
from xfer.checkpoint import latest_checkpoint
from xfer.prepare import prepare
from xfer.quantize import ship
from xfer.run import run_lock

OBJECTIVES = {"accuracy": "max", "bytes": "min"}


def folder_of(study: Study) -> Path:
    """`<output>/<study>`, beside the run folder."""
    return Path(study.job.recipe.output) / study.name


def run(study: Study) -> tuple[list[Row], Row]:
    """Searches, writes the study folder and returns (every row, the chosen one).

    Trains the study's job first if it is not trained yet. Raises ConfigError, and RuntimeError if every trial failed.
    """
    check_space(study.job, study.space)
    folder = folder_of(study)
    if folder == study.job.recipe.folder:
        raise ConfigError(f"name: the study and its job are both called {study.name!r}; give the study another name")
    with run_lock(folder):
        _check_same(study, folder)
        (folder / "study.yaml").write_text(dump(study))
        trained = not needs_training(study.space)
        if trained:
            _train_first(study)
        else:
            prepare(study.job.recipe)
        print("starting Ray and preparing what the trials share: half a minute or more", file=sys.stderr)
        # A session of its own: an ended Ray Train run keeps its workers' CPUs reserved until its session ends.
        with connect(study.job.cluster.address):
            rows = _search(study, folder, shared := share(study.job, study.search.images) if trained else None)
        try:
            best = choose(rows, study.search.tolerance)
        except ValueError:
            raise RuntimeError(
                f"every trial failed, the first with: {rows[0].error if rows else 'nothing ran'}"
            ) from None
        job = replace(study.job, {**best.values, "name": f"{study.name}-best"})
        (folder / "best.yaml").write_text(dump(job))
        if shared is not None:
            (folder / "recipe.yaml").write_text(dump(job.recipe))
            ship(open_model(shared.run), job.recipe, realize(job.recipe, shared), folder / "bundle")
    return rows, best


def _check_same(study: Study, folder: Path) -> None:
    """A study folder holds one study; more trials may be asked of it, everything else stays."""
    path = folder / "study.yaml"
    if not path.is_file():
        return
    before = load(path, Study)
    same = before.model_copy(update={"search": study.search}) == study
    changed = {k for k, v in study.search.model_dump().items() if v != getattr(before.search, k)}
    if not same or changed - {"trials", "concurrent", "tolerance"}:
        what = "the job or the space" if not same else f"search.{', search.'.join(sorted(changed))}"
        raise ConfigError(
            f"{folder} holds another study: {what} differ(s); give this one another name=... or remove it"
        )


def _train_first(study: Study) -> None:
    recipe = study.job.recipe
    checkpoint = latest_checkpoint(recipe.folder / "checkpoints")
    if checkpoint is None or checkpoint.state.step < recipe.train.steps:
        print(f"{recipe.folder} is not trained yet: training it first")
        result = run_job(study.job)
        if result.error:
            raise RuntimeError(f"training {recipe.folder} failed: {result.error}")
    else:
        prepare(recipe)


def _search(study: Study, folder: Path, shared: Shared | None) -> list[Row]:
    import ray
    from ray import tune

    from tuning.record import Recorder

    done = read_rows(folder)
    left = study.search.trials - len(done)
    if left <= 0:
        return done
    if shared is not None:
        (folder / "float.json").write_text(json.dumps(float_row(shared)))
    plain = {
        "job": study.job.model_dump(mode="json"),
        "space": {path: d.model_dump(mode="json") for path, d in study.space.items()},
        "images": study.search.images,
    }
    trainable = tune.with_parameters(partial(_trainable, folder=folder), study=plain, shared=shared)
    with progress(f"study {study.name}", study.search.trials, "trials", len(done)) as advance:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"CPU": 1}),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(study, folder, len(done)),
                num_samples=left,
                trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
                reuse_actors=True,  # a new process for each trial would import torch each time
                max_concurrent_trials=study.search.concurrent or max(1, int(ray.cluster_resources().get("CPU", 1))),
            ),
            run_config=tune.RunConfig(
                name=f"{study.name}.ray", storage_path=str(folder), callbacks=[Recorder(folder, advance)], verbose=0
            ),
        )
        beside_main(tuner.fit)
    return read_rows(folder)


def _trainable(sampled: dict[str, Any], study: dict[str, Any], shared: Any, folder: Path) -> dict[str, Any]:
    import torch
    from ray import tune

    from tuning.trial import trial

    torch.set_num_threads(1)
    name = tune.get_context().get_trial_id()
    return trial(sampled, study, shared, folder / "trials" / str(name))


def _searcher(study: Study, folder: Path, num_done: int) -> Any:
    """Optuna behind Ray Tune; its journal beside the results lets a stopped search remember what it learnt."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = study.search.seed + num_done
    sampler = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=8),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed, population_size=12),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
    }[study.search.sampler]()
    return OptunaSearch(
        OptunaSearch.convert_search_space(tune_space(study.space)),
        metric=list(OBJECTIVES),
        mode=list(OBJECTIVES.values()),
        sampler=sampler,
        study_name=study.name,
        storage=JournalStorage(JournalFileBackend(str(folder / "optuna.journal"))),
    )
