"""Leave one source out: a run for each source without it, scored on it, then a run on all; what is read from them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import xfer
from shards.loading.open import open_data
from shards.settings import ConfigError, replace
from tests.xfer.command import status
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.evaluate import evaluate_subsets
from xfer.folds import compare_folds, folds, prepare_folds
from xfer.history import left_out_scores

SOURCES = ("outline", "paint")


@pytest.fixture
def values(recipe_values) -> dict[str, Any]:
    recipe_values["model"]["branches"] = {"only": {"backbone": "resnet10"}}
    recipe_values["data"] |= {"validation": "leave_one_source_out", "batch_size": 24}
    recipe_values["train"] |= {"steps": 4, "save_every": 2, "evaluate_every": 4}
    return recipe_values


def steps_of(folder: Path) -> Mapping[str, int]:
    return {
        path.parent.parent.name: int(path.name.removeprefix("step-"))
        for path in sorted(folder.rglob("checkpoints/step-*"))
    }


def test_a_fold_is_an_ordinary_recipe_without_the_source(values):
    recipe = Recipe.model_validate(values)
    stages = [{"start": 24, "weights": {"paint": 1}}, {"start": 48, "weights": {"paint": 1, "outline": 2}}]
    found = folds(replace(recipe, {"data.stages": stages}))
    assert tuple(found) == SOURCES
    for source, fold in found.items():
        assert fold.folder == recipe.folder / "folds" / f"without-{source}"
        data = open_data(fold.data)
        assert [subset.name for subset in data.train] == [name for name in SOURCES if name != source]
        assert [subset.name for subset in data.validation] == [source]
        assert data.test == ()
        assert fold.model == recipe.model
        assert fold.train == recipe.train
        assert all(set(stage.weights) - {source} for stage in fold.data.stages)
    assert len(found["paint"].data.stages) == 1
    assert folds(replace(recipe, {"data.validation": 0.1})) == {}


def test_fit_trains_and_scores_every_fold_and_then_all_sources_and_goes_on_where_it_was(values, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    assert status("fit", str(path)) == 0
    said, folder = capsys.readouterr(), Path(values["output"]) / "tiny"
    assert "3 runs of 4 steps, without outline, without paint, then on all sources" in said.err
    assert "fold 2 of 2, without paint" in said.err
    assert steps_of(folder) == {"tiny": 4, "without-outline": 4, "without-paint": 4}
    scores = left_out_scores(folder)
    assert scores == xfer.Run(folder).left_out
    for source, fold in folds(Recipe.model_validate(values)).items():
        data, trained = open_data(fold.data), open_model(fold.folder)
        expected = evaluate_subsets(trained.model, data.validation, fold.data, trained.classes, "check")[source]
        assert (scores[source]["correct"], scores[source]["count"]) == (expected.correct, expected.count)
        low, high = scores[source]["interval"]
        assert low < expected.accuracy < high
        unknown = {"outline": "cross", "paint": "square"}[source]
        assert unknown not in trained.classes
        assert scores[source]["not_counted"] == 30
        line = next(line for line in said.out.splitlines() if line.split()[:1] == [source])
        assert f"{100 * expected.accuracy:.1f} %" in line
    mean = json.loads((folder / "leave_one_source_out.json").read_text())["mean"]
    assert mean["accuracy"] == pytest.approx(sum(row["accuracy"] for row in scores.values()) / 2)
    assert mean["interval"][0] < mean["accuracy"] < mean["interval"][1]
    assert "mean of sources" in said.out
    assert set(open_model(folder).classes) == {"circle", "cross", "square", "star"}

    before = {file: file.stat().st_mtime_ns for file in folder.rglob("model.safetensors")}
    assert status("fit", str(path)) == 0
    assert capsys.readouterr().err.count("trained and scored already") == 2
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("model.safetensors")} == before

    # As a run that was stopped in the last fold leaves it: that one goes on, the other is not touched.
    for newest in folder.glob("folds/without-paint/checkpoints/step-00000004"):
        (newest / "manifest.json").unlink()
    (folder / "leave_one_source_out.json").write_text(json.dumps({"sources": {"outline": scores["outline"]}}))
    assert status("fit", str(path)) == 0
    assert "fold 1 of 2, without outline: trained and scored already" in capsys.readouterr().err
    assert left_out_scores(folder) == scores

    # More steps: every fold and the run go on.
    assert status("fit", str(path), "train.steps=5") == 0
    assert set(steps_of(folder).values()) == {5}
    assert {row["steps"] for row in left_out_scores(folder).values()} == {5}


def test_what_is_read_from_the_folds(values, tmp_path, capsys):
    for source in values["data"]["sources"].values():
        source["where"] = {"hash": [0, 0.5]}
    run = xfer.fit(values, quiet=True)
    folder = run.folder
    assert status("evaluate", str(folder)) == 0
    said = capsys.readouterr().out
    assert "leave one source out" in said
    assert "neon" in said  # and the test source, by the model of all sources
    assert status("evaluate", str(folder), "data.test={}") == 0
    assert "leave one source out" in capsys.readouterr().out
    assert status("evaluate", str(folder / "folds" / "without-paint")) == 0
    assert "paint" in capsys.readouterr().out

    assert status("quantize", str(folder), "quantize.bits=2") == 0
    said, card = capsys.readouterr().out, (folder / "bundle" / "card.md").read_text()
    for text in (said, card):
        assert "each source, by a model that never saw it" in text
        assert "neon" not in text.partition("bytes:")[0].partition("layer |")[0]
    compared = compare_folds(folder, replace(run.recipe, {"quantize.bits": 2}))
    assert compared is not None
    scores = run.left_out
    assert {name: right.sum() for name, right in compared.first.items()} == {
        name: row["correct"] for name, row in scores.items()
    }
    assert f"{100 * compared.second['paint'].mean():.1f} %" in said
    other = compare_folds(folder, replace(run.recipe, {"quantize.bits": 8}))
    assert other is not None
    assert any((other.second[name] != right).any() for name, right in compared.second.items())

    assert status("report", str(folder)) == 0
    page = (folder / "report.html").read_text()
    assert "Leave one source out" in page
    assert f"{100 * scores['paint']['accuracy']:.1f} %" in page

    for manifest in (folder / "folds" / "without-paint").rglob("manifest.json"):
        manifest.unlink()
    assert status("quantize", str(folder)) == 2
    assert "the run without paint is not trained to its end" in capsys.readouterr().err
    assert status("quantize", str(folder), "data.validation=0") == 0
    assert "the test sources" in capsys.readouterr().out


def test_faults_of_all_folds_are_found_before_the_first_is_trained(values):
    assert len(prepare_folds(Recipe.model_validate(values))) == 2
    values["data"]["sources"]["paint"]["where"] = {"classes": ["circle", "square"]}
    values["data"]["sources"]["outline"]["where"] = {"classes": ["star", "cross"]}
    recipe = Recipe.model_validate(values)
    with pytest.raises(ConfigError) as caught:
        xfer.fit(recipe, quiet=True)
    for source in SOURCES:
        assert f"without {source}: data.sources.{source}: shares no class with the model" in str(caught.value)
    assert not recipe.folder.exists()
