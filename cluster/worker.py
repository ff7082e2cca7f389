"""What each Ray Train worker runs: a Job becomes a slot, a DeepSpeed engine, and xfer's own fit."""

from functools import partial
from typing import Any

import ray.train
import ray.train.torch

from cluster.config import Job
from shards.loading.batch import Slot
from xfer.engine import build_engine
from xfer.run import fit
from xfer.train import Row


def work(config: dict[str, Any]) -> None:
    """`config`: {"job": the job as plain values}."""
    job = Job.model_validate(config["job"])
    context = ray.train.get_context()
    slot = Slot(context.get_world_rank(), context.get_world_size())

    device = ray.train.torch.get_device()
    make_engine = partial(build_engine, kind="deepspeed", zero_stage=job.cluster.zero_stage, device=device)
    fit(job.recipe, slot, make_engine, report)


def report(row: Row) -> None:
    """Hands evaluations to Ray. Ray's report waits for its controller's next look, up to 2 s: too dear for every row.

    All rows are in the run folder's metrics.jsonl, which is what this project reads.
    """
    if "accuracy" in row:
        ray.train.report(row)
