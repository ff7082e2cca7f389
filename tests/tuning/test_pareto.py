"""The front, the choice and what is said about its noise; a report whatever the rows are like."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from shards.settings import dump
from tuning.config import Study
from tuning.pareto import choose, front, hypervolume, remarks
from tuning.record import Recorder, Row
from tuning.report import write_report
from xfer.metrics import wilson
from xfer.report.evaluation import evaluation_sections


def rows(*points: tuple[float, int]) -> list[Row]:
    return [Row(f"t{i}", {"quantize.bits": 8}, accuracy=a, bytes=b) for i, (a, b) in enumerate(points)]


def scored(name: str, correct: dict[str, int], count: int, size: int, **more) -> Row:
    accuracy = sum(correct.values()) / count / len(correct)
    return Row(name, {}, accuracy, size, correct=correct, counts=dict.fromkeys(correct, count), **more)


def test_front_holds_what_no_row_beats_smallest_first():
    some = rows((0.9, 100), (0.8, 50), (0.85, 120), (0.8, 60), (0.95, 200), (0.95, 200))
    assert [(r.accuracy, r.bytes) for r in front(some)] == [(0.8, 50), (0.9, 100), (0.95, 200)]


def test_a_failed_trial_is_neither_on_the_front_nor_chosen():
    good = rows((0.6, 100), (0.9, 200))
    failed = Row("lost", {"quantize.bits": 8}, error="WorkerDiedError: killed")
    assert front([failed, *good]) == good
    assert choose([failed, *good], tolerance=1.0) == good[0]
    assert choose([failed], tolerance=1.0) is None


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


def test_scores_on_other_data_are_in_the_table_and_not_in_the_figure(tmp_path: Path):
    score = {"correct": 9, "count": 10, "accuracy": 0.9, "interval": [0.6, 0.98], "per_class": {}, "version": "a"}
    other = {"split": "data", "changes": ["--data elsewhere"], "sources": {"phone": score}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"validation": {"photo": score}, "others": [other]}))
    (section,) = evaluation_sections({"float32": tmp_path / "evaluation.json"})
    assert [row[:4] for row in section.table[1:]] == [
        ["float32", "photo", "part of a training source", 10],
        ["float32", "phone", "data: --data elsewhere", 10],
    ]
    assert "phone" not in section.plots[0][0]


def test_images_left_out_of_evaluations_are_in_the_report(tmp_path: Path, monkeypatch):
    from xfer.report import run as report

    loss = {"source": "photo", "shard": "train-000000.tar", "key": "cat/1", "reason": "cut short"}
    (tmp_path / "evaluation-damage-0.jsonl").write_text(json.dumps(loss))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "losses": [1.0]}) + "\n")
    (tmp_path / "recipe.yaml").write_text("name: run\n")
    weights = SimpleNamespace(model=SimpleNamespace(fusion_weights={}, branches={}), weights_sha256="", dropped={})
    monkeypatch.setattr(report, "open_model", lambda folder: weights)
    titles = {section.title: section for section in report.run_sections(tmp_path)}
    assert titles["Damage in evaluations"].text == "Left out of every score: 1 damaged sample."
    assert "Damage" not in titles
