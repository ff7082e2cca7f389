"""What each Ray Train worker runs: a Job becomes a slot, a DeepSpeed engine, and xfer's own fit."""

import time
from functools import partial
from typing import Any

import ray.train
import ray.train.torch

from cluster.config import Job
from cluster.failure import is_lost_peer, note_place
from cluster.gauges import Gauges
from shards.loading.batch import Slot
from xfer.engine import build_engine
from xfer.measure import measure_of
from xfer.run import fit
from xfer.train import Row

NOTICE_S = 40.0
"""How long a rank that lost another holds its tongue: Ray notices the death of a process within 2 seconds and that of a
host within 30, ends this rank, and reports the death, which is the cause.
"""


def work(config: dict[str, Any]) -> None:
    """`config`: {"job": the job as plain values}."""
    job = Job.model_validate(config["job"])
    context = ray.train.get_context()
    slot = Slot(context.get_world_rank(), context.get_world_size())

    device = ray.train.torch.get_device()
    make_engine = partial(build_engine, kind="deepspeed", zero_stage=job.cluster.zero_stage, device=device)
    try:
        fit(job.recipe, slot, make_engine, report, Gauges(job.recipe.name, slot.rank).show)
    except Exception as error:
        note_place(error)
        if slot.world_size > 1 and is_lost_peer(error):
            time.sleep(NOTICE_S)
        raise


def report(row: Row) -> None:
    """Hands evaluations to Ray. Ray's report waits for its controller's next look, up to 2 s: too dear for every row.

    All rows are in the run folder's metrics.jsonl, which is what this project reads.
    """
    if measure_of(row):
        ray.train.report(row)
