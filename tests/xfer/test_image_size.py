"""data.image_size is what the weights were made at, unless it is given: read once, where the recipe is read."""

import pytest
import yaml

import xfer
from shards.settings import ConfigError, dump, load, parse, replace
from tuning.config import Study
from xfer.config import Recipe
from xfer.folds import folds
from xfer.seeds import seeded


@pytest.fixture
def values(pretrained):
    """A recipe of one branch with weights, of no image size."""
    del pretrained["data"]["image_size"]
    return pretrained


def size(values, **branch) -> int:
    values["model"]["branches"]["only"] |= branch
    return parse(values, Recipe).data.image_size


def test_torchvisions_weights_are_of_224_and_without_weights_it_is_112(values):
    assert size(values) == 224
    assert size(values, weights="IMAGENET1K_V1", backbone="resnet50") == 224
    assert size(values, stem="small", weights="w.safetensors") == 112, "of a file for small images nothing is known"
    assert size(values, stem="imagenet", weights=None) == 112
    values["data"]["image_size"] = 48
    assert size(values, weights="DEFAULT") == 48


def test_timm_says_it_of_its_own(values):
    pytest.importorskip("timm")
    assert size(values, backbone="timm/mobilenetv3_small_050", weights="DEFAULT") == 224
    assert size(values, backbone="timm/resnet10t") == 176
    assert size(values, backbone="timm/nonesuch") == 112


def test_another_model_is_begun_with_at_its_size_and_the_largest_of_several_counts(values, recipe_values, capsys):
    run = xfer.fit({**values, "name": "first"}, {"data.image_size": 40, "transfer.mode": "feature"}, quiet=True)
    assert "begins as a linear probe" in (said := capsys.readouterr().err)
    assert "images of 40 px" in said
    bundle = run.quantize(bits=8)
    for begun in (run.folder, bundle.path):
        assert parse({**values, "model": {"from": str(begun)}}, Recipe).data.image_size == 40
        assert size(values, weights=str(begun)) == 40
        assert size(values, weights=f"{begun}:only") == 40
    values["model"]["branches"]["more"] = {"backbone": "resnet10", "weights": "DEFAULT"}
    assert size(values) == 224
    values["model"]["from"] = str(bundle.path)
    assert size(values) == 40


def test_a_recipe_that_was_read_is_complete_with_its_folds_seeds_and_trials(values, tmp_path):
    values["data"]["validation"] = "leave_one_source_out"
    recipe = parse(values, Recipe)
    (tmp_path / "weights.safetensors").rename(tmp_path / "moved.safetensors")
    assert yaml.safe_load(dump(recipe))["data"]["image_size"] == 224
    without = replace(recipe, {"model.branches.only.weights": None})
    assert without.data.image_size == 224, "what was read is not read again"
    for one in (*folds(recipe).values(), *seeded(recipe, 2)):
        assert one.data.image_size == 224
    study = {"job": {"recipe": values}, "space": {"data.image_size": {"choice": [32, 64]}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    job = load(tmp_path / "study.yaml", Study).job
    assert job.recipe.data.image_size == 224
    assert replace(job, {"data.image_size": 32}).recipe.data.image_size == 32


def test_a_run_of_another_size_is_not_gone_on_with(values):
    xfer.fit(values, {"data.image_size": 112, "transfer.mode": "feature", "data.validation": 0.1}, quiet=True)
    with pytest.raises(ConfigError, match=r"image_size.*112.*224"):
        xfer.fit(values, {"transfer.mode": "feature", "data.validation": 0.1}, quiet=True)


def test_a_run_of_another_training_size_is_another_run(recipe_values):
    run = xfer.fit(recipe_values, {"data.train_size": 24, "train.steps": 2, "name": "smaller"}, quiet=True)
    whole = xfer.fit(recipe_values, {"train.steps": 2}, quiet=True)
    assert _losses(run) != _losses(whole)
    assert run.model.image_size == run.quantize().image_size == 32
    with pytest.raises(ConfigError, match=r"data.train_size: was 24, is now None"):
        xfer.fit(recipe_values, {"train.steps": 3, "name": "smaller"}, quiet=True)


def _losses(run: xfer.Run) -> list[float]:
    return [loss for row in run.metrics for loss in row.get("losses", [])]
