"""What does not go with a detector or a segmenter is refused before anything is trained, naming what and why."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from shards.ingest.build import build
from shards.scenes import generate_scenes
from shards.settings import ConfigError, replace
from shards.sources.source import SourceOptions
from tests.xfer.tasks.conftest import Values
from tests.xfer.tasks.runs import BOXES, EVERY, verb
from xfer.config import Recipe
from xfer.prepare import load_document, prepare


def faults(given: dict) -> list[str]:
    """Every fault of a recipe, of its schema or of its data."""
    with pytest.raises((ConfigError, ValueError)) as caught:
        prepare(Recipe.model_validate(given))
    error = caught.value
    return list(error.faults) if isinstance(error, ConfigError) else [str(error)]


def one(found: list[str], *words: str) -> None:
    """Exactly one fault, with all the words."""
    assert len(found) == 1, found
    for word in words:
        assert word in found[0]


def add(given: dict, section: str, values: dict) -> dict:
    given.setdefault(section, {})
    given[section] |= values
    return given


KEYS = {
    "centre": ("fcos", "data", {"resize": "centre"}, ("data.resize", "letterbox or stretch", "fcos", "centre")),
    "centre, segmenter": ("fpn", "data", {"resize": "centre"}, ("data.resize", "letterbox or stretch", "fpn")),
    "smoothing": ("fcos", "train", {"label_smoothing": 0.1}, ("train.label_smoothing", "must be 0", "fcos", "0.1")),
    "balance": ("fpn", "data", {"balance": 0.5}, ("data.balance", "must be 0", "fpn")),
    "concat": ("fcos", "model.fusion", {"kind": "concat"}, ("fusion.kind", "wsum, gate", "fcos", "concat")),
    "concat, segmenter": ("lraspp", "model.fusion", {"kind": "concat"}, ("fusion.kind", "wsum, gate", "lraspp")),
    "width": ("fcos", "model.fusion", {"width": 48}, ("fusion.width", "multiple of 32", "48")),
    "dropout": ("fcos", "model", {"dropout": 0.1}, ("dropout", "fcos")),
    "anchors, smoothing": ("retinanet", "train", {"label_smoothing": 0.1}, ("train.label_smoothing", "retinanet")),
    "anchors, width": ("retinanet", "model.fusion", {"width": 48}, ("fusion.width", "multiple of 32", "retinanet")),
    "proposals, smoothing": (
        "faster_rcnn",
        "train",
        {"label_smoothing": 0.1},
        ("train.label_smoothing", "faster_rcnn"),
    ),
    "proposals, dropout": ("faster_rcnn", "model", {"dropout": 0.1}, ("dropout", "faster_rcnn")),
    "mixup": ("fpn", "data", {"augment": {"mixup": 0.2}}, ("mixup", "boxes or masks")),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_mean_nothing_for_a_head_are_refused_in_one_line(values: Values, name):
    kind, section, changes, words = KEYS[name]
    given = values(kind)
    at = given
    for part in section.split("."):
        at = at[part]
    at |= changes
    one(faults(given), *words)


@pytest.mark.parametrize("mode", ["feature", "quant"])
def test_modes_that_fit_a_classifier_are_refused(pretrained_values: Values, mode):
    given = add(pretrained_values("fpn"), "transfer", {"mode": mode})
    one(faults(given), "transfer.mode", "full or staged", "fpn", mode, "train_from: none")


def test_a_teacher_is_refused(values: Values, trained):
    given = add(values("fcos"), "train", {"teacher": {"from": str(trained("fcos").folder)}})
    assert any("train.teacher: must be left out for the head fcos" in fault for fault in faults(given))


def test_fusion_weights_by_left_out_sources_are_refused(pretrained_values: Values):
    given = pretrained_values("fpn")
    given["model"]["branches"]["other"] = dict(given["model"]["branches"]["main"])
    given["model"]["fusion"]["weights"] = "left_out"
    one(faults(given), "fusion.weights: left_out", "linear probe", "fpn")


@pytest.mark.parametrize("kind", ["linear", *EVERY])
def test_sources_of_another_task_are_refused_by_name(values: Values, scene_shards, shards_root, kind):
    """Sources of all three tasks in one recipe: those that the head cannot use are named, and no other."""
    paths = {
        "classes": shards_root / "paint",
        "boxes": scene_shards / "boxes" / "paint",
        "masks": scene_shards / "masks" / "paint",
    }
    fit = {"linear": "classes", **dict.fromkeys(BOXES, "boxes")}.get(kind, "masks")
    given = values(kind)
    given["data"] |= {"sources": {name: {"path": str(path)} for name, path in paths.items()}}
    found = faults(given)
    wrong = sorted(set(paths) - {fit})
    assert len(found) == 2, found
    for fault, name in zip(sorted(found), wrong, strict=True):
        assert f"data.sources.{name}" in fault
        assert str(paths[name]) in fault
        assert {"classes": "classification", "boxes": "detection", "masks": "segmentation"}[name] in fault
    if kind == "linear":
        assert "model.head.kind: fcos or retinanet" in found[0] + found[1]
        assert "model.head.kind: fpn or lraspp or deeplabv3" in found[0] + found[1]


def test_sources_of_different_classes_are_refused_by_a_softmax_over_background(values: Values):
    """Of what is trained on; a source that is only scored may lack classes."""
    given, other = values("faster_rcnn"), {"path": "neon"}
    prepare(Recipe.model_validate(add(given, "data", {"test": {"other": other}})), say=False)
    lists = "neon has circle, square; other has circle, star; paint has circle, square"
    given["data"]["sources"]["other"] = given["data"]["test"].pop("other")
    one(faults(given), "data.sources", "faster_rcnn", lists, "model.head.kind: fcos or retinanet")
    given["model"]["head"]["kind"] = "fcos"
    prepare(Recipe.model_validate(given), say=False)


def test_fusion_weights_are_learned_on_sources_of_the_same_classes(values: Values):
    given = values("faster_rcnn")
    given["model"]["branches"]["other"] = {"backbone": "resnet10"}
    given["model"]["fusion"]["learn"] = "held_out"
    given["data"]["sources"]["other"] = {"path": "neon"}
    given["data"] |= {"validation": ["other"], "set_apart": 0.5}
    one(faults(given), "data.sources", "other has circle, star", "fcos or retinanet")


def test_a_detector_of_two_stages_is_not_exported(trained, tmp_path):
    with pytest.raises(ConfigError) as caught:
        verb("export", trained("faster_rcnn").folder, tmp_path / "model.onnx", "--onnx")
    one(list(caught.value.faults), "faster_rcnn, which cannot be exported", "fcos and retinanet")
    assert not list(tmp_path.iterdir())


def pictures(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for number in range(count):
        drawn = np.random.default_rng(number).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(drawn).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("crowds", [False, True])
def test_a_source_without_any_box_that_counts_is_refused(values: Values, tmp_path, crowds):
    images = pictures(tmp_path / "images")
    rows = [{"id": i, "file_name": f"{i}.png", "width": 56, "height": 40} for i in range(6)]
    box = {"bbox": [4, 4, 20, 20], "category_id": 1, "iscrowd": 1}
    boxes = [{"id": i, "image_id": i, **box} for i in range(6)] if crowds else []
    content = {"images": rows, "annotations": boxes, "categories": [{"id": 1, "name": "circle"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    build(tmp_path / "coco.json", tmp_path / "none", SourceOptions(images=images), processes=1)
    why = "all 6 boxes" if crowds else "no box has a class"
    for part, end in (("sources", "nothing to learn"), ("test", "nothing to score")):
        given = values("fcos")
        given["data"] |= {part: {**given["data"].get(part, {}), "none": {"path": str(tmp_path / "none")}}}
        one(faults(given), f"data.{part}.none", why, str(tmp_path / "none"), end)


def test_a_source_whose_masks_are_all_void_is_refused(values: Values, tmp_path):
    images, masks = pictures(tmp_path / "images"), tmp_path / "masks"
    masks.mkdir()
    for number in range(6):
        Image.fromarray(np.full((40, 56), 2, np.uint8)).save(masks / f"{number}.png")
    options = SourceOptions(masks=masks, classes=("background", "circle"), void=2)
    build(images, tmp_path / "void", options, processes=1)
    given = values("fpn")
    given["data"]["sources"]["void"] = {"path": str(tmp_path / "void")}
    one(faults(given), "data.sources.void", "no pixel has a class", "nothing to learn")


def test_a_test_source_that_shares_no_class_is_refused(values: Values, tmp_path):
    generate_scenes(tmp_path, {"outline": ["cross"]}, count=6, side=48)
    options = SourceOptions(images=tmp_path / "outline" / "images")
    build(tmp_path / "outline" / "coco.json", tmp_path / "crosses", options, processes=1)
    given = values("fcos")
    given["data"]["test"] = {"crosses": {"path": str(tmp_path / "crosses")}}
    one(faults(given), "data.test.crosses", "shares no class", "cross", "circle")


def test_features_of_a_dense_model_are_refused(pretrained_values: Values, trained, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(pretrained_values("fcos")))
    for given, task in ((path, "detection"), (trained("fpn").folder, "segmentation")):
        with pytest.raises(ConfigError) as caught:
            verb("features", given)
        one(list(caught.value.faults), str(given), f"is for {task}")


def test_masks_of_a_detector_are_refused(trained, tmp_path):
    with pytest.raises(ConfigError, match="only a segmenter makes masks"):
        verb("predict", trained("fcos").folder, tmp_path, "--masks", tmp_path / "masks")


def test_models_of_two_tasks_are_not_compared(trained):
    with pytest.raises(ConfigError, match="is for detection") as caught:
        verb("compare", trained("fcos").folder, trained("fpn").folder)
    assert "is for segmentation" in str(caught.value)


def test_another_resize_of_a_run_that_has_begun_is_one_fault(trained):
    """A letterbox is part of what a run is and of the plan of its data; it is said once."""
    with pytest.raises(ConfigError) as caught:
        prepare(replace(trained("fcos"), {"data.resize": "stretch"}))
    one(list(caught.value.faults), "data.resize: was letterbox, is now stretch")
    assert "choose another name" in str(caught.value)


@pytest.mark.parametrize(
    ("head", "overrides", "expected"),
    [
        ({"kind": "fcoss"}, (), 1),  # what it is for is not known: the data says nothing against it
        ({"kind": "fcos", "widht": 3}, (), 1),
        ("fcos", (), 1),
        (None, ("model.head.kind=fcos", "model.fusion.widht=3"), 1),
        (None, ("model.fusion.widht=3",), 3),  # a classifier: both of its sources have boxes
        ({"kind": "fpn", "widht": 3}, (), 3),
    ],
    ids=["unknown", "another key", "a word", "on the command line", "a classifier", "a segmenter"],
)
def test_a_fault_of_the_head_does_not_blame_the_data_for_it(values: Values, tmp_path, head, overrides, expected):
    given = values("fcos")
    given["model"]["head"] = head
    if head is None:
        del given["model"]["head"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(ConfigError) as caught:
        load_document(tmp_path / "recipe.yaml", Recipe, overrides)
    assert len(caught.value.faults) == expected, caught.value.faults
    assert sum("data.sources" in fault for fault in caught.value.faults) == expected - 1
