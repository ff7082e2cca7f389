"""Scores by source: what is counted, and how sure it is."""

from dataclasses import replace

import pytest
import torch

from shards.loading.batch import Batch
from xfer.evaluate import confusions, score_rows
from xfer.metrics import MOST_CONFUSED, Score, Scores, from_text, wilson
from xfer.tasks.pixels import MaskScore
from xfer.tasks.task import mean_score

CPU = torch.device("cpu")


def batch_of(targets: torch.Tensor, sources: torch.Tensor, valid: torch.Tensor) -> Batch:
    images = torch.zeros(len(targets), 3, 1, 1, dtype=torch.uint8)
    return Batch(images, targets, sources, torch.arange(len(targets)), valid)


def test_padding_and_samples_without_a_known_class_are_not_counted():
    sums = Scores(["a", "b"], ["x", "y"], CPU)
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])
    targets, sources = torch.tensor([0, 0, 0, -1]), torch.tensor([0, 0, 1, 1])
    sums.add(logits, batch_of(targets, sources, torch.tensor([True, True, False, True])))
    scores = sums.result()
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
    assert mean_score(scores) == pytest.approx((0.9 + 0.1) / 2)


@pytest.fixture
def many() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets and sources of images of seven classes from two sources."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(400, 7, generator=generator)
    return logits, torch.randint(0, 7, (400,), generator=generator), (torch.arange(400) % 3 == 0).long()


def test_top_5_calibration_and_confusion_are_what_plain_loops_count(many):
    logits, targets, sources = many
    names = [f"c{i}" for i in range(7)]
    sums = Scores(["a", "b"], names, CPU)
    for part in torch.arange(400).split(37):  # unequal batches
        sums.add(logits[part], batch_of(targets[part], sources[part], torch.ones(len(part), dtype=torch.bool)))
    for source, score in enumerate(sums.result().values()):
        x, y = logits[sources == source].double().softmax(1), targets[sources == source]
        assert score.top5 == sum(t in row.argsort(descending=True)[:5] for row, t in zip(x, y, strict=True))
        confidence, said = x.max(1)
        gap = 0.0
        for low in range(15):
            inside = (confidence >= low / 15) & (confidence < (low + 1) / 15)
            if inside.any():
                right = (said == y)[inside].double()
                gap += inside.double().mean() * (confidence[inside].mean() - right.mean()).abs()
        assert score.calibration == pytest.approx(float(gap), abs=1e-6)
        for truth in range(7):
            for other in range(7):
                expected = int(((y == truth) & (said == other)).sum())
                assert score.confusion.get(names[truth], {}).get(names[other], 0) == expected


def test_sums_of_two_ranks_are_the_scores_of_all_images(many):
    logits, targets, sources = many
    names = [f"c{i}" for i in range(7)]
    whole, one, two = (Scores(["a", "b"], names, CPU) for _ in range(3))
    valid = torch.ones(400, dtype=torch.bool)
    at = torch.arange(400)
    for sums, part in ((whole, at), (one, at[at % 5 < 2]), (two, at[at % 5 >= 2])):
        sums.add(logits[part], replace(batch_of(targets[part], sources[part], valid[part]), positions=part))
    others = iter(two.sums)
    found = one.result(lambda sums: sums + next(others), lambda rows: torch.cat([rows, *two.images]))
    assert found == whole.result()
    for source, score in enumerate(found.values()):
        mine = sources == source
        assert from_text(score.right).tolist() == (logits[mine].argmax(1) == targets[mine]).tolist()


def test_a_table_of_confusions_that_would_be_huge_is_not_kept():
    count = int(MOST_CONFUSED**0.5) + 1
    sums = Scores(["a"], [str(i) for i in range(count)], CPU)
    zeros = torch.zeros(4, dtype=torch.long)
    sums.add(torch.randn(4, count), batch_of(zeros, zeros, torch.ones(4) > 0))
    assert sums.result()["a"].confusion == {}


def test_what_people_read_of_scores():
    few = {
        "a": Score(3, 4, 0.5, top5=4, calibration=0.125, confusion={"cat": {"cat": 3, "dog": 1}}),
        "b": Score(0, 0, 0.0),
    }
    assert score_rows(few, "test", 3) == [
        ["test", "images", "accuracy", "95 % interval", "calibration error"],
        ["a", "4", "75.0 %", "30.1 - 95.4", "12.5 %"],
        ["b", "0", "-", "", ""],
        ["mean of sources", "", "75.0 %", "", ""],
    ]
    assert score_rows(few, "test", 6)[1] == ["a", "4", "75.0 %", "30.1 - 95.4", "100.0 %", "12.5 %"]
    assert confusions(few) == ["a: most often took cat for dog (1)"]


def test_confusions_of_pixels_say_so():
    score = MaskScore(0.5, 0.5, confusion={"road": {"road": 5, "sky": 12345}}, pixels=12350)
    assert confusions({"a": score}) == ["a: most often took road for sky (12,345 pixels)"]
