"""A search over three hosts of one CPU each: all of them work."""

import sys
from collections import Counter

import pytest

from shards.loading.batch import Slot
from shards.settings import dump
from tests.hosts import Hosts
from tuning.config import Study
from tuning.record import read_rows
from xfer import run as one_process
from xfer.begin import begin
from xfer.config import Recipe
from xfer.engine import build_engine

pytestmark = [pytest.mark.hosts, pytest.mark.ray, pytest.mark.slow]


def test_short_trials_are_spread_over_all_hosts(recipe_values, tmp_path):
    recipe = Recipe.model_validate(recipe_values)
    begin(recipe)
    one_process.fit(recipe, Slot(), build_engine, lambda row: None)
    path = tmp_path / "study.yaml"
    with Hosts(3) as hosts:
        hosts.start_cluster([1, 1, 1])
        study = {
            "name": "search",
            "job": {"recipe": recipe_values, "cluster": {"address": hosts.head}},
            "space": {"model.fusion.weights": {"simplex": ["fine", "coarse"]}},
            "search": {"trials": 30, "images": 24},
        }
        path.write_text(dump(Study.model_validate(study)))
        command = hosts.start(0, [sys.executable, "-m", "xfer", "tune", str(path)])
        _, errors = command.communicate(timeout=240)
    assert command.returncode == 0, errors
    rows = [row for row in read_rows(tmp_path / "runs" / "search") if not row.baseline]
    assert [row.error for row in rows] == [None] * 30
    shares = Counter(row.host for row in rows)
    assert set(shares) == {"h0", "h1", "h2"}
    assert min(shares.values()) >= 4
