"""A job, and the order for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.config import Job
from cluster.jobs import Order
from cluster.manifest.needs import needs


@pytest.fixture
def job(recipe_values: dict[str, Any]) -> Job:
    recipe_values["data"]["workers"] = 3
    cluster = {"workers": 4, "cpus_per_worker": 1.5, "gpus_per_worker": 0.5, "max_failures": 3}
    return Job.model_validate({"recipe": recipe_values, "cluster": cluster})


@pytest.fixture
def order(job: Job) -> Order:
    recipe = job.recipe
    paths = {"data.root": str(recipe.data.root), "output": recipe.output}
    return Order("train", recipe.name, json.dumps(job.model_dump(mode="json"), indent=1), Path(recipe.folder), paths)


@pytest.fixture
def sized(order: Order, job: Job):
    return needs(order, job, nodes=2, memory_gib=6, hours=1.5)
