"""`xfer labels` and `data.labels`: from pairs that are proposed to a model of one label space."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import xfer
from shards.config import DataConfig
from shards.format.manifest import read_manifest, write_manifest
from shards.loading.open import open_data
from shards.loading.source import Source
from shards.settings import load
from tests.xfer.command import status
from xfer.begin import initial_model
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.labels import annotated, sets_of
from xfer.outcomes import outcomes_on
from xfer.prepare import load_document, prepare
from xfer.transfer.features import seen_by

NAMES = {"circle": "Circles", "star": "stella", "cross": "x_shape"}  # what outline calls its classes here


def renamed(folder: Path, out: Path, name: Callable[[str], str]) -> str:
    """A built data set with other names for its classes."""
    out.mkdir(parents=True)
    for file in folder.iterdir():
        if not file.name.endswith(".json"):
            (out / file.name).symlink_to(file)
    manifest = read_manifest(folder, "train")
    write_manifest(out, replace(manifest, classes=tuple(map(name, manifest.classes))))
    return str(out)


@pytest.fixture
def values(pretrained, shards_root, tmp_path):
    """paint has circle, square, star; outline has Circles, stella, x_shape; neon, which is tested on, has all."""
    outline = renamed(shards_root / "outline", tmp_path / "outline", NAMES.__getitem__)
    pretrained["data"]["sources"]["outline"]["path"] = outline
    pretrained["transfer"] = {"mode": "feature"}
    return pretrained


@pytest.fixture
def recipe(values, tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    return "recipe.yaml"


def decide(path: str, *pairs: tuple[str, str, str], **more: str) -> str:
    """A file of verdicts on classes of paint and outline."""
    said = [{"a": {"paint": a}, "b": {"outline": b}, "verdict": verdict, **more} for a, verdict, b in pairs]
    Path(path).write_text(yaml.safe_dump({"pairs": said}))
    return path


SAME = ("circle", "same", "Circles"), ("star", "same", "stella")


def test_pairs_are_proposed_and_none_is_decided(recipe, capsys):
    assert status("labels", "propose", recipe, "--out", "new/labels.yaml", "--images", "60") == 0
    told = capsys.readouterr().out
    found = yaml.safe_load(Path("new/labels.yaml").read_text())["pairs"]
    assert {"a": {"outline": "Circles"}, "b": {"paint": "circle"}, "proposed": "same", "verdict": "undecided"} in found
    assert {one["verdict"] for one in found} == {"undecided"}
    assert any("neon" in one["b"] or "neon" in one["a"] for one in found), "test sources are compared by name"
    line = next(line for line in told.splitlines() if "outline: Circles" in line and "paint: circle" in line)
    assert line.split()[4] == "spelling"
    assert "%" in line, "what the images say"
    neon = next(line for line in told.splitlines() if "neon: circle" in line)
    assert "%" not in neon, "images of test sources are not looked at"
    page = Path("new/labels.html").read_text()
    assert page.count('alt="outline: Circles"') >= 4
    assert 'src="http' not in page


def test_verdicts_that_stand_in_the_file_are_kept(recipe):
    assert status("labels", "propose", recipe, "--images", "20") == 0
    text = Path("labels.yaml").read_text()
    decided = text.replace("verdict: undecided", "verdict: different", 1)
    Path("labels.yaml").write_text(decided)
    assert status("labels", "propose", recipe, "--images", "20") == 0
    again = yaml.safe_load(Path("labels.yaml").read_text())["pairs"]
    assert sum(one["verdict"] == "different" for one in again) == 1
    Path("labels.yaml").write_text("pairs: [1]")
    assert status("labels", "propose", recipe) == 2
    assert Path("labels.yaml").read_text() == "pairs: [1]", "what is there is not lost"


def test_without_weights_names_alone_are_compared(recipe, values, capsys):
    values["model"] = {"branches": {"only": {"backbone": "resnet10"}}}
    values["transfer"] = {}
    Path("bare.yaml").write_text(yaml.safe_dump(values))
    assert status("labels", "propose", "bare.yaml") == 0
    told = capsys.readouterr().out
    assert "by name only: no branch has weights" in told
    assert "outline: Circles" in told


def test_check_shows_the_space_and_counts_what_is_undecided(recipe, capsys):
    decide("labels.yaml", SAME[0], ("star", "undecided", "stella"))
    assert status("labels", "check", "labels.yaml", recipe) == 0
    told = capsys.readouterr().out
    assert "neon, outline: Circles, paint" in " ".join(told.split())
    assert "1 pair: same" in told
    assert "1 pair: undecided" in told


def test_check_and_a_run_tell_every_fault_at_once(recipe, capsys):
    decide("labels.yaml", ("circel", "same", "Circles"), ("star", "same", "stella"), ("star", "same", "x_shape"))
    for words in (("labels", "check", "labels.yaml", recipe), ("fit", recipe, "data.labels=labels.yaml")):
        assert status(*words) == 2
        told = capsys.readouterr().err
        assert "pairs.0.a: paint has no class 'circel'; did you mean 'circle'?" in told
        assert "`x_shape` and `stella` of outline would be one class" in told
    Path("labels.yaml").write_text("pairs: [{a: {paint: star}, verdict: joined}]")
    assert status("labels", "check", "labels.yaml", recipe, "data.sources.gone.path=gone") == 2
    told = capsys.readouterr().err
    assert "pairs.0.b: required" in told
    assert "verdict: must be" in told
    assert "data.sources.gone" in told
    assert status("fit", recipe, "data.labels=none.yaml", "train.steps=0") == 2
    told = capsys.readouterr().err
    assert "data.labels: " in told
    assert "none.yaml: no such file" in told
    assert "train.steps" in told, "a fault hides none of the others"


@pytest.mark.usefixtures("fast")
def test_classes_that_are_the_same_are_one_of_the_model_and_it_is_as_if_they_were_called_so(
    recipe, values, shards_root, tmp_path, capsys
):
    decide("labels.yaml", *SAME)
    run = xfer.fit(recipe, {"data.labels": "labels.yaml", "name": "joined"}, quiet=True)
    assert xfer.load(run.folder).classes == ("circle", "square", "star", "x_shape")
    assert "look the same" not in capsys.readouterr().err
    plain = {"circle": "circle", "star": "star", "cross": "x_shape"}
    values["data"]["sources"]["outline"]["path"] = renamed(
        shards_root / "outline", tmp_path / "plain", plain.__getitem__
    )
    other = xfer.fit({**values, "name": "plain"}, quiet=True)
    assert run.evaluate("test")["neon"].accuracy == other.evaluate("test")["neon"].accuracy
    kept = load(run.folder / "recipe.yaml", Recipe).data.labels
    assert kept is not None
    assert [pair.verdict for pair in kept.pairs] == ["same", "same"], "the run has the verdicts, not a path"
    Path("labels.yaml").unlink()
    assert run.evaluate()


@pytest.mark.usefixtures("fast")
def test_other_verdicts_are_another_run(recipe, capsys):
    decide("labels.yaml", *SAME)
    xfer.fit(recipe, {"data.labels": "labels.yaml"}, quiet=True)
    assert status("fit", recipe, "data.labels=labels.yaml") == 0
    decide("labels.yaml", SAME[0], ("star", "different", "stella"))
    capsys.readouterr()
    assert status("fit", recipe, "data.labels=labels.yaml") == 2
    assert "`star` of paint and `stella` of outline were same, are now different" in capsys.readouterr().err


def test_names_that_look_alike_and_pairs_that_are_undecided_are_told_where_a_run_begins(recipe, capsys):
    prepare(load_document(recipe, Recipe))
    told = capsys.readouterr().err
    assert "`Circles` of outline and `circle` of paint look the same: xfer labels propose RECIPE" in told
    decide("labels.yaml", ("circle", "undecided", "Circles"))
    prepare(load_document(recipe, Recipe, ["data.labels=labels.yaml"]))
    told = capsys.readouterr().err
    assert "look the same" not in told
    assert "data.labels: 1 pair undecided" in told


def test_filters_and_samples_go_by_a_sources_own_names_and_batches_by_those_of_the_space(values, tmp_path):
    where = {"path": values["data"]["sources"]["outline"]["path"], "where": {"classes": ["Circles", "stella"]}}
    values["data"]["sources"]["outline"] = where
    path = decide(str(tmp_path / "labels.yaml"), SAME[0], ("square", "different", "x_shape"))
    config = DataConfig.model_validate({**values["data"], "labels": path})
    data = open_data(config)
    assert data.classes == ("circle", "square", "star", "stella")
    (outline,) = [subset for subset in data.train if subset.name == "outline"]
    assert outline.classes == ("circle", "stella")
    assert set(outline.labels().tolist()) == {0, 3}
    assert {Source(outline)[i].label for i in range(len(outline.rows))} == {"circle", "stella"}
    assert outline.identity() == open_data(config.model_copy(update={"labels": None})).train[0].identity()


PARTS = ("circle", "part_of", "Circles"), ("square", "part_of", "Circles"), ("star", "same", "stella")


def test_a_class_with_parts_is_a_target_of_all_of_them_and_no_class_of_the_model(values, tmp_path):
    path = decide(str(tmp_path / "labels.yaml"), *PARTS)
    data = open_data(DataConfig.model_validate({**values["data"], "labels": path}))
    assert data.classes == ("circle", "square", "star", "x_shape")
    outline, paint = data.train
    assert outline.numbered_names == (*data.classes, "Circles")
    assert set(outline.labels().tolist()) == {4, 2, 3}
    assert set(paint.labels().tolist()) == {0, 1, 2}
    sets = sets_of(data.train)
    assert sets is not None
    assert sets[4].tolist() == [True, True, False, False]
    assert annotated(data.train, 4).tolist() == [[True] * 4, [True, True, True, False]]
    alone = open_data(DataConfig.model_validate({**values["data"], "labels": path, "validation": ("paint",)}))
    assert alone.classes == ("Circles", "star", "x_shape"), "no part is trained, so the class stays"
    assert set(pickle.loads(pickle.dumps(outline)).labels().tolist()) == {4, 2, 3}, "it goes to loader processes"


@pytest.mark.usefixtures("fast")
def test_an_answer_inside_the_set_is_right_wherever_it_is_counted(recipe, tmp_path, capsys):
    decide("labels.yaml", *PARTS)
    more = {"data.labels": "labels.yaml", "data.validation": 0.3}
    run = xfer.fit(recipe, more, quiet=True)
    model = xfer.load(run.folder)
    assert model.classes == ("circle", "square", "star", "x_shape")
    score = run.evaluate()["outline"]
    said = score.confusion["Circles"]
    assert set(said) <= set(model.classes)
    assert score.per_class["Circles"] == pytest.approx(
        (said.get("circle", 0) + said.get("square", 0)) / sum(said.values())
    )
    right = sum(said.get(name, 0) for name in ("circle", "square"))
    right += sum(score.confusion[name].get(name, 0) for name in ("star", "x_shape"))
    assert score.correct == right
    assert not [one for one in score.mistakes if one.truth == "Circles" and one.answer in ("circle", "square")]
    trained = open_model(run.folder)
    config = load(run.folder / "recipe.yaml", Recipe).data
    (outline,) = [one for one in open_data(config).validation if one.name == "outline"]
    found = outcomes_on({"it": trained.model}, [outline], config, trained.classes, "test")["it"]["outline"]
    assert (int(found.sum()), len(found)) == (score.correct, score.count)
    trains = xfer.fit(
        recipe, {**more, "name": "trains", "transfer.mode": "full", "data.augment.mixup": 0.2}, quiet=True
    )
    assert all(torch.isfinite(torch.tensor(row["losses"])).all() for row in trains.metrics if "losses" in row)
    assert status("evaluate", str(run.folder)) == 0
    assert "does not know" not in capsys.readouterr().out


def test_parts_are_refused_where_a_pixel_has_one_class(recipe, values, capsys):
    decide("labels.yaml", *PARTS)
    assert status("fit", recipe, "data.labels=labels.yaml", "model.head.kind=fcos", "model.fusion.width=32") == 2
    told = capsys.readouterr().err
    assert "part_of is for classifiers so far, for the head fcos" in told
    assert "`Circles` of outline" in told


def test_the_first_images_of_a_source_are_the_same_whatever_its_classes_are_called(recipe):
    decide("labels.yaml", *SAME)
    found = []
    for overrides in ([], ["data.labels=labels.yaml"]):
        read = load_document(recipe, Recipe, overrides)
        data = open_data(read.data)
        (seen,) = seen_by(initial_model(read, data)[0], [data.train[0]], [12], read.data)
        found.append(seen["only"].positions.tolist())
    assert found[0] == found[1], "features that are kept are of the same images"
