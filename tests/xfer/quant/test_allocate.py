import itertools

import numpy as np
import pytest

from xfer.quant import best_within, front
from xfer.quant.allocate import by_group


def _tables(num_items, widths, seed=0):
    draw = np.random.default_rng(seed)
    losses = {f"g{i}": {w: float(draw.random() * 2.0**-w) for w in widths} for i in range(num_items)}
    sizes = {name: {w: w * int(draw.integers(1, 9)) for w in widths} for name in losses}
    return losses, sizes


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_the_one_that_enumeration_finds(seed):
    widths = (2, 4, 8)
    losses, sizes = _tables(6, widths, seed)
    every = []
    for choice in itertools.product(widths, repeat=6):
        picked = list(zip(losses, choice, strict=True))
        every.append((sum(sizes[n][w] for n, w in picked), sum(losses[n][w] for n, w in picked)))
    points = front(losses, sizes)
    for size in sorted({size for size, _ in every}):
        least = min(loss for other, loss in every if other <= size)
        assert best_within(points, size).loss == pytest.approx(least)
    for point in points:
        assert point.size_bytes == sum(sizes[name][width] for name, width in point.bits.items())
        assert point.loss == pytest.approx(sum(losses[name][width] for name, width in point.bits.items()))
    assert [p.size_bytes for p in points] == sorted(p.size_bytes for p in points)


def test_rounding_sizes_up_never_breaks_the_budget_and_loses_little():
    losses, sizes = _tables(30, range(2, 9))
    points, coarse = front(losses, sizes), front(losses, sizes, resolution_bytes=4)
    budget = sum(row[4] for row in sizes.values())
    exact, near = best_within(points, budget), best_within(coarse, budget)
    assert near.size_bytes <= budget
    assert exact.loss <= near.loss <= 1.2 * exact.loss


def test_candidates_that_cannot_be_are_dropped():
    points = front({"a": {2: float("nan"), 4: 1.0}, "b": {2: 2.0, 32: 0.0}}, {"a": {2: 1, 4: 2}, "b": {2: 1}})
    assert [point.bits for point in points] == [{"a": 4, "b": 2}]
    with pytest.raises(ValueError, match="a: no width"):
        front({"a": {2: float("inf")}}, {"a": {2: 1}})
    with pytest.raises(ValueError, match="the smallest takes 3"):
        best_within(points, 2)


def test_groups_add_up_over_the_widths_that_all_layers_have():
    table = {"a": {2: 1.0, 4: 0.5}, "b": {2: 3.0, 4: 1.0}, "c": {4: 9.0}}
    assert by_group(table, {"x": ["a", "b"], "y": ["c", "a"]}) == {"x": {2: 4.0, 4: 1.5}, "y": {4: 9.5}}
