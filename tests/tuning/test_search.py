"""What a search still has to do: each key of `search` that decides it, baselines, and failed trials tried again."""

from pathlib import Path
from typing import Any

import pytest

from cluster.session import set_environment
from shards.settings import replace
from tuning.config import Study
from tuning.record import Recorder, Row, num_trials
from tuning.search import Plan

set_environment()  # before Ray is imported: other tests of this process connect to it

RATE = {"train.learning_rate": {"log_uniform": [0.001, 0.1]}}


@pytest.fixture
def study(recipe_values) -> Study:
    space = {"model.fusion.weights": {"simplex": ["fine", "coarse"]}, "quantize.groups.layer4": {"choice": [2, 4, 8]}}
    return Study.model_validate({"job": {"recipe": recipe_values}, "space": space, "search": {"trials": 12}})


def work_off(study: Study, folder: Path, fail: int = 0, retry_failed: bool = False) -> list[Row]:
    """All rows of a plan, one after the other; the first `fail` trials fail."""
    plan, begun = Plan(study, folder, retry_failed), []
    while plan.more:
        row = plan.next()
        assert row
        begun.append(row)
        error = "ValueError: x" if row.trial in [str(i + 1) for i in range(fail)] and row.attempt == 1 else None
        size = 100 * row.values.get("quantize.groups.layer4", 8)
        plan.end(Row(row.trial, row.values, 0.5, size, baseline=row.baseline, in_space=row.in_space, error=error,
                     attempt=row.attempt))  # fmt: skip
    return begun


def test_baselines_come_first_and_are_not_counted(study, tmp_path):
    begun = work_off(study, tmp_path)
    assert [row.baseline for row in begun[:2]] == ["plain 8 bits", "plain 4 bits"]
    assert begun[1].values == {"quantize.bits": 4, "quantize.groups": {}}
    assert not any(row.in_space for row in begun[:2])
    assert num_trials(begun) == 12


@pytest.mark.parametrize("changes", [{"search.seed": 5}, {"search.sampler": "random"}, {"search.sampler": "nsga2"}])
def test_seed_and_sampler_decide_what_is_tried(study, tmp_path, changes):
    values: list[Any] = []
    for name, one in {"a": study, "b": study, "c": replace(study, changes)}.items():
        (tmp_path / name).mkdir()
        values.append([row.values for row in work_off(one, tmp_path / name)])
    assert values[0] == values[1]
    assert values[0] != values[2]


def test_more_trials_go_on_with_the_missing_ones(study, tmp_path):
    first = work_off(study, tmp_path)
    assert not Plan(study, tmp_path, False).more
    second = work_off(replace(study, {"search.trials": 15}), tmp_path)
    assert [row.trial for row in second] == ["13", "14", "15"]
    assert not [row.values for row in second if row.values in [old.values for old in first]]


def test_failed_trials_count_as_done_and_are_tried_again_when_asked(study, tmp_path):
    first = work_off(study, tmp_path, fail=3)
    assert not Plan(study, tmp_path, False).more
    again = work_off(study, tmp_path, retry_failed=True)
    assert [(row.trial, row.attempt) for row in again] == [("1", 2), ("2", 2), ("3", 2)]
    assert [row.values for row in again] == [row.values for row in first[2:5]]
    assert not Plan(study, tmp_path, True).more


def test_a_counted_space_ends_early_and_a_baseline_inside_of_it_is_one_of_its_points(recipe_values, tmp_path):
    space = {"quantize.bits": {"choice": [4, 6, 8]}}
    study = Study.model_validate({"job": {"recipe": recipe_values}, "space": space, "search": {"trials": 12}})
    begun = work_off(study, tmp_path)
    assert [row.values["quantize.bits"] for row in begun] == [8, 4, 6]
    assert all(row.in_space for row in begun)


def test_where_each_trial_trains_the_baselines_share_one_training_in_turn(recipe_values, tmp_path):
    study = Study.model_validate({"job": {"recipe": recipe_values}, "space": RATE, "search": {"trials": 2}})
    plan = Plan(study, tmp_path, False)
    first, second = plan.next(), plan.next()
    assert first
    assert second
    assert (first.baseline, second.baseline) == ("plain 8 bits", None)
    plan.end(first)
    third = plan.next()
    assert third
    assert third.baseline == "plain 4 bits"


def test_baselines_whose_training_failed_wait_for_a_retry(recipe_values, tmp_path):
    study = Study.model_validate({"job": {"recipe": recipe_values}, "space": RATE, "search": {"trials": 1}})
    recorder = Recorder(tmp_path)
    values = {"quantize.bits": 8, "quantize.groups": {}}
    plain = Row("plain-8-bits", values, baseline="plain 8 bits", in_space=False, error="ValueError: x")
    for row in (plain, Row("1", {"train.learning_rate": 0.01}, 0.5, 10)):
        recorder.write(row)
    assert not Plan(study, tmp_path, False).more
    assert [row.trial for row in work_off(study, tmp_path, retry_failed=True)] == ["plain-8-bits", "plain-4-bits"]
