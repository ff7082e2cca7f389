"""Resume: a small state, a readable difference where the data changed, and weights that change mid-run."""

import itertools
import json

import numpy as np
import pytest

from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.state import StreamState, build_order
from shards.loading.train import train_stream
from shards.settings import ConfigError
from tests.shards.images import built, config


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Sources a (60 samples), b and c (30 each), d (30)."""
    tmp = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate("abcd"):
        built(tmp, name, 20 if name == "a" else 10, seed, shard_mb=0.015)
    return tmp


def run(settings, steps, state=None, slot=None):
    """(position, source, target) of each sample delivered, and the state after it."""
    with train_stream(open_data(settings).train, settings, slot or Slot(), state) as stream:
        batches = list(itertools.islice(stream, steps))
        parts = [zip(b.positions.tolist(), b.sources.tolist(), b.targets.tolist(), strict=True) for b in batches]
        return sorted(row for part in parts for row in part), stream.state()


def test_the_state_is_small_and_goes_through_json(zoo):
    settings = config(zoo, *"abcd")
    _, state = run(settings, 3)
    text = json.dumps(state.to_json())
    assert len(text) < 1024, "four sources"
    rest, _ = run(settings, 4, StreamState(**json.loads(text)))
    assert rest == run(settings, 7)[0][36:]


def test_a_difference_is_named(zoo):
    _, state = run(config(zoo, "a", "b"), 1)
    with pytest.raises(ConfigError) as caught:
        run(config(zoo, "a", "c", seed=1, window=8, augment={"flip": 0}), 1, state)
    faults = "\n".join(caught.value.faults)
    for line in (
        "data.seed: was 0, is now 1",
        "data.window: was 16, is now 8",
        "data.augment.flip: was 0.5, is now 0.0",
        "data.sources.b: is no longer there",
        "data.sources.c: is new",
    ):
        assert line in faults
    assert "on_change: continue" in str(caught.value)


def test_going_on_after_a_change_keeps_each_sources_place(zoo):
    """b has given 18 of its samples; with c in place of a it gives the others before it begins again."""
    first = config(
        zoo, "a", "b", sources={"a": {"path": "a", "weight": 1}, "b": {"path": "b", "weight": 1}}, validation=0
    )
    before, state = run(first, 3)
    sources = {"b": {"path": "b", "weight": 1}, "c": {"path": "c", "weight": 1}}
    second = config(zoo, "b", sources=sources, validation=0, on_change="continue")
    after, later = run(second, 2, state)
    assert later.origin == (36, {"a": 18, "b": 18})
    assert later.counts == {"b": 30, "c": 12}
    with train_stream(open_data(second).train, second, Slot(), later) as stream:
        assert stream.state() == later, "the change is remembered: nothing differs any more"
    assert len(before) == 36
    assert len(after) == 24


def test_stages_to_come_may_be_added_on_resume(zoo):
    plain = config(zoo, "a", "b", validation=0)
    _, state = run(plain, 2)
    sources = {"a": {"path": "a"}, "b": {"path": "b"}}
    staged = config(zoo, sources=sources, validation=0, stages=[{"start": 36, "weights": {"b": 1}}])
    rest, _ = run(staged, 3, state)
    assert rest == run(staged, 5)[0][24:], "as if they had been there from the start"
    assert {source for position, source, _ in rest if position >= 36} == {1}
    with pytest.raises(ConfigError, match="stages"):
        run(config(zoo, "a", "b", validation=0, stages=[{"start": 12, "weights": {"b": 1}}]), 1, state)


def test_the_same_folder_twice_is_read_in_two_orders(zoo):
    settings = config(zoo, sources={"one": {"path": "a"}, "two": {"path": "a"}}, validation=0)
    at = build_order(open_data(settings).train, settings).locate(np.arange(120))
    places = list(zip(at.shard.tolist(), at.row.tolist(), strict=True))
    one, two = ([place for place, s in zip(places, at.source, strict=True) if s == source] for source in (0, 1))
    assert sorted(one) == sorted(two)
    assert one != two


def test_parts_of_one_folder_by_hash_are_disjoint_and_complete(zoo):
    sources = {"low": {"path": "a", "where": {"hash": [0, 0.4]}}, "high": {"path": "a", "where": {"hash": [0.4, 1]}}}
    low, high = sorted(open_data(config(zoo, sources=sources, validation=0)).train, key=lambda v: v.name != "low")
    assert sorted([*low.rows, *high.rows]) == list(range(60))
    assert (low.shard_samples + high.shard_samples).tolist() == [s.samples for s in low.manifest.shards]


def test_a_part_may_be_tested_on_if_it_is_not_trained_on(zoo):
    sources = {"a": {"path": "a", "where": {"hash": [0, 0.8]}}}
    data = open_data(config(zoo, sources=sources, test={"t": {"path": "a", "where": {"hash": [0.8, 1]}}}))
    assert data.test[0].num_samples > 0
    with pytest.raises(ConfigError, match=r"samples of .* are also in sources\.a"):
        open_data(config(zoo, sources=sources, test={"t": {"path": "a", "where": {"hash": [0.7, 1]}}}))


def test_parts_by_class_have_classes_of_their_own(zoo):
    sources = {"a": {"path": "a", "where": {"classes": ["owl", "cat"]}}, "b": {"path": "b"}}
    settings = config(zoo, sources=sources, validation=0)
    data = open_data(settings)
    subset, _ = data.train
    assert subset.classes == ("cat", "owl")
    assert data.classes == ("cat", "dog", "owl")
    assert sorted(subset.labels().tolist()) == [0] * 20 + [2] * 20
    targets = {target for _, source, target in run(settings, 8)[0] if source == 0}
    assert targets == {0, 2}


@pytest.mark.parametrize(
    ("where", "message"),
    [({"classes": ["cow"]}, "cow not in .*; it has cat, dog, owl"), ({"hash": [0, 1e-9]}, "none of .* 60 samples")],
)
def test_a_part_that_is_nothing_is_refused(zoo, where, message):
    with pytest.raises(ConfigError, match=message):
        open_data(config(zoo, sources={"a": {"path": "a", "where": where}}))


def test_batches_of_one_source_each(zoo):
    settings = config(zoo, "a", "b", unit="batch", validation=0)
    rows, _ = run(settings, 32)
    by_batch = [{source for _, source, _ in rows[start : start + 12]} for start in range(0, len(rows), 12)]
    assert all(len(sources) == 1 for sources in by_batch)
    assert sum(sources == {1} for sources in by_batch) in (10, 11), "32 batches, b has a third of the samples"


def test_temperature_makes_sources_alike(zoo):
    sources = [source for _, source, _ in run(config(zoo, "a", "b", temperature=1e9, validation=0), 10)[0]]
    assert sources.count(0) == sources.count(1) == 60
