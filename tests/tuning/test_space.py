"""The search space against the job's schema: pure, checked without Ray."""

import pytest

from cluster.config import Job
from shards.settings import replace
from tuning.check import space_faults
from tuning.config import Distribution, Study
from tuning.space import needs_training, simplex, to_values


def space(**paths) -> dict[str, Distribution]:
    return {path.replace("__", "."): Distribution.model_validate(d) for path, d in paths.items()}


@pytest.fixture
def job(recipe_values) -> Job:
    return Job.model_validate({"recipe": recipe_values})


def refused(job: Job, **paths) -> str:
    return "\n".join(space_faults(job, space(**paths)))


def test_simplex_weights_are_flat_on_the_simplex():
    grid = [(i + 0.5) / 40 for i in range(40)]
    draws = [simplex([a, b]) for a in grid for b in grid]
    assert all(sum(w) == pytest.approx(1) and min(w) >= 0 for w in draws)
    means = [sum(w[i] for w in draws) / len(draws) for i in range(3)]
    assert means == pytest.approx([1 / 3] * 3, abs=0.01)
    assert sum(w[0] < 0.5 for w in draws) / len(draws) == pytest.approx(0.75, abs=0.02)  # of a flat Dirichlet


def test_sampled_parameters_become_values_by_path():
    s = space(model__fusion__weights={"simplex": ["fine", "coarse"]}, quantize__bits={"choice": [4, 8]})
    got = to_values(s, {"model.fusion.weights#0": 0.25, "quantize.bits": 0})
    assert got == {"model.fusion.weights": {"fine": 0.25, "coarse": 0.75}, "quantize.bits": 4}


def test_every_fault_comes_in_one_message(job):
    text = refused(
        job,
        quantize__bits={"choice": [4, 9]},
        quantize__groups__layr4={"choice": [4]},
        train__learning_rate={"uniform": [-1.0, 0.1]},
        train__steps={"uniform": [10, 20]},
        train__keep={"integer": [1, 3]},
        model__fusion__weights={"simplex": ["fine", "curse"]},
    )
    for part in ("space.quantize.bits: must be", "layr4", "got -1.0", "curse", "train.keep"):
        assert part in text
    assert "space.train.steps: uniform draws fractions, and this is a whole number; use integer: [10, 20]" in text


def test_a_run_that_keeps_the_bits_of_its_branches_is_refused(job):
    quant = replace(job, {"transfer.mode": "quant", "model.branches.fine.weights": "IMAGENET1K_V1"})
    assert "transfer.mode: quant keeps the bits" in refused(quant, quantize__bits={"choice": [4, 8]})
    pruned = replace(job, {"model.fusion.prune": 0.05})
    assert "model.fusion.prune: must be left out for a study" in refused(pruned, quantize__bits={"choice": [4, 8]})


def test_trials_are_not_finished(job):
    finished = replace(job, {"quantize.finish": 50})
    assert "quantize.finish: must be 0 in a study" in refused(finished, quantize__bits={"choice": [4, 8]})
    assert "quantize.finish: must be 0 in a study" in refused(job, quantize__finish={"choice": [0, 8]})


@pytest.mark.parametrize(
    ("path", "distribution", "part"),
    [
        ("train.warmup", {"log_uniform": [1, 20]}, "use integer: [1, 20]"),
        ("quantize.bits", {"uniform": [2, 8]}, "this is one of 2, 3, 4, 5, 6, 7, 8, 32; use choice"),
        ("train.freeze_batchnorm", {"integer": [0, 1]}, "this is true or false; use choice"),
        ("train.optimizer", {"integer": [0, 1]}, "this is one of sgd, adamw; use choice"),
        ("data.augment", {"uniform": [0, 1]}, "this is a section of keys and values; use choice"),
        ("train.steps", {"choice": [4, True]}, "must be a whole number, got true"),
        ("train.steps", {"choice": [4, "5"]}, "must be a whole number, got '5'"),
        ("train.learning_rate", {"choice": [0.1, True]}, "must be a number, got true"),
        ("quantize.bits", {"choice": [True]}, "must be 2, 3, 4, 5, 6, 7, 8 or 32, got true"),
        ("quantize.bits", {"integer": [7, 32]}, "or 32, got 9"),  # both ends are fine
        ("data.block", {"integer": [12, 24]}, "13 is not accepted: recipe.data.block: with unit: batch"),
        ("train.steps", {"simplex": ["fine", "coarse"]}, "simplex draws a weight for each name, and this is a whole"),
        (
            "model.fusion.weights",
            {"simplex": ["fine", "coarse", "third"]},
            "must name the branches coarse, fine, got coarse, fine, third",
        ),
        ("train.stepz", {"choice": [1]}, "did you mean 'steps'?"),
        ("data.validation", {"uniform": [0.1, 0.2]}, "changes the images that trials are compared on"),
        ("data.sources.paint.path", {"choice": ["paint", "neon"]}, "changes the images that trials are compared on"),
        ("data.sources", {"choice": [{}]}, "changes the images that trials are compared on"),
        ("quantize.calibration", {"choice": [8, 16]}, "all trials share the calibration images"),
    ],
)
def test_what_a_range_can_draw_is_tried_not_only_its_ends(job, path, distribution, part):
    job = replace(job, {"data.unit": "batch"})
    assert f"space.{path}: " in (text := refused(job, **{path: distribution}))
    assert part in text


@pytest.mark.parametrize(
    "path",
    [
        "name", "output", "cluster.workers", "data.workers", "data.cache.gb", "data.decode", "data.test.neon.path",
        "train.keep", "train.log_every", "train.save_every", "train.evaluate_every", "recipe.name",
    ],
)  # fmt: skip
def test_keys_that_change_nothing_about_the_model_are_refused(job, path):
    assert f"space.{path}: changes nothing about the model" in refused(job, **{path: {"choice": [1, 2]}})


def test_a_path_that_another_one_sets_is_refused(job):
    weights = {"choice": [{"fine": 0.5, "coarse": 0.5}]}
    text = refused(job, model__fusion__weights=weights, model__fusion={"choice": [{"kind": "wsum"}]})
    assert "space.model.fusion.weights: is set by space.model.fusion already" in text
    assert "already" in refused(job, **{"train.steps": {"choice": [4]}, "recipe.train.steps": {"choice": [5]}})


def test_values_that_do_not_go_together_are_refused(job):
    weights = {"simplex": ["fine", "coarse"]}
    text = refused(job, model__fusion__weights=weights, model__fusion__kind={"choice": ["wsum", "concat"]})
    assert "together are not accepted" in text
    assert "concat, which has no weight vector" in text


def test_a_sound_space_passes(job):
    assert not space_faults(
        job,
        space(
            model__fusion__weights={"simplex": ["fine", "coarse"]},
            train__learning_rate={"log_uniform": [0.001, 0.1]},
            train__clip_norm={"choice": [None, 1]},
            train__steps={"integer": [4, 8]},
            train__freeze_batchnorm={"choice": [True, False]},
            data__augment__scale={"choice": [[0.5, 1.0], [0.8, 1.0]]},
            quantize__groups__layer4={"integer": [2, 8]},
            quantize__calibration={"choice": [8, 16]},
        ),
    )


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"choice": [1], "uniform": [0, 1]},
        {"uniform": [2, 1]},
        {"uniform": [True, 2]},
        {"uniform": [0, float("inf")]},
        {"integer": [1, 2.5]},
        {"integer": [False, True]},
        {"log_uniform": [0, 1]},
        {"simplex": ["one"]},
        {"simplex": ["one", "one"]},
        {"choice": [4, 8, 4]},
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
