"""What the keys of `cluster` do that no other test of this folder shows."""

from functools import partial
from types import SimpleNamespace

import pytest

from cluster.session import set_environment
from tests.cluster.test_train import job

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.slow]

set_environment()  # before Ray is imported


@pytest.mark.parametrize("stage", [0, 3])
def test_zero_stage_reaches_the_engine(recipe_values, monkeypatch, stage):
    import torch

    from cluster import worker

    made: list[partial] = []
    context = SimpleNamespace(get_world_rank=lambda: 1, get_world_size=lambda: 2)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(worker, "fit", lambda recipe, slot, make_engine, report, watch: made.append(make_engine))
    worker.work({"job": job(recipe_values, zero_stage=stage).model_dump(mode="json")})
    assert made[0].keywords == {"kind": "deepspeed", "zero_stage": stage, "device": torch.device("cpu")}
