"""Intervals: known values, and none of width zero."""

import numpy as np
import pytest

from xfer.metrics import Estimate, Score, mean_of, paired_difference, wilson


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_has_the_values_of_newcombe_1998(correct, count, low, high):
    assert wilson(correct, count) == pytest.approx((low, high), abs=2e-4)
    assert Score(correct, count, 0.0).interval == wilson(correct, count)


@pytest.mark.parametrize("count", [1, 5, 100])
def test_all_right_or_all_wrong_is_no_certainty(count):
    assert wilson(0, count)[1] > 0
    assert wilson(count, count)[0] < 1


def outcomes(both: int, gained: int, lost: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    parts = [((1, 1), both), ((0, 1), gained), ((1, 0), lost), ((0, 0), neither)]
    pairs = np.array([pair for pair, count in parts for _ in range(count)], bool).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def test_the_paired_interval_is_that_of_bonett_and_price():
    # Airway hyper-responsiveness before and after transplantation (Bentur et al. 2009): -6/23 +- 1.96 * 0.1263.
    value, low, high = paired_difference(*outcomes(1, 1, 7, 12))
    assert -value == pytest.approx(0.286, abs=1e-3)
    assert (-high, -low) == pytest.approx((0.0134, 0.5084), abs=1e-4)


@pytest.mark.parametrize("count", [1, 3, 20, 200])
@pytest.mark.parametrize("right", [0.0, 0.5, 1.0])
def test_where_no_image_differs_the_interval_is_close_to_the_rule_of_three(count, right):
    same = np.arange(count) < right * count
    value, low, high = paired_difference(same, same)
    assert value == 0
    assert -low == pytest.approx(high)
    assert high == pytest.approx(min(1, 2.77 / (count + 2)), rel=0.01)


def test_only_images_that_differ_widen_the_paired_interval():
    few, many = paired_difference(*outcomes(80, 1, 4, 15)), paired_difference(*outcomes(55, 21, 24, 0))
    assert few.value == many.value == pytest.approx(-0.03)
    assert few.high - few.low < (many.high - many.low) / 2
    # Wilson's intervals of the two accuracies would hide it.
    assert few.high - few.low < sum(high - low for low, high in (wilson(84, 100), wilson(81, 100))) / 1.5


@pytest.mark.parametrize(("gained", "lost"), [(1, 0), (0, 1), (9, 0), (0, 40)])
def test_the_interval_holds_the_value_and_is_never_of_width_zero(gained, lost):
    value, low, high = paired_difference(*outcomes(0, gained, lost, 0))
    assert -1 <= low <= value <= high <= 1
    assert low < high


def test_a_wrong_pairing_is_refused_and_no_images_say_nothing():
    with pytest.raises(ValueError, match="not paired"):
        paired_difference([True], [True, False])
    value, low, high = paired_difference([], [])
    assert np.isnan(value)
    assert (low, high) == (-1, 1)


def test_the_mean_of_sources_is_surer_than_each_of_them():
    one = Estimate(0.5, 0.4, 0.7)
    assert mean_of([one]) == pytest.approx(one)
    assert mean_of([one] * 4) == pytest.approx((0.5, 0.45, 0.6))
