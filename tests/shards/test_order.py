"""The laws of order, for any shapes: permutation, exact blend, no trace of the world, resume anywhere."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.order import Order, integer_weights, permutation, quotas, rank_share

rows = st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any)
sources = st.lists(st.tuples(rows, st.sampled_from([0.1, 0.5, 1.0, 2.5, 7, 40])), min_size=1, max_size=4)
quick = settings(max_examples=40, deadline=None)
laws = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "block": st.integers(1, 60),
        "lanes": st.integers(1, 9),
        "window": st.integers(1, 40),
    }
)


def blend(shapes, law) -> Order:
    return Order([(f"s{i}", r, w) for i, (r, w) in enumerate(shapes)], **law)


def places(located) -> list[tuple[int, ...]]:
    return list(
        zip(*(part.tolist() for part in (located.source, located.epoch, located.shard, located.row)), strict=True)
    )


@quick
@given(rows, laws)
def test_every_epoch_is_a_permutation(shape, law):
    n = sum(shape)
    located = blend([(shape, 1)], law).locate(np.arange(3 * n))
    expected = sorted((shard, row) for shard, count in enumerate(shape) for row in range(count))
    for epoch in range(3):
        of = slice(epoch * n, (epoch + 1) * n)
        assert set(located.epoch[of]) == {epoch}
        assert sorted(zip(located.shard[of].tolist(), located.row[of].tolist(), strict=True)) == expected


@quick
@given(sources, laws)
def test_no_source_repeats_before_its_epoch_ends(shapes, law):
    located = blend(shapes, law).locate(np.arange(400))
    seen = places(located)
    assert len(set(seen)) == len(seen)
    for source in range(len(shapes)):
        epochs = located.epoch[located.source == source]
        assert (np.diff(epochs) >= 0).all(), "an epoch begins only when the last one is over"
        assert all(np.bincount(epochs)[:-1] == sum(shapes[source][0])) if len(epochs) else True


@quick
@given(sources, laws, st.integers(0, 40))
def test_the_blend_is_exact_at_every_block(shapes, law, blocks):
    order = blend(shapes, law)
    n = blocks * law["block"]
    counts = np.bincount(order.locate(np.arange(n)).source, minlength=len(shapes)) if n else np.zeros(len(shapes))
    exact = n * np.array([w for _, w in shapes]) / sum(w for _, w in shapes)
    assert np.abs(counts - exact).max() < max(2, len(shapes))


@quick
@given(sources, laws, st.integers(1, 40), st.integers(1, 7), st.integers(0, 10**12))
def test_the_world_only_divides_a_batch(shapes, law, batch, world, start):
    order = blend(shapes, law)
    whole, _ = order.batch(start, batch)
    shares = [order.batch(start, batch, rank, world) for rank in range(world)]
    assert sorted(np.concatenate([positions for positions, _ in shares])) == sorted(whole)
    sizes = [len(positions) for positions, _ in shares]
    assert max(sizes) - min(sizes) <= 1
    together = [place for _, located in shares for place in places(located)]
    assert sorted(together) == sorted(places(order.locate(whole)))


@quick
@given(sources, laws, st.integers(0, 300), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_resuming_anywhere_with_any_batch_size_changes_nothing(shapes, law, start, sizes):
    total = start + sum(sizes)
    expected = places(blend(shapes, law).locate(np.arange(total)))[start:]
    found = []
    for size in sizes:
        fresh = blend(shapes, law)
        positions, located = fresh.batch(start, size)
        found += [place for _, place in sorted(zip(positions.tolist(), places(located), strict=True))]
        start += size
    assert found == expected


@quick
@given(sources, laws)
def test_positions_may_be_asked_for_in_any_order(shapes, law):
    order, shuffled = blend(shapes, law), permutation(200, law["seed"])
    straight = places(order.locate(np.arange(200)))
    assert places(order.locate(shuffled)) == [straight[i] for i in shuffled]


@quick
@given(rows, rows, laws)
def test_adding_a_source_does_not_reshuffle_the_others(first, second, law):
    alone = Order([("b", first, 1)], **law).locate(np.arange(300))
    both = Order([("a", second, 1), ("b", first, 1)], **law).locate(np.arange(300))
    of_b = [place[1:] for place in places(both) if place[0] == 1]
    assert of_b == [place[1:] for place in places(alone)][: len(of_b)]


@quick
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(0, 10**12))
def test_quotas_add_up_and_never_fall(weights, n):
    whole = integer_weights(weights)
    now, later = quotas(n, whole), quotas(n + 1, whole)
    assert sum(now) == n
    assert all(a <= b for a, b in zip(now, later, strict=True))
    assert sum(later) == n + 1


def test_weights_mean_the_decimals_written():
    assert integer_weights([0.1, 0.2]) == (1, 2)
    assert integer_weights([3, 1.5]) == (2, 1)


def test_far_positions_and_many_shards_do_not_overflow():
    shapes = [("a", np.full(10**6, 3), 1e-3), ("b", [1], 0.7)]
    order = Order(shapes, seed=1, block=64, lanes=16, window=4096)
    located = order.locate(np.arange(10**12, 10**12 + 256))
    assert (located.row >= 0).all()
    assert (located.row < 3).all()
    assert (located.shard >= 0).all()
    assert (located.lane < 16).all()
    assert (located.epoch >= 0).all()
    assert located.epoch[located.source == 1].min() > 9 * 10**11, "one sample: its epochs are its samples"


@quick
@given(laws, st.integers(0, 2000))
def test_against_the_definition(law, start):
    """The order written out naively, sample by sample, from the module's own words."""
    shapes = [([5, 0, 9, 2], 3), ([7, 7], 1)]
    order = blend(shapes, law)
    located = order.locate(np.arange(start, start + 50))
    for at, p in enumerate(range(start, start + 50)):
        source, count = _naive_mix(p, order)
        assert (located.source[at], located.epoch[at]) == (source, count // sum(shapes[source][0]))
        place = _naive_source(shapes[source][0], count, order, source, law)
        assert (located.lane[at], located.shard[at], located.row[at]) == place


def _naive_mix(p, order):
    block, inside = divmod(p, order.block)
    low, high = quotas(block * order.block, order.weights), quotas((block + 1) * order.block, order.weights)
    listed = [s for s in range(len(low)) for _ in range(low[s], high[s])]
    shuffled = [listed[i] for i in permutation(order.block, order.seed, 1, block)]
    return shuffled[inside], low[shuffled[inside]] + shuffled[:inside].count(shuffled[inside])


def _naive_source(shape, count, order, source, law):
    from shards.order import name_key

    n, lanes, window, name = sum(shape), law["lanes"], law["window"], name_key(order.names[source])
    epoch, i = divmod(count, n)
    lane, m = i % lanes, i // lanes
    lengths = [n // lanes + (index < n % lanes) for index in range(lanes)]
    j, r = divmod(m, window)
    size = min(window, lengths[lane] - j * window)
    x = sum(lengths[:lane]) + j * window + int(permutation(size, law["seed"], name, epoch, lane, j)[r])
    listed = [(s, row) for s in permutation(len(shape), law["seed"], name, epoch) for row in range(shape[s])]
    return (lane, *listed[x])


def test_the_order_never_changes_between_versions():
    """Held values: a change here breaks every saved run, and must raise order.VERSION."""
    order = Order([("photo", [4, 6], 1.0), ("sketch", [5], 2.0)], seed=7, block=6, lanes=2, window=3)
    located = order.locate(np.arange(6))
    assert places(located) == HELD


HELD = [(1, 0, 0, 1), (1, 0, 0, 4), (1, 0, 0, 2), (0, 0, 1, 2), (1, 0, 0, 3), (0, 0, 0, 1)]


def test_ranks_get_neighbouring_lanes():
    lane = np.array([3, 1, 0, 2, 1, 0, 3, 2])
    assert [lane[rank_share(lane, rank, 4)].tolist() for rank in range(4)] == [[0, 0], [1, 1], [2, 2], [3, 3]]
