"""A Study: a concrete job, the space searched around it, and how long to search."""

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.config import Job
from shards.settings import Strict
from xfer.model_config import Name

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # strict: true is no number
Whole = Annotated[int, Field(strict=True)]
KINDS = ("choice", "uniform", "log_uniform", "integer", "simplex")


class Distribution(Strict):
    """Where one value is drawn from: exactly one of the keys is given."""

    choice: list[Any] | None = Field(default=None, min_length=1)
    uniform: tuple[Number, Number] | None = None
    log_uniform: tuple[Number, Number] | None = None
    integer: tuple[Whole, Whole] | None = None  # both ends included
    simplex: list[str] | None = Field(default=None, min_length=2)  # names whose weights are >= 0 and sum to 1

    @model_validator(mode="after")
    def _one_kind(self) -> "Distribution":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}, not {', '.join(given) or 'none'}")
        if self.ends and not self.ends[0] < self.ends[1]:
            raise ValueError(f"{given[0]}: the lower end comes first, got {list(self.ends)}")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform: both ends must be above 0, got {list(self.log_uniform)}")
        options = [json.dumps(option, sort_keys=True, default=str) for option in self.choice or self.simplex or []]
        twice = sorted({option for option in options if options.count(option) > 1})
        if twice:
            raise ValueError(f"{given[0]}: {', '.join(twice)} given twice")
        return self

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends of a range; None for a choice or a simplex."""
        return self.uniform or self.log_uniform or self.integer


class SearchConfig(Strict):
    """The search itself. A trial is one process, and takes what the job's `cluster` says for one worker."""

    trials: int = Field(default=24, ge=1)
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    seed: int = 0
    concurrent: int | None = Field(default=None, ge=1)  # trials at once; none: as many as the cluster has room for
    images: int = Field(default=512, ge=1)  # of the validation split, scored in each trial
    tolerance: float = Field(default=0.01, ge=0, lt=1)  # best.yaml: the smallest model within this of the best accuracy


class Study(Strict):
    """A job, inline or as the path of its own YAML, and what is varied around it.

    Keys of `space` are dotted paths into the job. A space of `model.fusion.weights` and `quantize...` is searched on
    one trained run, in seconds a trial; any other path makes each trial train for itself.
    """

    name: Name = "study"
    job: Job = Field(json_schema_extra={"document": True})
    space: dict[str, Distribution] = Field(min_length=1)
    search: SearchConfig = SearchConfig()
