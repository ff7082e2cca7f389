"""A Job: a Recipe and the machines it runs on."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from cluster.address import address_fault
from shards.faults import shown
from shards.settings import Strict
from xfer.config import Recipe


def _address(value: str) -> str:
    if fault := address_fault(value):
        raise ValueError(fault)
    return value


class Between(Strict):
    """As many workers as there is room for: at least `min`, at most `max`."""

    min: int = Field(default=1, ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> "Between":
        if self.min > self.max:
            raise ValueError(f"min: must be at most max, {self.max}, got {self.min}")
        return self


def _number(given: Any) -> Any:
    if not isinstance(given, int) or isinstance(given, bool):
        raise ValueError(
            f"must be a whole number, or at least and at most how many: {{min: 1, max: 4}}; got {shown(given)}"
        )
    return given


def _form(given: Any) -> str:
    return "<between>" if isinstance(given, dict | Between) else "<number>"


Workers = Annotated[
    Annotated[Between, Tag("<between>")] | Annotated[int, BeforeValidator(_number), Field(ge=1), Tag("<number>")],
    Discriminator(_form),
]


class ClusterConfig(Strict):
    """What one run takes of a Ray cluster."""

    address: Annotated[str, AfterValidator(_address)] | None = (
        None  # of a running cluster (host:port, or "auto"); none: Ray on this machine, loopback only
    )
    workers: Workers = 2  # Ray Train workers = ranks; {min: 1, max: 4}: as many as there is room for
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float = Field(default=0, ge=0)
    zero_stage: Literal[0, 1, 2, 3] = 1  # DeepSpeed: what is partitioned over the ranks
    max_failures: int = Field(default=2, ge=0)  # restarts from the last checkpoint before the run is given up
    timeout_s: float = Field(default=1800, gt=0)  # longest wait of one rank for the others
    wait_s: float = Field(default=900, ge=0)  # longest wait for others to leave room, or for a lost host to come back

    @property
    def most(self) -> int:
        """Workers, where there is room."""
        return self.workers.max if isinstance(self.workers, Between) else self.workers

    @property
    def least(self) -> int:
        """Workers, below which nothing is started."""
        return self.workers.min if isinstance(self.workers, Between) else self.workers

    @property
    def resources(self) -> dict[str, float]:
        """What Ray sets aside for one worker, by Ray's names: `{"CPU": 1.0}`, and "GPU" if the job asks for any."""
        gpus = {"GPU": self.gpus_per_worker} if self.gpus_per_worker else {}
        return {"CPU": self.cpus_per_worker, **gpus}


class Job(Strict):
    """A recipe, inline or as the path of its own YAML, and its machines."""

    recipe: Recipe = Field(json_schema_extra={"document": True})
    cluster: ClusterConfig = ClusterConfig()
