"""`xfer features`: what it compares, what it says about test data, and that training finds what it looked at."""

import json
from pathlib import Path

import pytest
import yaml

import xfer
from shards.loading.open import open_data
from shards.loading.state import shares
from shards.settings import load, parse
from tests.xfer.command import status
from xfer.config import Recipe
from xfer.transfer.pairs import Pair, Transferability


@pytest.fixture
def values(pretrained):
    """Three sources; tested on a part of one's data set that is not trained on."""
    pretrained["data"]["sources"]["neon"] = {"path": "neon", "where": {"hash": [0, 0.6]}}
    pretrained["data"]["test"] = {"later": {"path": "neon", "where": {"hash": [0.6, 1]}}}
    pretrained["transfer"] = {"mode": "feature"}
    return pretrained


@pytest.fixture
def recipe(values, tmp_path) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


def kept(path: Path) -> dict:
    return json.loads(path.read_text())


def test_a_sources_head_scores_as_a_run_that_is_trained_on_this_source_alone(recipe, values, tmp_path, capsys):
    out = tmp_path / "new" / "found.json"
    assert status("features", recipe, "data.validation=leave_one_source_out", "--out", str(out)) == 0
    rows = {(pair["source"], pair["target"]): pair for pair in kept(out)["pairs"]}
    assert len(rows) == 6, "no source is compared with itself"
    test = {name: source for name, source in values["data"]["sources"].items() if name != "paint"}
    alone = {"name": "alone", "data.sources": {"paint": {"path": "paint"}}, "data.test": test, "data.validation": 0}
    for target, score in xfer.fit(values, alone, quiet=True).evaluate("test").items():
        pair = rows["paint", target]
        assert score.count == pair["shared"] < pair["images"]  # paint has no crosses
        assert pair["linear"] == pytest.approx(score.accuracy, abs=0.02)
    told = capsys.readouterr().out
    line = next(line for line in told.splitlines() if line.split()[:2] == ["outline", "paint"])
    pair = rows["paint", "outline"]
    assert line.split()[2:5] == ["90", "60", f"{100 * pair['knn']:.1f}"]
    assert line.split()[-2:] == [f"{pair['log_evidence']:.3f}", f"{pair['h_score']:.3f}"]
    assert out.with_suffix(".svg").read_text().startswith("<svg")


@pytest.mark.usefixtures("fast")
def test_training_finds_what_was_looked_at_and_the_other_way_round(recipe, values, looks):
    assert status("features", recipe) == 0
    assert len(looks) == 6  # three sources, and the part of each that is held out
    xfer.fit(values, quiet=True)
    assert len(looks) == 6
    assert status("features", recipe, "data.validation=leave_one_source_out") == 0
    assert len(looks) == 9, "each whole source, once: it is source and target"
    xfer.fit({**values, "name": "folds"}, {"data.validation": "leave_one_source_out"}, quiet=True)
    assert len(looks) == 9


@pytest.mark.usefixtures("fast")
def test_test_sources_are_compared_with_only_when_they_are_asked_for(recipe, tmp_path, shards_root, capsys):
    out = tmp_path / "found.json"
    warning = "cannot be reported on it"
    assert status("features", recipe, "--out", str(out)) == 0
    assert {pair["target"] for pair in kept(out)["pairs"]} == {"neon", "outline", "paint"}
    assert warning not in capsys.readouterr().out
    for words in (("--split", "test"), ("--target", "later")):
        assert status("features", recipe, *words, "--out", str(out)) == 0
        assert {pair["target"] for pair in kept(out)["pairs"]} == {"later"}
        assert f"labels of later were looked at: a model that is trained by these scores {warning}" in (
            capsys.readouterr().out
        )
    assert status("features", recipe, "--target", str(shards_root / "outline"), "--out", str(out)) == 0
    assert {pair["source"]: pair["same"] for pair in kept(out)["pairs"]} == {
        "neon": False, "outline": True, "paint": False
    }  # fmt: skip
    told = capsys.readouterr().out
    assert "outline: 75 of 90 images are trained on too" in told
    assert warning in told


@pytest.mark.usefixtures("fast")
def test_the_block_it_prints_is_read_by_a_recipe_and_favours_the_better_source(recipe, values, tmp_path, capsys):
    out = tmp_path / "found.json"
    assert status("features", recipe, "--split", "test", "--out", str(out)) == 0
    told = capsys.readouterr().out
    block = yaml.safe_load(told[told.index("data:\n") :].split("\n\n")[0])
    scores = {name: source["score"] for name, source in block["data"]["sources"].items()}
    assert scores == pytest.approx(kept(out)["scores"], abs=5e-4)
    assert scores["neon"] == 0, "a part of the data set the target is a part of says nothing"
    before = parse(values, Recipe).data
    for name, source in block["data"]["sources"].items():
        values["data"]["sources"][name] |= source
    values["data"]["tilt"] = block["data"]["tilt"]
    after = parse(values, Recipe).data
    subsets = open_data(before).train
    gained = [b / a for a, b in zip(shares(subsets, before), shares(subsets, after), strict=True)]
    by_name = dict(zip((subset.name for subset in subsets), gained, strict=True))
    assert sorted(by_name, key=lambda name: by_name[name]) == sorted(scores, key=lambda name: scores[name])
    assert scores["outline"] == pytest.approx(-scores["paint"], abs=1e-3)


@pytest.mark.usefixtures("fast")
def test_of_a_run_the_branches_are_the_trained_ones_and_the_tables_lie_in_its_folder(recipe_values, tmp_path):
    found = []
    for name, steps in (("little", 1), ("much", 4)):
        run = xfer.fit({**recipe_values, "name": name}, {"train.steps": steps}, quiet=True)
        before = load(run.folder / "recipe.yaml", Recipe)
        assert status("features", str(run.folder), "--images", "60") == 0
        assert load(run.folder / "recipe.yaml", Recipe) == before
        found.append(kept(run.folder / "features.json"))
        assert (run.folder / "features.svg").is_file()
    assert {branch["branch"] for branch in found[0]["branches"]} == {"coarse", "fine"}
    assert max(pair["images"] for one in found for pair in one["pairs"]) <= 60
    assert found[0]["branches"] != found[1]["branches"]
    assert (tmp_path / "runs" / ".features").is_dir()


@pytest.mark.usefixtures("fast")
def test_images_bounds_what_is_looked_at(recipe, looks, tmp_path):
    assert status("features", recipe, "--images", "10", "--out", str(tmp_path / "found.json")) == 0
    assert {count for _, count in looks} == {10}
    assert {pair["images"] for pair in kept(tmp_path / "found.json")["pairs"]} == {10}


def test_what_is_wrong_is_said_at_once_and_nothing_is_written(recipe, recipe_values, tmp_path, capsys):
    bare = tmp_path / "bare.yaml"
    (tmp_path / "empty").mkdir()
    recipe_values["model"] = {"branches": {"only": {"backbone": "resnet10"}}}
    recipe_values["data"]["sources"]["gone"] = {"path": "gone"}
    bare.write_text(yaml.safe_dump(recipe_values))
    cases = {
        (str(bare),): ("no branch has weights", "data.sources.gone"),
        (recipe, "--images", "1", "--out", "x.txt"): ("--images: must be at least 2, got 1", "--out x.txt: must be"),
        (recipe, "--target", "here", "--split", "test"): ("--target: names what is compared with",),
        (recipe, "data.validation=0"): ("data.validation: 0 holds nothing out", "--target FOLDER"),
        (recipe, "data.test={}", "--split", "test"): ("data.test has no sources",),
        (recipe, "--target", str(tmp_path / "none")): (str(tmp_path / "none"),),
        (str(tmp_path / "none.yaml"),): ("no such file",),
        (str(tmp_path / "empty"),): ("neither a run folder",),
    }
    for words, faults in cases.items():
        assert status("features", *words) == 2, words
        told = capsys.readouterr().err
        assert all(fault in told for fault in faults), told
    assert not (tmp_path / "runs").exists()


def pair(source: str, target: str, knn: float, shared: int = 100, same: bool = False) -> Pair:
    return Pair(source, target, 100, shared, knn if shared else None, None, 0.0, 0.0, same)


def test_scores_are_above_or_below_the_mean_of_a_target_and_a_source_without_its_classes_is_not_favoured():
    hard = [pair("a", "hard", 0.3), pair("b", "hard", 0.1), pair("c", "hard", 0.0, shared=0)]
    easy = [pair("a", "easy", 0.9), pair("b", "easy", 0.8), pair("c", "easy", 1.0, shared=50)]
    own = [pair("a", "a", 1.0, same=True), pair("b", "a", 0.5), pair("c", "a", 0.5)]
    found = Transferability([*hard, *easy, *own], []).scores
    third = 0.9 - (0.9 + 0.8 + 0.5) / 3
    assert found["a"] == pytest.approx((0.3 - 0.4 / 3 + third) / 2)
    assert found["c"] == pytest.approx((-0.4 / 3 + third - 0.4 + 0) / 3)
    assert Transferability([pair("a", "t", 0.5), pair("b", "t", 0.5, same=True)], []).scores == {}
    assert Transferability([pair("a", "t", 0.5), pair("b", "t", 0.5, same=True)], []).block() == ""
