"""What is refused before training: sources a classifier cannot learn from, and another run's folder."""

from pathlib import Path

import pytest
import yaml

from shards.generate import generate
from shards.ingest.build import build
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.train import augment_faults
from shards.settings import ConfigError, parse, replace
from tests.shards.kinds import cells, street
from xfer import run
from xfer.begin import begin
from xfer.classes import label_notes
from xfer.config import Recipe
from xfer.engine import build_engine
from xfer.prepare import load_document, prepare


@pytest.fixture(scope="module")
def other_kinds(tmp_path_factory) -> Path:
    """Shards with boxes, with masks, of one class, and with names that nothing else has."""
    folder = tmp_path_factory.mktemp("kinds")
    cells(folder)
    street(folder)
    generate(
        folder / "drawn", {"paint": ["circle", "heart", "arrow"], "neon": ["arrow", "heart"]}, per_class=8, side=32
    )
    for style in ("paint", "neon"):
        build(folder / "drawn" / style, folder / style, processes=1)
    return folder


@pytest.fixture
def recipe(recipe_values) -> Recipe:
    return Recipe.model_validate(recipe_values)


def faults(recipe: Recipe) -> str:
    with pytest.raises(ConfigError) as caught:
        prepare(recipe)
    return str(caught.value)


@pytest.mark.parametrize("section", ["sources", "test"])
@pytest.mark.parametrize(("kind", "reason"), [("cells", "detection"), ("street", "segmentation")])
def test_sources_without_classes_are_refused_by_name_and_reason(recipe, other_kinds, section, kind, reason):
    text = faults(replace(recipe, {f"data.{section}.odd": {"path": str(other_kinds / kind)}}))
    assert f"data.{section}.odd" in text
    assert reason in text
    assert "paint" not in text


def test_a_source_without_classes_is_named_beside_other_faults_of_the_data(recipe, other_kinds):
    text = faults(replace(recipe, {"data.sources.odd.path": str(other_kinds / "cells"), "data.test.t.path": "none"}))
    assert "data.sources.odd" in text
    assert "detection" in text
    assert "none: no such folder" in text


def test_what_moves_pixels_and_not_boxes_is_refused_with_sources_that_have_boxes(recipe, other_kinds):
    data = replace(recipe, {"data.sources": {"odd": {"path": str(other_kinds / "cells")}}}).data
    subsets = open_data(data).train
    for name, value in (("policy", "trivial"), ("mixup", 0.2), ("cutmix", 1.0)):
        (fault,) = augment_faults(subsets, replace(data, {f"augment.{name}": value}))
        assert fault.startswith(f"data.augment.{name}: moves pixels, and not the boxes or masks that odd has")
    assert augment_faults(subsets, data) == []


def test_a_policy_with_decoding_on_the_gpu_is_refused_before_anything_starts(recipe):
    assert "data.augment.policy: works on images" in faults(
        replace(recipe, {"data.augment.policy": "rand", "data.decode": "gpu"})
    )


def test_a_source_with_one_class_teaches_nothing_and_is_refused(recipe):
    text = faults(replace(recipe, {"data.sources.paint.where": {"classes": ["star"]}}))
    assert "data.sources.paint: has only one class, star" in text


def test_two_names_of_which_one_occurs_are_refused_too(recipe, tmp_path):
    generate(tmp_path / "drawn", {"paint": ["circle", "star"]}, per_class=8, side=32)
    rows = [f"{path},circle" for path in sorted((tmp_path / "drawn" / "paint").rglob("*.jpg"))]
    (tmp_path / "t.csv").write_text("\n".join(["image,label", *rows]))
    from shards.sources import SourceOptions

    build(tmp_path / "t.csv", tmp_path / "t", SourceOptions(classes=("circle", "star")), processes=1)
    only = replace(recipe, {"data.sources": {"t": {"path": str(tmp_path / "t")}}, "data.test": {}})
    assert "all samples are of the class circle" in faults(only)


def test_a_test_source_that_shares_no_class_is_refused_with_both_lists(recipe, other_kinds):
    text = faults(replace(recipe, {"data.test.odd": {"path": str(other_kinds / "neon")}}))
    assert "data.test.odd: shares no class" in text
    assert "arrow, heart" in text
    assert "circle, cross, square, star" in text


def test_sources_that_share_no_class_are_said_at_the_start(recipe, other_kinds, capsys):
    prepare(replace(recipe, {"data.sources.odd": {"path": str(other_kinds / "neon")}}))
    note = capsys.readouterr().err
    assert "share no class" in note
    assert "odd (arrow, heart)" in note
    prepare(recipe)
    assert not capsys.readouterr().err


def test_sources_joined_by_a_third_share_classes():
    assert not label_notes({"a": ["x", "y"], "b": ["z", "w"], "c": ["y", "z"]})


def test_names_that_look_alike_are_said():
    sources = {"a": ["back_pack", "cat"], "b": ["Backpacks", "cat"], "c": ["cats", "Backpacks"]}
    (note,) = label_notes(sources)
    assert note.startswith("`back_pack` of a and `Backpacks` of b; `cat` of a and `cats` of c look the same: ")
    assert note.endswith("xfer labels propose RECIPE")
    listed = [frozenset((("b", "Backpacks"), ("a", "back_pack")))]
    (note,) = label_notes(sources, listed)
    assert "Backpacks" not in note, "a person was asked already"


def test_new_classes_are_refused_also_with_on_change_continue(recipe, other_kinds):
    begin(recipe)
    run.fit(recipe, Slot(), build_engine, lambda row: None)
    more = {"data.on_change": "continue", "data.sources.paint.path": str(other_kinds / "paint"), "data.test": {}}
    text = faults(replace(recipe, more))
    assert "data.sources.paint: has the classes arrow, heart" in text
    assert "circle, cross, square, star" in text
    fewer = {"data.on_change": "continue", "data.sources.paint.where": {"classes": ["circle", "square"]}}
    prepare(replace(recipe, fewer))


@pytest.mark.parametrize("section", ["train", "data"])
def test_a_bad_key_does_not_hide_what_is_wrong_with_data_and_weights(recipe_values, tmp_path, section):
    recipe_values[section]["stepz"] = 3
    recipe_values["model"]["branches"]["fine"]["weights"] = "/no/such.pth"
    recipe_values["data"]["sources"]["paint"]["path"] = "pain"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_values))
    with pytest.raises(ConfigError) as caught:
        load_document(tmp_path / "r.yaml", Recipe)
    text = str(caught.value)
    assert f"{section}.stepz: unknown key" in text
    assert "/no/such.pth" in text
    assert "pain: no such folder" in text


def test_a_model_to_begin_with_that_is_not_there_is_one_fault(recipe_values, tmp_path):
    recipe_values["model"] = {"from": str(tmp_path / "nowhere")}
    with pytest.raises(ConfigError) as caught:
        parse(recipe_values, Recipe)
    assert caught.value.faults == [f"model.from: no run and no bundle: {tmp_path / 'nowhere'}"]
