"""One recipe with several seeds: the runs, what they come to, and two recipes compared over seeds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import xfer
from shards.format.whole import read_json
from shards.loading.open import open_data
from tests.xfer.command import status
from xfer.bundle import open_model
from xfer.outcomes import outcomes_on
from xfer.repeated import difference_over_seeds, mean_over_seeds


@pytest.fixture
def values(recipe_values) -> dict[str, Any]:
    recipe_values["model"] = {"branches": {"only": {"backbone": "resnet10"}}, "fusion": {"width": 16}}
    recipe_values["data"] |= {"batch_size": 24, "seed": 3}
    recipe_values["train"] |= {"steps": 4, "evaluate_every": 4, "seed": 7}
    return recipe_values


def written(values: dict[str, Any], tmp_path: Path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_fit_trains_each_seed_sums_up_and_goes_on_where_it_was(values, tmp_path, capsys):
    path, folder = written(values, tmp_path), Path(values["output"]) / "tiny"
    assert status("fit", path, "--seeds", "2") == 0
    said = capsys.readouterr()
    assert "tiny: 2 runs of 4 steps, a seed each" in said.err
    runs = [xfer.Run(folder / "seeds" / str(k)) for k in range(2)]
    assert [(run.recipe.train.seed, run.recipe.data.seed) for run in runs] == [(7, 3), (8, 4)]
    assert runs[0].metrics[0]["losses"] != runs[1].metrics[0]["losses"]

    found = xfer.Seeds(folder)
    assert [run.folder for run in found.seeds] == [run.folder for run in runs]
    last = [run.metrics[-1]["accuracy"] for run in runs]
    for source in ("outline", "paint"):
        value, low, high = mean_over_seeds([one[source] for one in last])
        assert found.means[source]["accuracy"] == (value, max(0, low), min(1, high))
        line = next(line for line in said.out.splitlines() if line.split()[:1] == [source])
        assert f"{100 * sum(one[source] for one in last) / 2:.1f} %" in line
    assert "mean of sources" in said.out
    assert "gain" not in said.out, "there was no probe"

    before = {file: file.stat().st_mtime_ns for file in folder.rglob("model.safetensors")}
    assert status("fit", path, "--seeds", "3") == 0
    assert capsys.readouterr().err.count("all its steps are done already") == 2
    assert len(xfer.Seeds(folder).seeds) == 3
    assert {file: file.stat().st_mtime_ns for file in before} == before
    single = xfer.fit(values, {"name": "single", "train.seed": 9, "data.seed": 5}, quiet=True)
    assert single.metrics[-1]["accuracy"] == xfer.Seeds(folder).seeds[2].metrics[-1]["accuracy"]

    assert status("evaluate", str(folder)) == 0
    said = capsys.readouterr().out.split("accuracy, mean of 3 seeds:")
    assert len(said) == 3, "one table for validation, one for test"
    kept = [read_json(folder / "seeds" / k / "evaluation.json")["test"]["neon"]["accuracy"] for k in "012"]
    value, low, high = (100 * one for one in mean_over_seeds(kept))
    assert f"{value:.1f} %" in said[2]
    assert f"{max(0, low):.1f} - {min(100, high):.1f}" in said[2]

    assert status("report", str(folder)) == 0
    page = (folder / "report.html").read_text()
    assert "Accuracy over seeds" in page
    assert xfer.Seeds(Path(values["output"]) / "tiny").report().read_text() == page
    assert f"{100 * last[1]['paint']:.1f} %" in page


def test_the_probe_and_the_gain_over_it_are_summed_up_too(pretrained, tmp_path, capsys):
    pretrained["train"] |= {"learning_rate": 0.003, "freeze_batchnorm": False}
    assert status("fit", written(pretrained, tmp_path), "--seeds", "2") == 0
    said = capsys.readouterr()
    assert "its linear probe" in said.out
    assert "seeds/1 begins as a linear probe" in said.err
    found = xfer.Seeds(Path(pretrained["output"]) / "tiny")
    gains = []
    for run in found.seeds:
        probe, last = (rows["accuracy"] for rows in (run.metrics[0], run.metrics[-1]))
        gains.append(sum(last[name] - probe[name] for name in last) / len(last))
    assert found.means["mean of sources"]["gain"] == pytest.approx(mean_over_seeds(gains))


def test_with_leave_one_source_out_the_scores_are_those_of_the_folds(values, tmp_path):
    values["data"] |= {"validation": "leave_one_source_out"}
    values["train"] |= {"steps": 2}
    found = xfer.fit(values, seeds=2, quiet=True)
    left_out = [run.left_out for run in found.seeds]
    assert all((found.folder / "seeds" / k / "folds" / "without-paint").is_dir() for k in "01")
    expected = [one["paint"]["accuracy"] for one in left_out]
    assert found.means["paint"]["accuracy"].value == pytest.approx(sum(expected) / 2)


def test_two_recipes_are_compared_over_seeds_and_images(values, tmp_path, capsys):
    folders = []
    for name, changes in (("slow", {"train.learning_rate": 1e-4}), ("fast", {"train.learning_rate": 0.02})):
        changes |= {"train.steps": 8, "train.freeze_batchnorm": False, "name": name}
        folders.append(xfer.fit(values, changes, seeds=2, quiet=True).folder)
    capsys.readouterr()
    assert status("compare", *map(str, folders), "--split", "test") == 0
    told = capsys.readouterr().out

    found, recipe = [], xfer.Run(folders[0] / "seeds" / "0").recipe
    for folder in folders:
        models = {k: open_model(folder / "seeds" / k) for k in "01"}
        right = outcomes_on({k: one.model for k, one in models.items()}, open_data(recipe.data).test, recipe.data,
                            models["0"].classes, "check")  # fmt: skip
        found.append(np.stack([right[k]["neon"] for k in "01"]))
    assert (found[0][0] != found[0][1]).any(), "seeds differ"
    expected = difference_over_seeds([(found[0], found[1])])
    row = next(line for line in told.splitlines() if line.startswith("  neon")).split()
    assert [row[1], row[2], row[4]] == ["120", *(f"{100 * one.mean():.1f}" for one in found)]
    assert [float(row[k]) for k in (6, 7, 9)] == pytest.approx([100 * one for one in expected], abs=0.06)
    assert "seeds and images" in told or "fast gains" in told

    one = str(folders[0] / "seeds" / "0")
    assert status("compare", str(folders[0]), one) == 2
    assert "compared with such folders only" in capsys.readouterr().err
    path = folders[1] / "seeds.json"
    kept = json.loads(path.read_text())
    kept["seeds"]["1"]["train.seed"] = 99
    kept["seeds"]["0"]["data"][1]["paint"]["samples"] = 1
    path.write_text(json.dumps(kept))
    assert status("compare", *map(str, folders)) == 2
    said = capsys.readouterr().err
    assert f"{folders[1]}: has train.seed 7, 99, {folders[0]} has 7, 8" in said
    assert "were not trained and scored on the same images" in said


def test_what_is_refused_is_refused_before_anything_is_trained(values, tmp_path, capsys):
    path, folder = written(values, tmp_path), Path(values["output"]) / "tiny"
    for words, fault in (
        (("--seeds", "1"), "seeds: must be at least 2"),
        (("--seeds", "2", "data.validation=0"), "data.validation: is 0"),
        (("--seeds", "2", "data.sources.paint.path=none"), "none"),
    ):
        assert status("fit", path, *words) == 2
        said = capsys.readouterr().err
        assert said.count(fault) == 1
        assert not folder.exists()
    xfer.fit(values, {"train.steps": 1}, quiet=True)
    assert status("fit", path, "--seeds", "2") == 2
    assert "holds one run of a recipe" in capsys.readouterr().err

    made = xfer.fit(values, {"train.steps": 1, "name": "several"}, seeds=2, quiet=True).folder
    assert status("fit", path, "name=several") == 2
    assert "holds runs of several seeds" in capsys.readouterr().err
    assert status("quantize", str(made)) == 2
    assert f"such as {made / 'seeds' / '0'}" in capsys.readouterr().err
    assert status("fit", path, "name=several", "--seeds", "2", "train.optimizer=adamw") == 2
    assert capsys.readouterr().err.count("train.optimizer: was sgd, is now adamw") == 1
