"""data.balance: rare classes of a source come more often, and nothing else of the order changes."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest

from shards.ingest.build import build
from shards.inspect.plan.expected import open_expected
from shards.inspect.plan.numbers import World, plan_data
from shards.inspect.plan.survey import Run
from shards.inspect.plan.text import plan_lines
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.state import StreamState, build_order, make_plan
from shards.loading.train import train_stream
from shards.settings import ConfigError
from shards.sources import SourceOptions
from tests.shards.images import config, image_folder
from tests.shards.sources.test_coco import coco

SIZES = {"a": {"cat": 40, "dog": 12, "owl": 4}, "b": {"cat": 6, "owl": 30}}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Two sources whose classes differ in size, in several shards each."""
    tmp = tmp_path_factory.mktemp("zoo")
    for seed, (name, sizes) in enumerate(SIZES.items()):
        for label, (kind, count) in enumerate(sizes.items()):
            image_folder(tmp / "raw" / name, (kind,), count, 10 * seed + label)
        build(tmp / "raw" / name, tmp / "shards" / name, shard_mb=0.015, processes=1)
    return tmp


def run(settings, steps, state=None, slot=None):
    """(position, source, target, image) of each sample delivered, and the state after it."""
    with train_stream(open_data(settings).train, settings, slot or Slot(), state) as stream:
        rows = []
        for batch in itertools.islice(stream, steps):
            pixels = [image.numpy().tobytes() for image in batch.images]
            rows += zip(batch.positions.tolist(), batch.sources.tolist(), batch.targets.tolist(), pixels, strict=True)
        return sorted(rows), stream.state()


def balanced(zoo, balance=1.0, **values):
    return config(zoo, "a", "b", validation=0, augment={"scale": [1, 1], "flip": 0}, balance=balance, **values)


@pytest.mark.parametrize("balance", [0.5, 1.0])
def test_a_class_has_its_share_of_its_source_and_sources_keep_theirs(zoo, balance):
    settings = balanced(zoo, balance)
    data = open_data(settings)
    plain = build_order(data.train, settings.model_copy(update={"balance": 0.0})).locate(np.arange(1200))
    rows, _ = run(settings, 100)
    assert [source for _, source, _, _ in rows] == plain.source.tolist()
    for source, (_, sizes) in enumerate(sorted(SIZES.items())):
        found = Counter(data.classes[target] for _, one, target, _ in rows if one == source)
        total, weights = sum(found.values()), {name: n ** (1 - balance) for name, n in sizes.items()}
        for name, weight in weights.items():
            assert abs(found[name] - total * weight / sum(weights.values())) <= 2


def test_no_sample_of_a_class_comes_twice_before_all_of_them_came_once(zoo):
    settings = balanced(zoo)
    data = open_data(settings)
    at = build_order(data.train, settings).locate(np.arange(1200))
    for source, subset in enumerate(data.train):
        of = at.source == source
        places, labels = subset.kept_starts[at.shard[of]] + at.row[of], subset.labels()
        for label in set(labels.tolist()):
            one, epoch = places[labels[places] == label], at.epoch[of][labels[places] == label]
            n = int((labels == label).sum())
            assert epoch.tolist() == [number // n for number in range(len(one))]
            epochs = [tuple(one[start : start + n].tolist()) for start in range(0, len(one) - n + 1, n)]
            assert all(set(each) == set(np.flatnonzero(labels == label)) for each in epochs)
            assert len(set(epochs)) > 1, "another order in each"


def test_ranks_share_the_one_order_and_a_run_goes_on_where_it_was_with_a_state_no_larger(zoo):
    settings = balanced(zoo)
    whole, state = run(settings, 12)
    by_rank = [run(settings, 12, slot=Slot(rank, 3))[0] for rank in range(3)]
    assert sorted(itertools.chain(*by_rank)) == whole
    _, middle = run(settings, 5, slot=Slot(0, 2))
    assert set(middle.counts) == {"a", "b"}
    again, _ = run(settings, 7, StreamState(**json.loads(json.dumps(middle.to_json()))))
    assert again == whole[60:]
    assert len(json.dumps(state.to_json())) < len(json.dumps(run(balanced(zoo, 0), 12)[1].to_json())) + 20


def test_the_order_of_classes_is_that_of_their_names(zoo):
    settings = balanced(zoo)
    data = open_data(settings)
    other = [subset.numbered(data.classes[::-1]) for subset in data.train]
    one, two = (build_order(subsets, settings).locate(np.arange(200)) for subsets in (data.train, other))
    assert (one.shard == two.shard).all()
    assert (one.row == two.row).all()


def test_without_it_the_plan_is_that_of_runs_from_before_and_a_change_is_named(zoo):
    settings = balanced(zoo, 0)
    assert "balance" not in make_plan(open_data(settings).train, settings)
    _, state = run(settings, 2)
    with pytest.raises(ConfigError, match=r"data\.balance: is new"):
        run(balanced(zoo, 0.5), 1, state)
    _, state = run(balanced(zoo, 0.5), 2)
    with pytest.raises(ConfigError, match=r"data\.balance: was 0.5, is now 0.7"):
        run(balanced(zoo, 0.7), 1, state)
    rows, _ = run(balanced(zoo, 0.7, on_change="continue"), 1, state)
    assert [position for position, *_ in rows] == list(range(24, 36))


def test_a_part_of_a_source_is_balanced_within_itself(zoo):
    sources = {"a": {"path": "a", "where": {"hash": [0, 0.7], "classes": ["cat", "dog"]}}}
    settings = config(zoo, sources=sources, validation=0.2, balance=1)
    data = open_data(settings)
    (subset,) = data.train
    at = build_order(data.train, settings).locate(np.arange(400))
    places = np.array([subset.kept_starts[shard] + row for shard, row in zip(at.shard, at.row, strict=True)])
    assert set(places.tolist()) == set(range(subset.num_samples))
    assert np.bincount(subset.labels()[places]).tolist() == [200, 200]


def test_samples_without_a_class_are_refused(tmp_path):
    build(coco(tmp_path), tmp_path / "shards" / "boxes", SourceOptions(images=tmp_path / "val"), processes=1)
    settings = config(tmp_path, "boxes", validation=0, balance=0.5)
    with pytest.raises(ConfigError, match=r"data\.balance: must be 0 with boxes, of whose 3 samples 3 have"):
        train_stream(open_data(settings).train, settings, Slot())


def test_a_plan_of_the_data_says_what_it_leaves_out(zoo):
    settings = balanced(zoo, 0.5)
    sources, _ = open_expected(settings)
    text = "\n".join(plan_lines(plan_data(sources, settings, Run(12, 20), World(1, 1))))
    assert "data.balance 0.5: a class of n samples has the share n^0.5" in text
    assert "data.balance" not in "\n".join(plan_lines(plan_data(sources, balanced(zoo, 0), Run(12, 20), World(1, 1))))
