"""`xfer compare`: models on the same images, whatever their classes and image sizes."""

import json
from pathlib import Path

import numpy as np
import pytest

import xfer
from tests.xfer.command import status
from xfer.compare import model_names
from xfer.outcomes import Comparison
from xfer.tasks.average_precision import BoxScore


@pytest.fixture
def runs(recipe_values) -> dict[str, Path]:
    """Three runs: hardly trained, trained, and trained on one source only, at another image size."""
    recipe_values["model"] = {"branches": {"only": {"backbone": "resnet10"}}, "fusion": {"width": 16}}
    recipe_values["train"] |= {"learning_rate": 0.02, "freeze_batchnorm": False, "evaluate_every": 100}
    made = {
        "little": {"train.steps": 1},
        "much": {"train.steps": 25},
        "other": {"train.steps": 2, "data.sources": {"paint": {"path": "paint"}}, "data.image_size": 40},
    }
    return {
        name: xfer.fit({**recipe_values, "name": name}, changes, quiet=True).folder for name, changes in made.items()
    }


def test_each_is_compared_with_the_first_on_the_same_images(runs, capsys):
    for name in ("little", "much"):
        assert status("evaluate", str(runs[name]), "--split", "test") == 0
    counted = {n: json.loads((runs[n] / "evaluation.json").read_text())["test"]["neon"] for n in ("little", "much")}
    before = (runs["little"] / "evaluation.json").read_bytes()
    capsys.readouterr()
    assert status("compare", str(runs["little"]), str(runs["much"]), "--split", "test") == 0
    told = capsys.readouterr().out
    row = next(line for line in told.splitlines() if line.startswith("  neon")).split()
    shown = [f"{100 * counted[name]['accuracy']:.1f}" for name in ("little", "much")]
    assert [row[1], row[2], row[4]] == ["120", *shown]
    gained = 100 * (counted["much"]["accuracy"] - counted["little"]["accuracy"])
    assert float(row[6]) == pytest.approx(gained, abs=0.06)
    assert (runs["little"] / "evaluation.json").read_bytes() == before, "nothing is recorded"


def test_images_of_classes_that_one_does_not_know_are_left_out_for_all(runs, capsys):
    assert status("compare", str(runs["much"]), str(runs["other"]), str(runs["little"])) == 0
    told = capsys.readouterr().out
    assert "neon: 30 images of other classes are not compared" in told  # `other` knows no cross
    lines = told.splitlines()
    overview = lines[lines.index("accuracy on test:") + 1 :][:4]
    assert [line.split()[0] for line in overview] == ["model", "much", "other", "little"]
    counts = {line.split()[1] for line in lines if line.startswith("  neon ") and "%" in line}
    assert counts == {"90"}
    assert "note: other was made from other data than much: it may have seen these images" in told


def test_any_built_data_and_what_is_refused(runs, shards_root, tmp_path, capsys):
    one, two = str(runs["little"]), str(runs["much"])
    assert status("compare", one, two, "--data", str(shards_root / "neon")) == 0
    assert "accuracy on data:" in capsys.readouterr().out
    for words, fault in (
        ((one,), "models: must be at least 2 run folders or bundles, got 1"),
        ((one, one), "a model is given twice"),
        ((one, str(tmp_path / "none")), f"{tmp_path / 'none'}: no such folder"),
        ((one, two, "--data", str(shards_root / "neon"), "--split", "test"), "leave out --split"),
        ((one, two, "--data", str(tmp_path)), str(tmp_path)),
    ):
        assert status("compare", *words) == 2
        assert fault in capsys.readouterr().err


def test_names_are_the_shortest_ends_that_tell_models_apart():
    assert model_names([Path("/a/b"), Path("/a/c")]) == ["b", "c"]
    assert model_names([Path("/runs/a/bundle"), Path("/runs/b/bundle"), Path("/runs/b")]) == [
        "a/bundle", "b/bundle", "runs/b"
    ]  # fmt: skip


@pytest.mark.parametrize("images", [3, 100])
def test_what_has_too_few_images_for_an_interval_says_so(images):
    """Detectors on so few images that some resamples of them have no object: their difference is not a number there."""
    few = images == 3
    resampled = np.random.default_rng(0).normal(0.5, 0.01, 200)
    resampled[:2] = np.nan if few else 0.5
    scores = [BoxScore(0.5 + gain, count=images, resampled=resampled + gain) for gain in (0, 0.1)]
    found = Comparison("test", {"cells": (scores[0],)}, {"cells": (scores[1],)}, ("a", "b"), "AP")
    assert ("too few to tell" in found.text()) == few
    assert ("too few of these images" in found.verdict()) == few
    assert ("gains" in found.verdict()) != few
