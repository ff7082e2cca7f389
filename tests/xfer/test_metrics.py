"""Scores by source: what is counted, and how sure it is."""

import pytest
import torch

from xfer.metrics import Accuracy, Score, mean_accuracy, wilson

CPU = torch.device("cpu")


def test_padding_and_samples_without_a_known_class_are_not_counted():
    accuracy = Accuracy(["a", "b"], ["x", "y"], CPU)
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    targets, sources = torch.tensor([0, 0, 0, -1]), torch.tensor([0, 0, 1, 1])
    accuracy.add(logits, targets, sources, torch.tensor([True, True, False, True]))
    scores = accuracy.scores(accuracy.sums)
    assert (scores["a"].correct, scores["a"].count) == (1, 2)
    assert scores["a"].per_class == {"x": 0.5}
    assert scores["b"].count == 0


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (5, 10), (10, 10), (570, 1000)])
def test_an_interval_holds_the_accuracy_and_narrows_with_more_images(correct, count):
    low, high = wilson(correct, count)
    assert 0 <= low <= correct / count <= high <= 1
    assert high - low > 0.5 / count**0.5
    narrow_low, narrow_high = wilson(100 * correct, 100 * count)
    assert narrow_high - narrow_low < 0.3 * (high - low)


def test_wilson_agrees_with_the_published_value():
    """Brown, Cai & DasGupta, Interval Estimation for a Binomial Proportion, 2001: x = 5 of n = 10."""
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_big_source_does_not_hide_a_small_one():
    scores = {"big": Score(900, 1000, 0.1), "small": Score(1, 10, 2.0), "none": Score(0, 0, 0.0)}
    assert mean_accuracy(scores) == pytest.approx((0.9 + 0.1) / 2)
