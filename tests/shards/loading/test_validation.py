"""What `data.validation` holds out: a fraction of every source, whole sources, or every source in turn."""

import numpy as np
import pytest

from shards.config import DataConfig
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.train import train_stream
from shards.settings import ConfigError, replace


@pytest.fixture
def config(shards_root) -> DataConfig:
    sources = {name: {"path": name} for name in ("paint", "outline", "neon")}
    return DataConfig.model_validate({"root": str(shards_root), "sources": sources, "image_size": 16, "workers": 0})


def test_a_fraction_cuts_every_source_and_the_parts_are_disjoint_and_complete(config):
    data = open_data(replace(config, {"validation": 0.25}))
    assert [s.name for s in data.train] == [s.name for s in data.validation] == ["neon", "outline", "paint"]
    for trained, held in zip(data.train, data.validation, strict=True):
        rows = np.concatenate([trained.rows, held.rows])
        assert sorted(rows) == list(range(trained.manifest.num_samples))
        assert 0 < held.num_samples < trained.num_samples


def test_sources_held_out_by_name_are_validated_on_whole_and_never_trained_on(config):
    config = replace(config, {"validation": ["paint"], "batch_size": 30})
    data = open_data(config)
    assert [s.name for s in data.train] == ["neon", "outline"]
    assert [(s.name, s.num_samples) for s in data.validation] == [("paint", 90)]
    with train_stream(data.train, config, Slot()) as stream:
        sources = np.concatenate([next(stream).sources.numpy() for _ in range(7)])  # one pass
    assert np.bincount(sources).tolist() == [120, 90]


def test_leave_one_source_out_trains_on_all_of_every_source(config):
    data = open_data(replace(config, {"validation": "leave_one_source_out"}))
    assert sum(s.num_samples for s in data.train) == 300
    assert data.validation == ()


def test_a_stage_may_name_a_source_that_is_held_out(config):
    stage = {"start": 60, "weights": {"paint": 1, "outline": 1}}
    config = replace(config, {"validation": ["paint"], "stages": [stage], "batch_size": 30})
    with train_stream(open_data(config).train, config, Slot()) as stream:
        later = [next(stream).sources for _ in range(4)][2:]
    assert {int(s) for sources in later for s in sources} == {1}  # outline alone


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (1.0, "must be a fraction from 0 to below 1, a list of source names, or leave_one_source_out, got 1.0"),
        (-0.1, "got -0.1"),
        (True, "got True"),
        ("leave_one_out", "got 'leave_one_out'"),
        ([], "got "),
        (["pain"], "no source is called pain; there are neon, outline, paint"),
        (["paint", "outline", "neon"], "none is left to train on"),
    ],
)
def test_anything_else_is_refused_in_one_message(config, given, message):
    with pytest.raises(ConfigError) as caught:
        replace(config, {"validation": given})
    assert message in str(caught.value)
    assert len(caught.value.faults) == 1


def test_one_source_cannot_be_left_out(config):
    with pytest.raises(ConfigError, match="needs two sources or more"):
        replace(config, {"sources": {"paint": {"path": "paint"}}, "validation": "leave_one_source_out"})
