"""A Job: a Recipe and the machines it runs on."""

from typing import Literal

from pydantic import Field

from shards.settings import Strict
from xfer.config import Recipe


class ClusterConfig(Strict):
    """What one run takes of a Ray cluster."""

    address: str | None = None  # of a running cluster (host:port, or "auto"); none: Ray on this machine, loopback only
    workers: int = Field(default=2, ge=1)  # Ray Train workers = ranks
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    zero_stage: Literal[0, 1, 2, 3] = 1  # DeepSpeed: what is partitioned over the ranks
    max_failures: int = Field(default=2, ge=0)  # restarts from the last checkpoint before the run is given up
    timeout_s: float = Field(default=1800, gt=0)  # longest wait of one rank for the others

    @property
    def resources(self) -> dict[str, float]:
        """What Ray sets aside for one worker, by Ray's names: `{"CPU": 1.0}`, and "GPU" if the job asks for any."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker, **gpus}


class Job(Strict):
    """A recipe, inline or as the path of its own YAML, and its machines."""

    recipe: Recipe = Field(json_schema_extra={"document": True})
    cluster: ClusterConfig = ClusterConfig()
