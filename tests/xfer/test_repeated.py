"""Intervals over seeds: known values, and the share of experiments whose interval holds the truth."""

import math

import numpy as np
import pytest

from xfer.metrics import paired_difference
from xfer.repeated import difference_over_seeds, mean_over_seeds, student_t


@pytest.mark.parametrize(
    ("freedom", "value"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (10**6, 1.962)]
)
def test_t_has_the_values_of_the_tables(freedom, value):
    assert student_t(freedom) == pytest.approx(value, abs=6e-4)


def test_the_interval_of_a_mean_is_that_of_student():
    # Student 1908, table of Cushny & Peebles: additional hours of sleep, mean 1.58, s 1.23 (n - 1: 1.230), n 10.
    hours = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    value, low, high = mean_over_seeds(hours)
    assert value == pytest.approx(1.58)
    assert (low, high) == pytest.approx((0.700, 2.460), abs=1e-3)
    assert math.isinf(mean_over_seeds([0.5]).high)


def test_equal_seeds_are_one_paired_comparison_and_nothing_that_differs_is_no_certainty():
    random = np.random.default_rng(0)
    a, b = random.random((2, 300)) < [[0.7], [0.8]]
    several = difference_over_seeds([(np.stack([a] * 4), np.stack([b] * 4))])
    assert several == pytest.approx(paired_difference(a, b), abs=2e-3)
    _, low, high = difference_over_seeds([(np.stack([a] * 4),) * 2])
    assert low < 0 < high


def test_seeds_that_differ_widen_it_however_many_images_there_are():
    luck = np.array([0.02, -0.02, 0.05, -0.05])
    still, moved = (
        np.stack([np.arange(4000) < 4000 * (0.6 + shift) for shift in shifts]) for shifts in (np.zeros(4), luck)
    )
    value, low, high = difference_over_seeds([(still, moved)])
    assert value == pytest.approx(0, abs=1e-3)
    of_seeds = student_t(3) * luck.std(ddof=1) / 2
    assert of_seeds < high < 1.05 * of_seeds
    _, low, high = paired_difference(still[0], moved[0])
    assert low > 0.01, "on their own, the first runs look surely different"


@pytest.mark.parametrize(("seeds", "images", "luck"), [(5, 200, 0.0), (5, 200, 0.05), (3, 100, 0.05)])
def test_it_holds_the_truth_in_at_least_95_of_100_experiments(seeds, images, luck):
    """Images differ in how hard they are, seeds in how lucky they are; b is as good as a on the whole."""
    random, held, tries = np.random.default_rng(1), 0, 600
    for _ in range(tries):
        lucky, pairs = random.normal(0, luck, (seeds, 1)), []
        for _ in range(2):
            hard = np.clip(random.normal(0.7, 0.2, images), 0.1, 0.9)
            a, b = random.random((2, seeds, images))
            pairs.append((a < hard, b < hard + lucky))
        _, low, high = difference_over_seeds(pairs)
        held += low <= 0 <= high
    assert held / tries > 0.945
