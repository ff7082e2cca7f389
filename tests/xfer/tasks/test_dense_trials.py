"""Trials of a study of detectors and segmenters, without Ray: scored by their task, on the originals' pixels."""

import pytest
import torch

import xfer
from cluster.config import Job
from shards.settings import replace
from tests.xfer.tasks.runs import MEASURES
from tuning.check import space_faults
from tuning.config import Distribution
from tuning.pareto import remarks
from tuning.record import Row
from tuning.trial import compared, float_row, realize, share, trial
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.surface import Run

kinds = pytest.mark.parametrize("kind", ["fcos", "fpn"])
ALL = 1000  # images: more than are held out


def job_of(recipe) -> Job:
    return Job.model_validate({"recipe": recipe.model_dump(mode="json", by_alias=True)})


@kinds
def test_a_trial_in_float_scores_what_the_run_does_and_one_of_few_bits_is_smaller(trained, kind):
    job = job_of(trained(kind))
    assert not space_faults(job, {"quantize.bits": Distribution.model_validate({"choice": [2, 8]})})
    shared = share(job, ALL)
    plain = job.model_dump(mode="json")
    rows = {bits: trial({"quantize.bits": bits}, job.recipe.folder, plain, ALL, shared) for bits in (2, 8, 32)}
    scores = Run(job.recipe.folder).evaluate()
    assert rows[32]["by_source"] == pytest.approx({name: one.value for name, one in scores.items()}, abs=1e-3)
    assert rows[32]["counts"] == {name: one.count for name, one in scores.items()}
    assert rows[32]["accuracy"] == pytest.approx(float_row(job, shared)["accuracy"], abs=1e-3)
    assert rows[2]["bytes"] < 0.4 * rows[8]["bytes"]
    assert rows[2]["accuracy"] != rows[8]["accuracy"]

    found = compared(replace(job, {"quantize.bits": 2}).recipe, shared)
    means = {name: one[0].value for name, one in found.second.items()}
    assert means == pytest.approx(rows[2]["by_source"])
    assert f"{MEASURES[kind]} on the images the search chose by" in found.text()


@kinds
def test_a_row_has_the_interval_of_its_scores(trained, kind):
    job = job_of(trained(kind))
    row = Row("1", **trial({}, job.recipe.folder, job.model_dump(mode="json"), ALL, share(job, ALL)))
    assert row.measure == MEASURES[kind]
    low, high = row.interval
    assert low < row.accuracy < high
    assert low >= min(ends[0] for ends in row.intervals.values())
    (said,) = remarks([row], row, 0.001)
    assert f"the best {MEASURES[kind]}" in said
    assert "one image" not in said


@kinds
def test_a_trial_that_trains_is_scored_by_its_task(values, tmp_path, kind):
    job = job_of(Recipe.model_validate(values(kind)))
    row = trial({"train.steps": 2}, tmp_path / "trials" / "1" / "run", job.model_dump(mode="json"), ALL, None)
    assert row["measure"] == MEASURES[kind]
    assert set(row["by_source"]) == set(row["intervals"]) == {"paint", "neon"}


@kinds
def test_with_one_source_left_out_a_trial_is_scored_on_each_by_the_run_without_it(values, kind):
    given = values(kind)
    given["data"]["validation"] = "leave_one_source_out"
    job = job_of(Recipe.model_validate(given))
    xfer.fit(job.recipe, quiet=True)
    shared = share(job, ALL)
    assert [[one.name for one in each.subsets] for each in shared] == [["neon"], ["paint"]]
    row = trial({"quantize.bits": 8}, job.recipe.folder, job.model_dump(mode="json"), ALL, shared)
    assert row["counts"] == {"neon": 24, "paint": 24}


def test_the_weights_of_a_trial_are_set_and_its_head_stays(values):
    given = values("fpn")
    given["model"]["branches"]["other"] = {"backbone": "resnet10", "size": 32}
    run = xfer.fit(given, quiet=True)
    job = job_of(run.recipe)
    (shared,) = share(job, ALL)
    one = replace(job, {"model.fusion.weights": {"main": 0.2, "other": 0.8}, "quantize.bits": 32})
    model = realize(one.recipe, shared).model
    assert model.fusion_weights == pytest.approx({"main": 0.2, "other": 0.8})  # pyright: ignore[reportAttributeAccessIssue]
    before = open_model(run.folder).model.head.state_dict()
    after = model.head.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(before["classifier.weight"], after["classifier.weight"])
