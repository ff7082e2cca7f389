"""A packed detector or segmenter answers as the run does, says what packing cost, and is compared with others."""

import copy
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from shards.settings import ConfigError
from tests.xfer.tasks.runs import BOXES, KINDS, MEASURES, fit, verb
from xfer.bundle import open_model
from xfer.config import QuantizeConfig, Recipe
from xfer.model import build_model
from xfer.model_config import ModelConfig
from xfer.quant.fold import fold
from xfer.quantize import fold_model
from xfer.surface import Run, load

each = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def packed(trained, tmp_path_factory):
    """Of a kind, a copy of its run with a bundle of 8 bits in it."""
    made = {}

    def once(kind: str):
        if kind not in made:
            folder = tmp_path_factory.mktemp("packed") / "run"
            shutil.copytree(trained(kind).folder, folder)
            made[kind] = folder, Run(folder).quantize(bits=8)
        return made[kind]

    return once


@each
def test_a_bundle_reads_back_with_the_same_answers_wherever_it_lies(packed, scenes, tmp_path, kind):
    folder, model = packed(kind)
    assert set(model.bits.values()) == {8}
    away = tmp_path / "away"
    shutil.copytree(folder / "bundle", away)
    read = load(away)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first, second = copy.deepcopy(model.model)(images), read.model(images)
    for one, other in [(first, second)] if kind not in BOXES else [(first[name], second[name]) for name in first]:
        assert torch.equal(one, other)
    picture = Image.open(scenes / "neon" / "images" / "00001.jpg").convert("RGB").resize((140, 90))
    of_run, of_bundle = load(folder).predict(picture)[0], read.predict(picture)[0]
    if kind in BOXES:
        assert abs(len(of_run.scores) - len(of_bundle.scores)) <= 10
        assert of_bundle.scores[0] == pytest.approx(of_run.scores[0].item(), abs=0.05)
    else:
        assert (of_run == of_bundle).float().mean() > 0.95
    assert read.weights_bytes < 0.4 * load(folder).weights_bytes


@each
def test_its_card_and_the_comparison_speak_of_the_measure(packed, kind, capsys):
    folder, _ = packed(kind)
    card = (folder / "bundle" / "card.md").read_text()
    assert MEASURES[kind] in card
    assert "ccuracy" not in card.replace("pixel accuracy", "")
    verb("compare", folder, folder / "bundle")
    shown = capsys.readouterr().out
    assert f"{MEASURES[kind]} on validation:" in shown
    assert "95 % interval" in shown
    assert shown.count(" to ") + shown.count("too few to tell") >= 3  # of each source and their mean
    assert "accuracy" not in shown


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_a_bundle_keeps_how_images_come_to_their_size(values, tmp_path, scenes, resize):
    given = values("fpn")
    given["data"]["resize"] = resize
    given["train"] |= {"steps": 1, "evaluate_every": 1, "save_every": 1}
    recipe = Recipe.model_validate(given)
    fit(recipe)
    Run(recipe.folder).quantize(bits=8, out=tmp_path / "bundle")
    assert f"resize: {resize}" in (tmp_path / "bundle" / "recipe.yaml").read_text()
    trained = open_model(tmp_path / "bundle")
    assert trained.resize == resize
    wide = Image.fromarray(np.zeros((40, 120, 3), np.uint8))
    (answer,) = load(tmp_path / "bundle").predict(wide)
    assert answer.shape == (40, 120)


@pytest.mark.parametrize("kind", ["fcos", "faster_rcnn"])
def test_a_fold_that_changes_a_model_is_refused(kind, monkeypatch):
    """Proposals have no fixed order; what they come from has."""
    config = ModelConfig.model_validate(
        {"branches": {"a": {"backbone": "resnet10"}}, "fusion": {"width": 32}, "head": {"kind": kind}}
    )
    model = build_model(config, 3, 0)
    images = [torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))]
    fold_model(model, QuantizeConfig(), images)

    def wrongly(model):
        folded = fold(model)
        with torch.no_grad():
            folded.get_submodule("projections.a.C4.0").bias.add_(0.01)
        return folded

    monkeypatch.setattr("xfer.quantize.fold", wrongly)
    with pytest.raises(ConfigError, match="folding changed the outputs"):
        fold_model(model, QuantizeConfig(), images)
