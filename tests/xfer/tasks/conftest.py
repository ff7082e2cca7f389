"""Drawn scenes, built once for both tasks, and recipes over them that train in seconds."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shards.ingest.build import build
from shards.scenes import generate_scenes
from shards.sources.source import SourceOptions
from tests.xfer.tasks.runs import ALIKE, BOXES, fit, verb
from xfer.bundle import Trained, open_model
from xfer.config import Recipe
from xfer.surface import Run

STYLES = {"paint": ["circle", "square"], "neon": ["circle", "star"]}
Values = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """<style>/images, coco.json and masks, 24 pictures each; neither square nor all of one size."""
    folder = tmp_path_factory.mktemp("scenes")
    generate_scenes(folder, STYLES, count=24, side=72)
    return folder


@pytest.fixture(scope="session")
def scene_shards(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, built: boxes/<style> and masks/<style>, whose classes are circle with square, and circle with star."""
    root = tmp_path_factory.mktemp("scene-shards")
    for style, shapes in STYLES.items():
        inside, names = scenes / style, ("background", *sorted(shapes))
        boxes = SourceOptions(images=inside / "images")
        masks = SourceOptions(masks=inside / "masks", classes=names)
        build(inside / "coco.json", root / "boxes" / style, boxes, shard_mb=0.02, processes=1)
        build(inside / "images", root / "masks" / style, masks, shard_mb=0.02, processes=1)
    return root


@pytest.fixture(scope="session")
def branch_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a resnet10, as a file."""
    import torch
    from safetensors.torch import save_file

    from xfer.backbone import Branch

    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        save_file(Branch("resnet10").state_dict(), path)
    return path


def recipe_values(kind: str, root: Path, output: Path) -> dict[str, Any]:
    """A recipe of one branch on both sources, as plain values; where these must have the same classes they are halves
    of one.
    """
    sources: dict[str, Any] = {name: {"path": name} for name in STYLES}
    if kind in ALIKE:
        halves = {"paint": (0, 0.5), "neon": (0.5, 1)}
        sources = {name: {"path": "paint", "where": {"hash": half}} for name, half in halves.items()}
    return {
        "name": "tiny",
        "output": str(output / "runs"),
        "data": {
            "root": str(root / ("boxes" if kind in BOXES else "masks")),
            "sources": sources,
            "validation": 0.25,
            "image_size": 64,
            "batch_size": 6,
            "workers": 0,
        },
        "model": {
            "branches": {"main": {"backbone": "resnet10"}},
            "fusion": {"width": 32},
            "head": {"kind": kind},
        },
        "train": {
            "steps": 4,
            "warmup": 1,
            "learning_rate": 0.01,
            "log_every": 1,
            "save_every": 2,
            "evaluate_every": 4,
            "freeze_batchnorm": True,
        },
        "quantize": {"calibration": 8},
    }


@pytest.fixture
def values(scene_shards: Path, tmp_path: Path) -> Values:
    """Of a head's kind, the values of a recipe. Runs go to tmp_path/runs."""
    return lambda kind: recipe_values(kind, scene_shards, tmp_path)


@pytest.fixture
def pretrained_values(values: Values, branch_weights: Path) -> Values:
    """The same with weights in the branch, and BatchNorm as the recipe has it by itself then: still."""

    def make(kind: str) -> dict[str, Any]:
        given = values(kind)
        given["model"]["branches"]["main"]["weights"] = str(branch_weights)
        del given["train"]["freeze_batchnorm"]
        given["train"]["select"] = "last"
        return given

    return make


@pytest.fixture(scope="session")
def trained(scene_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Recipe]:
    """Of a head's kind, the recipe of a run that has learned something: made once. What tests write goes elsewhere."""
    made: dict[str, Recipe] = {}

    def once(kind: str) -> Recipe:
        if kind not in made:
            values = recipe_values(kind, scene_shards, tmp_path_factory.mktemp("trained"))
            values["train"] |= {"steps": 16, "evaluate_every": 16, "save_every": 16, "freeze_batchnorm": False}
            values["train"] |= {"optimizer": "adamw", "learning_rate": 0.003}
            made[kind] = Recipe.model_validate(values)
            fit(made[kind])
        return made[kind]

    return once


class Bundled(NamedTuple):
    run: Path
    bundle: Path
    trained: Trained


@pytest.fixture(scope="session")
def bundled(trained, shards_root, tmp_path_factory) -> Callable[[str], Bundled]:
    """Of a head's kind, a bundle in its run's folder: 8 bits, 4 in layer3, and layer1 in float. Made once."""
    made: dict[str, Bundled] = {}

    def once(kind: str) -> Bundled:
        if kind not in made:
            folder = tmp_path_factory.mktemp("export") / "run"
            shutil.copytree(
                _classifier(shards_root, folder.parent) if kind == "linear" else trained(kind).folder, folder
            )
            Run(folder).quantize(bits=8, groups={"layer3": 4, "layer1": 32})
            made[kind] = Bundled(folder, folder / "bundle", open_model(folder / "bundle"))
        return made[kind]

    return once


def _classifier(root: Path, output: Path) -> Path:
    """The folder of a run that is trained."""
    values = recipe_values("fpn", root, output)
    values["data"] |= {"root": str(root), "sources": {"paint": {"path": "paint"}, "outline": {"path": "outline"}}}
    values["data"] |= {"image_size": 32, "batch_size": 24}
    values["model"]["head"] = {"kind": "linear"}
    values["train"] |= {"steps": 16, "evaluate_every": 16, "save_every": 16, "learning_rate": 0.02}
    values["train"]["freeze_batchnorm"] = False
    recipe = Recipe.model_validate(values)
    fit(recipe)
    return recipe.folder


@pytest.fixture(scope="session")
def in_float(bundled) -> Callable[[str], Path]:
    """Of a kind, the file in float in its bundle."""
    made: dict[str, Path] = {}

    def once(kind: str) -> Path:
        if kind not in made:
            verb("export", bundled(kind).bundle, "--onnx")
            made[kind] = bundled(kind).bundle / "model.onnx"
        return made[kind]

    return once
