"""Images that the model a run begins with was trained on: not scored on without a word."""

import shutil
from pathlib import Path

import pytest
import yaml

import xfer
from shards.ingest.build import build
from shards.settings import ConfigError, replace
from xfer.__main__ import main
from xfer.bundle import trained_on
from xfer.config import Recipe
from xfer.history import against_probe
from xfer.prepare import prepare
from xfer.surface import Run

FEATURE = {"transfer.mode": "feature"}


@pytest.fixture(scope="module")
def first(shards_root, tmp_path_factory) -> Run:
    """Trained on four fifths of paint and on the hash range [0, 0.5] of outline, and its bundle, copied elsewhere."""
    outline = {"path": "outline", "where": {"hash": [0, 0.5]}}
    folder = tmp_path_factory.mktemp("first")
    values = {
        "name": "first",
        "output": str(folder),
        "data": {
            "root": str(shards_root),
            "sources": {"paint": {"path": "paint"}, "outline": outline},
            "validation": 0.2,
            "image_size": 32,
            "batch_size": 12,
            "workers": 0,
        },
        "model": {"branches": {"main": {"backbone": "resnet10"}}, "fusion": {"width": 16}},
        "train": {"steps": 1},
        "quantize": {"calibration": 8},
    }
    run = xfer.fit(values, quiet=True)
    run.quantize(bits=8)
    shutil.copytree(run.folder / "bundle", folder / "copied")
    return run


@pytest.fixture
def task(recipe_values, first) -> Recipe:
    """Another task on neon, from that run, tested on nothing."""
    recipe_values["data"] |= {"sources": {"neon": {"path": "neon"}}, "test": {}}
    recipe_values["model"] = {"from": str(first.folder)}
    return Recipe.model_validate(recipe_values)


def faults(recipe: Recipe) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepare(recipe)
    return caught.value.faults


@pytest.mark.parametrize("origin", ["run", "bundle", "branch", "next"])
def test_a_test_source_that_it_was_trained_on_is_refused(task, first, origin):
    """By the run, by a bundle that lies elsewhere, by a single branch, and by what was begun with the run."""
    copied = first.folder.parent / "copied"
    if origin == "bundle":
        task = replace(task, {"model.from": str(copied)})
    elif origin == "branch":
        branch = {"main": {"backbone": "resnet10", "weights": str(copied)}}
        task = replace(task, {"model.from": None, "model.branches": branch})
    elif origin == "next":
        second = xfer.fit(task, {**FEATURE, "name": "second"}, quiet=True)
        task = replace(task, {"model.from": str(second.folder), "data.sources": {"paint": {"path": "neon"}}})
    (fault,) = faults(replace(task, {"data.test": {"old": {"path": "paint"}}}))
    count = next(one.samples for one in trained_on(first.folder) if one.name == "paint")
    assert fault.startswith(
        f"data.test.old: {count} of 90 images are among what {task.model.taken_from[0]} was trained on"
    )
    assert "test on other images, or begin with a model that has not seen them" in fault


def test_what_was_cut_out_of_a_source_may_be_tested_on(task):
    seen = {"path": "outline", "where": {"hash": [0.4, 0.6]}}
    prepare(replace(task, {"data.test": {"rest": {"path": "outline", "where": {"hash": [0.5, 1]}}}}))
    assert len(faults(replace(task, {"data.test": {"some": seen}}))) == 1


def test_the_same_images_in_another_data_set_are_found_while_the_first_is_here(task, first, images, tmp_path, capsys):
    """A copied bundle does not know where its data was: that it could not look is said."""
    build(images / "paint", tmp_path / "again", name="again", shard_mb=1, processes=1, seed=5)
    other = {"data.test": {"again": {"path": str(tmp_path / "again")}}}
    for known in (first.folder, first.folder / "bundle"):
        assert "data.test.again" in faults(replace(task, {**other, "model.from": str(known)}))[0]
    prepare(replace(task, {**other, "model.from": str(first.folder.parent / "copied")}))
    assert "note: outline, paint, which" in capsys.readouterr().err


def test_sources_held_out_whole_are_refused_and_parts_of_them_said(task, capsys):
    both = {"data.sources": {"neon": {"path": "neon"}, "paint": {"path": "paint"}}}
    (fault,) = faults(replace(task, {**both, "data.validation": ["paint"]}))
    assert fault.startswith("data.validation.paint: ")
    assert "a fraction of each (0.1) in place of leave_one_source_out" in fault
    with pytest.raises(ConfigError, match=r"without paint: data.validation.paint: "):
        xfer.fit(replace(task, {**both, "data.validation": "leave_one_source_out"}), quiet=True)
    capsys.readouterr()
    prepare(replace(task, {**both, "data.validation": 0.2}))
    assert "note: validation" not in capsys.readouterr().err, "a fifth is cut at the same samples by every run"
    prepare(replace(task, {**both, "data.validation": 0.5}))
    assert "note: validation of paint: " in capsys.readouterr().err


def test_what_training_gained_says_that_its_images_were_trained_on_before(task, first, capsys):
    """At the end, in the report, and when the run goes on without that model."""
    both = {"data.sources": {"neon": {"path": "neon"}, "paint": {"path": "paint"}}, "data.validation": 0.5}
    copy = first.folder.parent / "moved"
    shutil.copytree(first.folder, copy)
    task = replace(task, {**both, "model.from": str(copy), "train.steps": 1})
    run = xfer.fit(task, quiet=True)
    said = "validation images that the model it began with was trained on: "
    assert said in against_probe(run.folder)
    assert " of paint; on them both the probe and what came of it look too good" in against_probe(run.folder)
    assert said in run.report().read_text()
    shutil.rmtree(copy)
    xfer.fit(task, {"train.steps": 2}, quiet=True)
    assert said in against_probe(run.folder)
    clean = xfer.fit(
        replace(task, {"name": "clean", "model.from": str(first.folder), "data.validation": 0.2}), quiet=True
    )
    assert said not in against_probe(clean.folder)


def test_every_run_keeps_it_and_a_bundle_says_it_without_a_path(first, shards_root, task):
    sources = {one.name: one for one in trained_on(first.folder)}
    assert sources["paint"].folder == str(shards_root / "paint")
    assert sources["outline"].where == ({"where": (0.0, 0.5)}, {"validation": (0.2, 1)})
    copied = first.folder.parent / "copied"
    assert [one.folder for one in trained_on(copied)] == [None, None]
    assert str(shards_root) not in (copied / "recipe.yaml").read_text()
    second = xfer.fit(task, FEATURE, quiet=True)
    assert [one.name for one in trained_on(second.folder)] == ["neon", "outline", "paint"]
    xfer.fit(task, {**FEATURE, "train.steps": 9}, quiet=True)
    assert len(trained_on(second.folder)) == 3
    (second.folder / "trained_on.json").write_text('{"sources": [{"name": 3}]}')
    (fault,) = faults(replace(task, {"model.from": str(second.folder), "name": "third"}))
    assert "trained_on.json: damaged" in fault


def test_an_older_bundle_does_not_say_it_and_is_taken_all_the_same(task, first, tmp_path):
    """Of a release before there were entries."""
    from xfer.checkpoint import write_manifest

    old = tmp_path / "old"
    shutil.copytree(first.folder / "bundle", old)
    recipe = yaml.safe_load((old / "recipe.yaml").read_text())
    del recipe["trained_on"]
    (old / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (old / "manifest.json").unlink()
    write_manifest(old, {"format": 1})
    prepare(replace(task, {"model.from": str(old), "data.test": {"old": {"path": "paint"}}}))


def test_a_copied_bundle_evaluated_on_its_training_images_says_so(first, shards_root: Path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(first.folder.parent / "copied"), "--data", str(shards_root / "paint")])
    assert not ended.value.code
    assert "were trained on: no held-out score" in capsys.readouterr().out
