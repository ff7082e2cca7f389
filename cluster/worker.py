"""What each Ray Train worker runs: a Job becomes a slot, a DeepSpeed engine, and xfer's own fit."""

from typing import Any

import ray.train
import ray.train.torch

from cluster.config import Job
from shards.loading.batch import Slot
from xfer.config import Recipe
from xfer.engine import DeepSpeedEngine, Engine, build_optimizer
from xfer.model import FusionModel
from xfer.run import fit, shares
from xfer.train import Row


def work(config: dict[str, Any]) -> None:
    """`config`: {"job": the job as plain values}."""
    job = Job.model_validate(config["job"])
    context = ray.train.get_context()
    slot = Slot(context.get_world_rank(), context.get_world_size())

    def make_engine(model: FusionModel, recipe: Recipe, slot: Slot) -> Engine:
        t = recipe.train
        device = ray.train.torch.get_device()
        optimizer = build_optimizer(model.to(device), t.optimizer, t.learning_rate, t.momentum, t.weight_decay)
        micro, accumulation = shares(recipe, slot.world_size)
        stage = job.cluster.zero_stage
        return DeepSpeedEngine(model, optimizer, stage, accumulation, micro, t.precision, t.clip_norm, device)

    fit(job.recipe, slot, make_engine, report)


def report(row: Row) -> None:
    """Hands evaluations to Ray. Ray's report waits for its controller's next look, up to 2 s: too dear for every row.

    All rows are in the run folder's metrics.jsonl, which is what this project reads.
    """
    if "accuracy" in row:
        ray.train.report(row)
