"""Every key of `model`, and what it does: a key that did nothing would be found here."""

from typing import Any, get_args

import pytest
import torch

from shards.settings import ConfigError, Strict, load, replace
from xfer.config import Recipe
from xfer.model import FusionModel, build_model
from xfer.model_config import RESNETS, Depth, ModelConfig

IMAGES = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def model(branch: dict[str, Any] | None = None, **keys: Any) -> FusionModel:
    values = {"branches": {"a": {"backbone": "resnet10", **(branch or {})}}, "fusion": {"width": 16}, **keys}
    return build_model(ModelConfig.model_validate(values), 5, seed=0)


@pytest.mark.parametrize("backbone", RESNETS)
def test_backbone_names_the_resnet_that_is_built(backbone):
    layers = [m for m in model({"backbone": backbone}).branches["a"].modules() if isinstance(m, torch.nn.Conv2d)]
    shortcuts = sum(layer.kernel_size == (1, 1) and layer.stride == (2, 2) for layer in layers)
    depth = int(backbone.removeprefix("resnet"))
    assert depth - 1 <= len(layers) <= depth + 3  # the classifier counts, shortcuts do not
    assert shortcuts >= 3


def test_size_is_the_pixels_the_branch_sees():
    for size, expected in ((None, 48), (32, 32)):
        one, seen = model({"size": size}).eval(), []
        one.branches["a"].register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(inputs[0].shape[-2:]))
        one(IMAGES)
        assert seen == [(expected, expected)]


@pytest.mark.parametrize("stage", get_args(Depth))
def test_train_from_is_the_first_stage_that_is_trained(stage):
    branch = model({"train_from": stage}).branches["a"]
    stages = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    frozen = {"all": [], "none": stages}.get(stage, stages[: stages.index(stage)] if stage in stages else [])
    for name, parameter in branch.named_parameters():
        assert parameter.requires_grad is (name.split(".")[0] not in frozen), name


def test_width_is_the_channels_of_a_projected_branch():
    for width in (8, 24):
        one = model(fusion={"width": width}).eval()
        assert one.features(IMAGES)[0].shape == (2, width)
        assert one.head.in_features == width


def test_dropout_drops_in_training_only():
    torch.manual_seed(0)
    one = model(dropout=0.5)
    features = [torch.ones(2, 16)]
    assert not torch.equal(one.train().classify(features), one.classify(features))
    assert torch.equal(one.eval().classify(features), one.classify(features))
    plain = model(dropout=0).train()
    assert torch.equal(plain.classify(features), plain.classify(features))


def test_output_and_name_are_the_run_folder(recipe_values, tmp_path):
    recipe = Recipe.model_validate({**recipe_values, "output": str(tmp_path / "out"), "name": "one"})
    assert recipe.folder == tmp_path / "out" / "one"


def leaves(kind: type[Strict], values: dict[str, Any], path: str = "") -> list[str]:
    """Dotted paths of the sections that hold keys, in plain values of a document."""
    found = [path]
    for name, value in values.items():
        if isinstance(value, dict) and (value or name in ("cache", "augment")):
            found += leaves(kind, value, f"{path}.{name}" if path else name)
    return found


def test_an_unknown_key_is_refused_in_every_section(recipe_values):
    recipe = Recipe.model_validate(recipe_values)
    sections = [path for path in leaves(Recipe, recipe.model_dump(mode="json")) if path]
    open_ended = {"data.sources", "data.test", "model.branches", "quantize.groups", "model.fusion.weights"}
    assert {"data", "data.cache", "data.augment", "model.fusion", "train", "quantize"} <= set(sections)
    for path in set(sections) - open_ended:
        with pytest.raises(ConfigError, match="unknown key"):
            replace(recipe, {f"{path}.no_such_key": 1})


def test_the_faults_of_all_sections_come_together(recipe_values, tmp_path):
    import yaml

    recipe_values["data"]["image_size"] = True
    recipe_values["model"]["dropout"] = 1
    recipe_values["train"]["steps"] = 0
    recipe_values["quantize"]["bits"] = 9
    recipe_values["name"] = "a b"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe_values))
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "r.yaml", Recipe)
    assert [fault.split(",")[0] for fault in caught.value.faults] == [
        "name: must be made of letters",
        "data.image_size: must be a whole number",
        "model.dropout: must be less than 1",
        "train.steps: must be at least 1",
        "quantize.bits: must be 2",
    ]
