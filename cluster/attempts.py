"""The workers are started, and started again if they are lost, or if there is room for more of them: each restart is
said, with its cause.
"""

import sys
from collections.abc import Callable
from pathlib import Path

from cluster.capacity import NoRoomError, await_return
from cluster.config import Job
from cluster.failure import Failure, failure_of
from cluster.growth import Growth
from cluster.outage import Watch, await_answer
from cluster.session import beside_main
from shards.settings import ConfigError
from xfer.checkpoint import latest_checkpoint
from xfer.engine import shares
from xfer.history import is_trained, last_step, read_metrics
from xfer.stop import ask, take_back


def attempt(job: Job, workers: int, ended: Callable[[], object]) -> Failure | None:
    """Starts `workers` of them until they are done, at most `max_failures` times again, with as many as the job may
    have and there is room for. Inside a Ray session, in a run folder that is `stoppable`. ended: called whenever they
    have; it does not return where the run is to end with them (cluster/stopping.py).

    What would come again is not tried again. Raises ConfigError if the user's job or files are at fault, and
    ClusterGoneError if the cluster does not answer any more.
    """
    folder, attempts, number = job.recipe.folder, job.cluster.max_failures + 1, 1
    while True:
        growth = Growth(job.cluster, workers, lambda: _step(folder), last_step(job.recipe), lambda: ask(folder))
        failure = _attempt(job, workers, growth)
        take_back(folder)
        ended()
        if failure is None:
            if not growth.is_asked or is_trained(job.recipe, latest_checkpoint(folder / "checkpoints")):
                return None
            print(f"room for {growth.workers} workers, not {workers}: restart, {_where(job)}", file=sys.stderr)
        elif failure.faults:
            raise ConfigError(failure.faults)
        elif failure.comes_again or number == attempts:
            return failure
        else:
            number += 1
            print(f"{failure.message}\nrestart: attempt {number} of {attempts}, {_where(job)}", file=sys.stderr)
        try:
            found = await_return(job.cluster)
        except NoRoomError as gone:
            return Failure(f"{failure.message}\n{gone}" if failure else str(gone))
        if failure and found != workers:
            print(f"going on with {found} workers, not {workers}", file=sys.stderr)
        workers = found


def _where(job: Job) -> str:
    checkpoint = latest_checkpoint(job.recipe.folder / "checkpoints")
    return f"from step {checkpoint.state.step}" if checkpoint else "from the beginning: nothing was saved yet"


def _step(folder: Path) -> int:
    """The last one that metrics know of."""
    rows = read_metrics(folder)
    return rows[-1]["step"] if rows else 0


def _attempt(job: Job, workers: int, growth: Growth) -> Failure | None:
    """One start of all workers. Ray Train would restart them too, but silently, and whatever the cause."""
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from cluster.process_group import NodeAddressConfig
    from cluster.worker import work

    config, watch = job.cluster, Watch()
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": _with_micro_batch(job).model_dump(mode="json")},
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=config.gpus_per_worker > 0, resources_per_worker=config.resources
        ),
        torch_config=NodeAddressConfig(timeout_s=int(config.timeout_s)),
        run_config=RunConfig(
            name=f"{job.recipe.name}.ray",
            storage_path=str(job.recipe.folder),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )

    def check() -> None:
        watch.check()
        growth.check()

    try:
        beside_main(trainer.fit, check)
    except (TrainingFailedError, RayError) as error:  # RayError: Train's controller itself was lost
        await_answer()
        return failure_of(error, ray.nodes())
    return None


def _with_micro_batch(job: Job) -> Job:
    """Fewer workers than a job may have take more micro-batches in a step, none of more samples than with all of them:
    what fits in memory then fits now.
    """
    recipe = job.recipe
    if recipe.train.micro_batch or job.cluster.least == job.cluster.most:
        return job
    micro, _ = shares(recipe, job.cluster.most)
    train = recipe.train.model_copy(update={"micro_batch": micro})
    return job.model_copy(update={"recipe": recipe.model_copy(update={"train": train})})
