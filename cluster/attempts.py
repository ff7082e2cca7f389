"""The workers are started, and started again if they are lost: each restart is said, with its cause."""

import sys

from cluster.capacity import await_return
from cluster.config import Job
from cluster.failure import Failure, failure_of
from cluster.outage import Watch, await_answer
from cluster.session import beside_main
from shards.settings import ConfigError
from xfer.checkpoint import latest_checkpoint


def attempt(job: Job) -> Failure | None:
    """Starts the workers until they are done, at most `max_failures` times again. Inside a Ray session.

    What would come again is not tried again. Raises ConfigError if the user's job or files are at fault, and
    ClusterGoneError if the cluster does not answer any more.
    """
    attempts = job.cluster.max_failures + 1
    for number in range(1, attempts + 1):
        failure = _attempt(job)
        if failure is None:
            return None
        if failure.faults:
            raise ConfigError(failure.faults)
        if failure.comes_again or number == attempts:
            return failure
        checkpoint = latest_checkpoint(job.recipe.folder / "checkpoints")
        where = f"from step {checkpoint.state.step}" if checkpoint else "from the beginning: nothing was saved yet"
        print(f"{failure.message}\nrestart: attempt {number + 1} of {attempts}, {where}", file=sys.stderr)
        gone = await_return(job.cluster)
        if gone:
            return Failure(f"{failure.message}\n{gone}")
    raise AssertionError("unreachable")


def _attempt(job: Job) -> Failure | None:
    """One start of all workers. Ray Train would restart them too, but silently, and whatever the cause."""
    import ray
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from cluster.process_group import NodeAddressConfig
    from cluster.worker import work

    config = job.cluster
    trainer = TorchTrainer(
        work,
        train_loop_config={"job": job.model_dump(mode="json")},
        scaling_config=ScalingConfig(
            num_workers=config.workers, use_gpu=config.gpus_per_worker > 0, resources_per_worker=config.resources
        ),
        torch_config=NodeAddressConfig(timeout_s=int(config.timeout_s)),
        run_config=RunConfig(
            name=f"{job.recipe.name}.ray",
            storage_path=str(job.recipe.folder),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
        ),
    )
    try:
        beside_main(trainer.fit, Watch().check)
    except (TrainingFailedError, RayError) as error:  # RayError: Train's controller itself was lost
        await_answer()
        return failure_of(error, ray.nodes())
    return None
