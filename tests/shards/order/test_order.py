"""What the order guarantees, for any shapes: permutation, exact blend, no trace of the world, resume anywhere."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.format.hashing import fold, key, name_key, permutation, shuffled
from shards.order.blend import Blend, Stage, integer_weights, tempered
from shards.order.order import Classes, Order, rank_share

rows = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)
sources = st.lists(st.tuples(rows, st.sampled_from([0.1, 0.5, 1.0, 2.5, 7, 40])), min_size=1, max_size=4)
quick = settings(max_examples=40, deadline=None)
parameters = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "block": st.integers(1, 60),
        "lanes": st.integers(1, 9),
        "window": st.integers(1, 40),
    }
)


def blend(shapes, params) -> Order:
    names = {f"s{i}": shape for i, shape in enumerate(shapes)}
    first = Stage(0, {name: weight for name, (_, weight) in names.items()})
    return Order({name: rows for name, (rows, _) in names.items()}, [first], **params)


def places(located) -> list[tuple[int, ...]]:
    return list(
        zip(*(part.tolist() for part in (located.source, located.epoch, located.shard, located.row)), strict=True)
    )


@quick
@given(rows, parameters)
def test_every_epoch_is_a_permutation(shape, params):
    n = sum(shape)
    located = blend([(shape, 1)], params).locate(np.arange(3 * n))
    expected = sorted((shard, row) for shard, count in enumerate(shape) for row in range(count))
    for epoch in range(3):
        of = slice(epoch * n, (epoch + 1) * n)
        assert set(located.epoch[of]) == {epoch}
        assert sorted(zip(located.shard[of].tolist(), located.row[of].tolist(), strict=True)) == expected


@quick
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=6), parameters)
def test_with_weights_of_classes_each_of_them_has_epochs_of_its_own_and_its_share(labels, params):
    """`labels`: of the samples of each shard."""
    present = sorted({label for shard in labels for label in shard})
    weights = {f"c{label}": float(1 + label) for label in present}
    shapes = np.array([[shard.count(label) for shard in labels] for label in present], np.int64)
    classes = Classes(weights, shapes, lambda shard: np.argsort(np.array(labels[shard]), kind="stable"))
    shape = [len(shard) for shard in labels]
    plain, given_, n = [(shape, 1), ([3], 1)], {"s0": classes}, 300
    names = {f"s{i}": shape for i, (shape, _) in enumerate(plain)}
    at = Order(names, [Stage(0, dict.fromkeys(names, 1))], **params, classes=given_).locate(np.arange(n))
    before = blend(plain, params).locate(np.arange(n))
    assert (at.source == before.source).all()
    other = at.source == 1
    assert [places(at.take(np.flatnonzero(other)))] == [places(before.take(np.flatnonzero(other)))]
    found = [(labels[s][r], e, (s, r)) for _, e, s, r in places(at.take(np.flatnonzero(~other)))]
    for label in present:
        mine = [(epoch, place) for one, epoch, place in found if one == label]
        size = sum(shard.count(label) for shard in labels)
        assert [epoch for epoch, _ in mine] == [number // size for number in range(len(mine))]
        assert len(set(mine)) == len(mine)
        whole = len(found) // params["block"] * params["block"]
        share = sum(one == label for one, *_ in found[:whole])
        assert abs(share - whole * weights[f"c{label}"] / sum(weights.values())) < bound(len(present))


@quick
@given(sources, parameters)
def test_no_source_repeats_before_its_epoch_ends(shapes, params):
    located = blend(shapes, params).locate(np.arange(400))
    seen = places(located)
    assert len(set(seen)) == len(seen)
    for source in range(len(shapes)):
        epochs = located.epoch[located.source == source]
        assert (np.diff(epochs) >= 0).all(), "an epoch begins only when the last one is over"
        assert all(np.bincount(epochs)[:-1] == sum(shapes[source][0])) if len(epochs) else True


def bound(count: int) -> int:
    """What the module promises: one sample for each halving of the list of sources."""
    return max(1, (count - 1).bit_length())


@quick
@given(sources, parameters, st.integers(0, 40))
def test_the_blend_is_exact_at_every_block(shapes, params, blocks):
    order = blend(shapes, params)
    n = blocks * params["block"]
    counts = np.bincount(order.locate(np.arange(n)).source, minlength=len(shapes)) if n else np.zeros(len(shapes))
    exact = n * np.array([w for _, w in shapes]) / sum(w for _, w in shapes)
    assert np.abs(counts - exact).max() < bound(len(shapes))
    assert (order.blend.counts(n) == counts).all()


@quick
@given(st.integers(1, 1000), st.integers(0, 10**12), st.integers(0, 2**32))
def test_the_blend_is_exact_for_up_to_a_thousand_sources_at_any_position(count, block, seed):
    weights = np.random.default_rng(seed).integers(1, 1000, count)
    names = [f"{i:04d}" for i in range(count)]
    mix = Blend(names, [Stage(0, dict(zip(names, weights.tolist(), strict=True)))], seed=1, block=64)
    found = mix.counts(64 * block)
    total = int(weights.sum())
    exact = [64 * block * int(w) / total for w in weights]
    assert found.sum() == 64 * block
    assert np.abs(found - exact).max() < bound(count) + 1e-3  # float64 of 10^13 samples


@quick
@given(sources, parameters, st.integers(1, 40), st.integers(1, 7), st.integers(0, 10**12))
def test_the_world_only_divides_a_batch(shapes, params, batch, world, start):
    order = blend(shapes, params)
    whole, _ = order.batch(start, batch)
    shares = [order.batch(start, batch, rank, world) for rank in range(world)]
    assert sorted(np.concatenate([positions for positions, _ in shares])) == sorted(whole)
    sizes = [len(positions) for positions, _ in shares]
    assert max(sizes) - min(sizes) <= 1
    together = [place for _, located in shares for place in places(located)]
    assert sorted(together) == sorted(places(order.locate(whole)))


@quick
@given(sources, parameters, st.integers(0, 300), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_resuming_anywhere_with_any_batch_size_changes_nothing(shapes, params, start, sizes):
    total = start + sum(sizes)
    expected = places(blend(shapes, params).locate(np.arange(total)))[start:]
    found = []
    for size in sizes:
        fresh = blend(shapes, params)
        positions, located = fresh.batch(start, size)
        found += [place for _, place in sorted(zip(positions.tolist(), places(located), strict=True))]
        start += size
    assert found == expected


@quick
@given(sources, parameters)
def test_positions_may_be_asked_for_in_any_order(shapes, params):
    order, shuffled = blend(shapes, params), permutation(200, params["seed"])
    straight = places(order.locate(np.arange(200)))
    assert places(order.locate(shuffled)) == [straight[i] for i in shuffled]


@quick
@given(rows, rows, parameters)
def test_adding_a_source_does_not_reshuffle_the_others(first, second, params):
    alone = Order({"b": first}, [Stage(0, {"b": 1})], **params).locate(np.arange(300))
    both = Order({"a": second, "b": first}, [Stage(0, {"a": 1, "b": 1})], **params).locate(np.arange(300))
    of_b = [place[1:] for place in places(both) if place[0] == 1]
    assert of_b == [place[1:] for place in places(alone)][: len(of_b)]


@quick
@given(sources, parameters, st.integers(0, 10**9))
def test_counts_are_those_of_the_samples_delivered(shapes, params, start):
    order = blend(shapes, params)
    source, count = order.blend.locate(np.arange(start, start + 100))
    for index, before, after in zip(
        range(len(shapes)), order.blend.counts(start), order.blend.counts(start + 100), strict=True
    ):
        assert count[source == index].tolist() == list(range(before, after))


changes = st.lists(st.tuples(st.integers(1, 90), st.lists(st.integers(0, 5), min_size=4, max_size=4)), max_size=4)


def staged(shapes, params, changes) -> Order:
    names = {f"s{i}": rows for i, (rows, _) in enumerate(shapes)}
    stages, start = [Stage(0, {f"s{i}": w for i, (_, w) in enumerate(shapes)})], 0
    for length, weights in changes:
        start += length
        weights = dict(zip(names, weights, strict=False))
        stages.append(Stage(start, weights if any(weights.values()) else dict.fromkeys(names, 1)))
    return Order(names, stages, **params)


@quick
@given(sources, parameters, changes)
def test_weights_may_change_and_no_source_loses_or_repeats_a_sample(shapes, params, changes):
    order = staged(shapes, params, changes)
    source, count = order.blend.locate(np.arange(500))
    for index in range(len(shapes)):
        assert count[source == index].tolist() == list(range((source == index).sum()))
    bounds = [*order.blend.starts.tolist(), 500]
    for stage, (start, end) in enumerate(itertools.pairwise(bounds)):
        weights = np.array(order.blend.weights[stage])
        share = weights / weights.sum()
        whole = (end - start) // params["block"] * params["block"] if end > start else 0
        found = np.bincount(source[start : start + whole], minlength=len(shapes))
        assert np.abs(found - whole * share).max() < bound(len(shapes))


@quick
@given(sources, parameters, changes, st.integers(0, 300))
def test_a_stage_to_come_changes_nothing_before_it(shapes, params, changes, start):
    before = places(staged(shapes, params, []).locate(np.arange(start)))
    later = staged(shapes, params, [(start + 1, [1, 2, 3, 4]), *changes])
    assert places(later.locate(np.arange(start))) == before


@quick
@given(sources, parameters, st.integers(1, 300))
def test_a_stage_can_go_on_from_counts_alone(shapes, params, start):
    """What `on_change: continue` relies on: position and counts are all there is to know about the past."""
    order = blend(shapes, params)
    base = dict(zip(order.names, order.blend.counts(start).tolist(), strict=True))
    rows = {name: rows for name, (rows, _) in zip(order.names, shapes, strict=True)}
    resumed = Order(rows, [Stage(start, dict.fromkeys(rows, 1), base)], **params)
    again = staged(shapes, params, [(start, [1] * 4)])
    after = np.arange(start, start + 100)
    assert places(resumed.locate(after)) == places(again.locate(after))


@quick
@given(sources, st.integers(1, 9), st.integers(1, 8), st.integers(0, 10**10))
def test_units_are_of_one_source_each(shapes, unit, units, start):
    params = {"seed": 3, "block": unit * units, "lanes": 4, "window": 8, "unit": unit}
    start = start // unit * unit
    order = blend(shapes, params)
    source, count = order.blend.locate(np.arange(start, start + 60 * unit))
    assert (source.reshape(60, unit) == source.reshape(60, unit)[:, :1]).all()
    for index, before in enumerate(order.blend.counts(start)):
        assert (count[source == index] == before + np.arange((source == index).sum())).all()


def test_a_unit_that_does_not_divide_its_block_is_refused():
    with pytest.raises(ValueError, match="block 10: expected a multiple of the unit, 4"):
        Blend(["a"], [Stage(0, {"a": 1})], 0, block=10, unit=4)


def test_temperature_and_tilt():
    sizes, flat = [10_000, 100], [0.0, 0.0]
    assert tempered(sizes, 1, 0, flat) == [1.0, 0.01], "by size"
    assert tempered(sizes, 2, 0, flat) == [1.0, 0.1]
    assert tempered(sizes, 1e9, 0, flat) == [1.0, 1.0], "all alike"
    assert tempered([5, 5], 1, 1.0, [0.0, 1.0]) == [0.367879, 1.0]


def test_weights_mean_the_decimals_written():
    assert integer_weights([0.1, 0.2]) == (1, 2)
    assert integer_weights([3, 1.5]) == (2, 1)


def test_far_positions_and_many_shards_do_not_overflow():
    shapes = {"a": np.full(10**6, 1000), "b": [1]}
    order = Order(shapes, [Stage(0, {"a": 1e-3, "b": 0.7})], seed=1, block=64, lanes=16, window=4096)
    located = order.locate(np.arange(10**12, 10**12 + 256))
    assert (located.row >= 0).all()
    assert (located.row < 1000).all()
    assert (located.shard >= 0).all()
    assert (located.lane < 16).all()
    assert (located.epoch >= 0).all()
    assert located.epoch[located.source == 1].min() > 9 * 10**11, "one sample: its epochs are its samples"


@quick
@given(parameters, st.integers(0, 2000))
def test_against_the_definition(params, start):
    """The order written out naively, sample by sample, from the module's own words."""
    shapes = [([5, 0, 9, 2], 3), ([7, 7], 1)]
    order = blend(shapes, params)
    located = order.locate(np.arange(start, start + 50))
    for at, p in enumerate(range(start, start + 50)):
        source, count = _naive_mix(p, order)
        assert (located.source[at], located.epoch[at]) == (source, count // sum(shapes[source][0]))
        place = _naive_source(shapes[source][0], count, order, source, params)
        assert (located.lane[at], located.shard[at], located.row[at]) == place


def _naive_mix(p, order):
    block, inside = divmod(p, order.blend.block)
    low, high = ([_naive_quotas(n * order.blend.block, order.blend.weights[0])] for n in (block, block + 1))
    low, high = low[0], high[0]
    listed = [s for s in range(len(low)) for _ in range(low[s], high[s])]
    shuffled = [listed[i] for i in permutation(order.blend.block, order.blend.seed, 1, block * order.blend.block)]
    return shuffled[inside], low[shuffled[inside]] + shuffled[:inside].count(shuffled[inside])


def _naive_quotas(n, weights):
    if len(weights) == 1:
        return [n]
    left = weights[: len(weights) // 2]
    share = n * sum(left) // sum(weights)
    return [*_naive_quotas(share, left), *_naive_quotas(n - share, weights[len(left) :])]


def _naive_source(shape, count, order, source, params):
    n, lanes, window, name = sum(shape), params["lanes"], params["window"], name_key(order.names[source])
    epoch, i = divmod(count, n)
    lane, m = i % lanes, i // lanes
    lengths = [n // lanes + (index < n % lanes) for index in range(lanes)]
    j, r = divmod(m, window)
    size = min(window, lengths[lane] - j * window)
    keys = np.array([key(params["seed"], name, epoch, lane, j)], np.uint64)
    x = sum(lengths[:lane]) + j * window + int(shuffled(np.array([r]), np.array([size]), keys)[0])
    listed = [(s, row) for s in permutation(len(shape), params["seed"], name, epoch) for row in range(shape[s])]
    return (lane, *listed[x])


@quick
@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_a_shuffle_without_a_table_is_a_permutation(n, seed):
    whole = shuffled(np.arange(n), np.full(n, n), np.full(n, seed, np.uint64))
    assert sorted(whole) == list(range(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_every_permutation_is_equally_likely(n):
    """Chi-square over all n! permutations, by 300 draws of each; its mean is 1 a degree of freedom."""
    draws = 300 * math.factorial(n)
    keys = fold(np.full(draws, key(11), np.uint64), np.arange(draws))
    found = np.stack([shuffled(np.full(draws, i), np.full(draws, n), keys) for i in range(n)])
    counts = np.unique(found, axis=1, return_counts=True)[1]
    freedom = math.factorial(n) - 1
    assert len(counts) == freedom + 1
    assert ((counts - 300) ** 2 / 300).sum() / freedom < 1 + 5 * math.sqrt(2 / freedom)


def test_a_shuffle_leaves_no_trace_of_the_order_before():
    n = 4096
    found = np.stack([shuffled(np.arange(n), np.full(n, n), np.full(n, key(s), np.uint64)) for s in range(100)])
    before, after = np.arange(n), found.astype(float)
    correlations = [np.corrcoef(before, row)[0, 1] for row in after] + [
        np.corrcoef(row[1:], row[:-1])[0, 1] for row in after
    ]
    assert np.abs(np.mean(correlations)) * math.sqrt(n) < 0.3
    assert np.std(correlations) * math.sqrt(n) == pytest.approx(1, abs=0.2)


def test_the_order_never_changes_between_versions():
    """Held values: a change here breaks every saved run, and must raise order.VERSION."""
    first, later = Stage(0, {"photo": 1.0, "sketch": 2.0}), Stage(4, {"photo": 1.0})
    order = Order({"photo": [4, 6], "sketch": [5]}, [first, later], seed=7, block=6, lanes=2, window=3)
    located = order.locate(np.arange(6))
    assert places(located) == HELD


HELD = [(1, 0, 0, 2), (1, 0, 0, 4), (1, 0, 0, 1), (0, 0, 1, 2), (0, 0, 1, 5), (0, 0, 1, 0)]


@quick
@given(st.lists(st.integers(0, 15), min_size=1, max_size=3000), st.integers(1, 1024))
def test_up_to_1024_ranks_divide_a_batch_evenly_and_completely(lanes, world):
    lane = np.array(lanes)
    shares = [rank_share(lane, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == list(range(len(lane)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_ranks_get_neighbouring_lanes():
    lane = np.array([3, 1, 0, 2, 1, 0, 3, 2])
    assert [lane[rank_share(lane, rank, 4)].tolist() for rank in range(4)] == [[0, 0], [1, 1], [2, 2], [3, 3]]
