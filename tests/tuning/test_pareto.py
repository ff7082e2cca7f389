"""The front, the choice and what is said about its noise; a report whatever the rows are like."""

import dataclasses
from pathlib import Path

import pytest

from shards.settings import dump
from tuning.config import Study
from tuning.pareto import choose, front, hypervolume, remarks
from tuning.record import Recorder, Row
from tuning.report import write_report
from xfer.metrics import wilson


def rows(*points: tuple[float, int]) -> list[Row]:
    return [Row(f"t{i}", {"quantize.bits": 8}, accuracy=a, bytes=b) for i, (a, b) in enumerate(points)]


def scored(name: str, correct: dict[str, int], count: int, size: int, **more) -> Row:
    accuracy = sum(correct.values()) / count / len(correct)
    return Row(name, {}, accuracy, size, correct=correct, counts=dict.fromkeys(correct, count), **more)


def test_front_holds_what_no_row_beats_smallest_first():
    some = rows((0.9, 100), (0.8, 50), (0.85, 120), (0.8, 60), (0.95, 200), (0.95, 200))
    assert [(r.accuracy, r.bytes) for r in front(some)] == [(0.8, 50), (0.9, 100), (0.95, 200)]


def test_failed_trials_are_never_chosen():
    some = [Row("bad", accuracy=1.0, bytes=1, error="ValueError: x"), *rows((0.5, 10))]
    assert getattr(choose(some, 0.01), "trial", None) == "t0"
    assert choose(some[:1], 0.01) is None


@pytest.mark.parametrize(("tolerance", "size"), [(0.01, 100), (0.005, 100), (0.0, 200), (0.1, 50), (0.05, 50)])
def test_choice_is_the_smallest_within_tolerance_of_the_best(tolerance, size):
    best = choose(rows((0.95, 200), (0.945, 100), (0.90, 50)), tolerance)
    assert best
    assert best.bytes == size


def test_a_baseline_outside_of_the_space_is_shown_and_not_chosen():
    outside = Row("plain", accuracy=0.9, bytes=10, baseline="plain 4 bits", in_space=False)
    some = [outside, *rows((0.8, 50), (0.9, 60))]
    best = choose(some, 0.01)
    assert best
    assert best.bytes == 60
    assert front(some) == [outside]
    assert any("no better than plain 4 bits: 90.0 %, 10 bytes" in remark for remark in remarks(some, best, 0.01))
    assert choose([dataclasses.replace(outside, in_space=True), *some[1:]], 0.01) != best


def test_hypervolume_grows_with_a_better_row_and_is_0_where_all_have_one_size():
    base = rows((0.5, 50))
    assert hypervolume(base, 100) == pytest.approx(0.25)
    assert hypervolume([*base, *rows((0.6, 50))], 100) == pytest.approx(0.3)
    assert hypervolume(base, 50) == 0


def test_the_interval_is_wilsons_and_narrows_with_more_sources():
    one = scored("one", {"a": 45}, 50, 10)
    assert one.interval == pytest.approx(wilson(45, 50))
    two = scored("two", {"a": 45, "b": 45}, 50, 10)
    assert two.interval[1] - two.interval[0] == pytest.approx((one.interval[1] - one.interval[0]) / 2**0.5)
    assert (one.step, two.step) == (1 / 50, 1 / 100)
    assert Row("unknown").interval == (0, 1)


def test_a_tolerance_below_the_noise_is_told_and_one_above_is_not():
    some = [scored("big", {"a": 52, "b": 40}, 57, 200), scored("small", {"a": 51, "b": 40}, 57, 100)]
    best = choose(some, 0.01)
    assert best
    told = " ".join(remarks(some, best, 0.01))
    assert "search.tolerance of 1 points is below the noise" in told
    assert "one image is worth up to 0.88" in told
    assert "1 other trials lie within that interval" in told
    assert "below the noise" not in " ".join(remarks(some, best, 0.2))


GOOD = [scored(f"t{i}", {"a": c}, 20, size) for i, (c, size) in enumerate([(18, 100), (15, 50)])]
BAD = Row("bad", {"quantize.bits": 8}, error="ValueError: so bad", host="h1", attempt=2)


@pytest.mark.parametrize(
    ("some", "parts"),
    [
        ([*GOOD, BAD], ["Hypervolume", "ValueError: so bad", "h1"]),
        ([BAD], ["No trial has succeeded", "ValueError: so bad"]),
        ([GOOD[0]], ["All have one size"]),
        ([scored("x", {"a": c}, 20, 100) for c in (15, 16)], ["All have one size"]),
        ([scored("x", {"a": 15}, 20, size) for size in (100, 200)], ["Hypervolume"]),
        ([scored("plain", {"a": 15}, 20, 100, baseline="plain 8 bits", in_space=False)], ["No trial has succeeded"]),
        (rows((0.9, 100), (0.8, 50)), ["unknown"]),
    ],
    ids=["some failed", "all failed", "one", "one size", "one accuracy", "no trial yet", "without counts"],
)
def test_a_report_is_written_whatever_the_rows_are_like(some, parts, recipe_values, tmp_path: Path):
    study = Study.model_validate({"job": {"recipe": recipe_values}, "space": {"quantize.bits": {"choice": [4, 8]}}})
    (tmp_path / "study.yaml").write_text(dump(study))
    recorder = Recorder(tmp_path)
    for number, row in enumerate(some):
        recorder.write(dataclasses.replace(row, trial=f"{row.trial}{number}"))
    page = write_report(tmp_path).read_text()
    for part in parts:
        assert part in page
