"""The search space and the front: pure, checked without Ray."""

import pytest

from cluster.config import Job
from shards.settings import ConfigError
from tuning.config import Distribution, Study
from tuning.pareto import Row, choose, front, hypervolume
from tuning.space import check_space, needs_training, simplex, values


def space(**paths) -> dict[str, Distribution]:
    return {path.replace("__", "."): Distribution.model_validate(d) for path, d in paths.items()}


@pytest.fixture
def job(recipe_values) -> Job:
    return Job.model_validate({"recipe": recipe_values})


def test_simplex_weights_are_flat_on_the_simplex():
    grid = [(i + 0.5) / 40 for i in range(40)]
    draws = [simplex([a, b]) for a in grid for b in grid]
    assert all(sum(w) == pytest.approx(1) and min(w) >= 0 for w in draws)
    means = [sum(w[i] for w in draws) / len(draws) for i in range(3)]
    assert means == pytest.approx([1 / 3] * 3, abs=0.01)
    assert sum(w[0] < 0.5 for w in draws) / len(draws) == pytest.approx(0.75, abs=0.02)  # of a flat Dirichlet


def test_sampled_parameters_become_values_by_path():
    s = space(model__fusion__weights={"simplex": ["fine", "coarse"]}, quantize__bits={"choice": [4, 8]})
    got = values(s, {"model.fusion.weights#0": 0.25, "quantize.bits": 4})
    assert got == {"model.fusion.weights": {"fine": 0.25, "coarse": 0.75}, "quantize.bits": 4}


def test_every_option_is_tried_against_the_schema_before_the_first_trial(job):
    s = space(
        quantize__bits={"choice": [4, 9]},
        quantize__groups__layr4={"choice": [4]},
        train__learning_rate={"uniform": [-1.0, 0.1]},
        model__fusion__weights={"simplex": ["fine", "curse"]},
    )
    with pytest.raises(ConfigError) as caught:
        check_space(job, s)
    text = str(caught.value)
    for part in ("space.quantize.bits: 9", "layr4", "space.train.learning_rate: -1.0", "curse"):
        assert part in text


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"choice": [1], "uniform": [0, 1]},
        {"uniform": [2, 1]},
        {"log_uniform": [0, 1]},
        {"simplex": ["one"]},
        {"chioce": [1]},
    ],
)
def test_a_distribution_is_exactly_one_kind(recipe_values, bad):
    with pytest.raises(ValueError, match=r"validation error"):
        Study.model_validate({"job": {"recipe": recipe_values}, "space": {"quantize.bits": bad}})


def test_only_fusion_weights_and_bits_are_searched_without_training():
    assert not needs_training(
        space(model__fusion__weights={"simplex": ["a", "b"]}, quantize__groups__stem={"choice": [8]})
    )
    assert needs_training(space(train__learning_rate={"uniform": [0.1, 0.2]}))


def rows(*points: tuple[float, int]) -> list[Row]:
    return [Row(f"t{i}", accuracy=a, bytes=b) for i, (a, b) in enumerate(points)]


def test_front_holds_what_no_row_beats_smallest_first():
    some = rows((0.9, 100), (0.8, 50), (0.85, 120), (0.8, 60), (0.95, 200), (0.95, 200))
    assert [(r.accuracy, r.bytes) for r in front(some)] == [(0.8, 50), (0.9, 100), (0.95, 200)]


def test_failed_trials_are_never_chosen():
    some = [Row("bad", accuracy=1.0, bytes=1, error="ValueError: x"), *rows((0.5, 10))]
    assert choose(some, 0.01).trial == "t0"
    with pytest.raises(ValueError, match="no trial succeeded"):
        choose(some[:1], 0.01)


def test_choice_is_the_smallest_within_tolerance_of_the_best():
    some = rows((0.95, 200), (0.945, 100), (0.90, 50))
    assert choose(some, 0.01).bytes == 100
    assert choose(some, 0.0).bytes == 200
    assert choose(some, 0.1).bytes == 50


def test_hypervolume_grows_with_a_better_row():
    base = rows((0.5, 50))
    assert hypervolume(base, 100) == pytest.approx(0.25)
    assert hypervolume([*base, *rows((0.6, 50))], 100) == pytest.approx(0.3)
