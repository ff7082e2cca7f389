"""Networks of timm as branches: what a ResNet of ours does, they do, or the reason why not is said."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import xfer
from shards.settings import ConfigError, replace
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.model import build_model
from xfer.optimizer import build_optimizer, depth
from xfer.prepare import prepare

FEATURE = {"transfer.mode": "feature"}
NETS = ("resnet10t", "mobilenetv3_small_050", "regnety_002", "convnext_atto")


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.fixture
def recipe(recipe_values) -> Recipe:
    """One branch of timm, on one source."""
    recipe_values["data"] |= {"sources": {"neon": {"path": "neon"}}, "test": {}, "image_size": 64}
    recipe_values["model"] = {"branches": {"main": {"backbone": "timm/mobilenetv3_small_050"}}, "fusion": {"width": 16}}
    recipe_values["train"] |= {"steps": 1, "freeze_batchnorm": False}
    return Recipe.model_validate(recipe_values)


def of(recipe: Recipe, net: str, **branch) -> Recipe:
    return replace(recipe, {"model.branches": {"main": {"backbone": f"timm/{net}", **branch}}})


def faults(recipe: Recipe) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        prepare(recipe)
    return caught.value.faults


def test_without_timm_the_extra_to_install_is_said(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert faults(recipe) == ["model.branches.main: timm/mobilenetv3_small_050 needs timm: pip install 'xfer[timm]'"]


def test_a_backbone_is_one_of_ours_or_of_timm(recipe):
    with pytest.raises(
        ConfigError, match=r"backbone: must be 'resnet10', .* or 'timm/NAME', got 'resnet19'; did you mean"
    ):
        replace(recipe, {"model.branches.main.backbone": "resnet19"})
    with pytest.raises(ConfigError, match="got 'timm/'"):
        replace(recipe, {"model.branches.main.backbone": "timm/"})
    with pytest.raises(ConfigError, match=r"main.stem: must be left out for timm/mobilenetv3_small_050"):
        replace(recipe, {"model.branches.main.stem": "small"})


@pytest.mark.parametrize("net", NETS)
def test_it_is_trained_packed_and_begun_with(timm, recipe, net, tmp_path):
    """Plain BatchNorm, one with its activation inside, squeeze and excitation, and no BatchNorm at all."""
    run = xfer.fit(of(recipe, net), quiet=True)
    bundle = run.quantize(bits=8)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, packed = run.model.model(images), bundle.model(images)
    assert (ours - packed).norm() < 0.2 * ours.norm()
    norms = [name for name, part in bundle.model.named_modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms == (["branches.main.net.bn1"] if net == "resnet10t" else []), "that one follows a stem of three"
    again = replace(recipe, {"model": {"from": str(bundle.path)}, "name": "again", "transfer.mode": "quant"})
    quant = xfer.fit(again, quiet=True)
    assert quant.recipe.model.branches["main"].backbone == f"timm/{net}"
    theirs, mine = (load_file(path / "weights.safetensors") for path in (bundle.path, quant.quantize().path))
    assert all(torch.equal(value, mine[name]) for name, value in theirs.items() if not name.startswith("head"))


@pytest.mark.parametrize("net", ["resnet10t", "mobilenetv3_small_050"])
def test_a_packed_one_is_unfolded_exactly_and_trained_on(timm, recipe, net):
    bundle = xfer.fit(of(recipe, net), quiet=True).quantize(bits=8)
    again = replace(recipe, {"model": {"from": str(bundle.path)}, "name": "again"})
    start = open_model(xfer.fit(replace(again, {**FEATURE, "name": "start"}), quiet=True).folder).model
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        ours, theirs = start.branches["main"](images)["C5"], bundle.model.branches["main"](images)["C5"]
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=2e-3)
    assert [row["step"] for row in xfer.fit(again, quiet=True).metrics if "accuracy" in row] == [0, 1]


@pytest.mark.parametrize(
    ("net", "train_from", "first"),
    [
        ("resnet10t", "layer3", "layer3"),
        ("mobilenetv3_small_050", "layer3", "blocks.2"),
        ("mobilenetv3_small_050", "layer4", "blocks.4"),
        ("convnext_atto", "layer1", "stages_0"),
    ],
)
def test_stages_are_what_lies_between_its_maps(timm, recipe, net, train_from, first):
    from xfer.timm_branch import TimmBranch

    branch = TimmBranch(f"timm/{net}", train_from).train()
    trained = [name for name, parameter in branch.net.named_parameters() if parameter.requires_grad]
    assert trained[0].startswith(f"{first}.")
    every = [name for name, _ in branch.net.named_parameters()]
    assert trained == every[every.index(trained[0]) :]
    assert not any(p.requires_grad for p in TimmBranch(f"timm/{net}", "none").parameters())
    for name, part in branch.net.named_modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            assert part.training is any(other.startswith(f"{name}.") for other in trained), name


def test_weights_of_the_whole_network_load_and_those_of_another_do_not(timm, recipe, tmp_path):
    from xfer.timm_branch import TimmBranch

    whole = timm.create_model("convnext_atto")
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in whole.state_dict().items()}, path)
    branch = TimmBranch("timm/convnext_atto")
    branch.load_weights(path)
    assert torch.equal(branch.net.stages_0.blocks[0].conv_dw.weight, whole.stages[0].blocks[0].conv_dw.weight)
    run = xfer.fit(replace(of(recipe, "convnext_atto", weights=str(path)), FEATURE), quiet=True)
    assert [row["step"] for row in run.metrics] == [0]
    (fault,) = faults(replace(of(recipe, "resnet10t", weights=str(path)), {"name": "other"}))
    assert "not the weights of a timm/resnet10t: " in fault


def test_images_are_normalised_as_the_network_expects(timm):
    from xfer.backbone import MEAN, STD
    from xfer.timm_branch import TimmBranch

    branch = TimmBranch("timm/mobilevitv2_050").eval()  # mean 0, deviation 1
    image = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    seen = []
    branch.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    branch((image - mean) / std)
    torch.testing.assert_close(seen[0], image)


def test_what_does_not_fit_is_said_before_training(timm, recipe):
    (fault,) = faults(of(recipe, "mobilnetv3_small_050"))
    assert "has no model mobilnetv3_small_050" in fault
    (fault,) = faults(of(recipe, "vit_tiny_patch16_224"))
    assert fault.startswith("model.branches.main: timm/vit_tiny_patch16_224 takes no images of 64 px")
    vit = replace(of(recipe, "vit_tiny_patch16_224", weights="DEFAULT"), {"data.image_size": 224})
    (fault,) = faults(replace(vit, {"data.train_size": 160}))
    assert fault.startswith("model.branches.main: timm/vit_tiny_patch16_224 takes no images of 160 px")
    staged = replace(vit, {"transfer.mode": "staged", "train.steps": 5})
    for one in (staged, replace(vit, {"model.branches.main.train_from": "layer3"})):
        (fault,) = faults(one)
        assert fault.startswith("model.branches.main: timm/vit_tiny_patch16_224 has no stages")
    one = {"data.batch_size": 1, "data.image_size": 32}
    assert any("size above 32" in fault for fault in faults(replace(recipe, one)))


def test_layers_without_a_name_of_a_resnets_are_the_group_other(timm, recipe):
    run = xfer.fit(recipe, quiet=True)
    bits = run.quantize(bits=8, groups={"other": 5, "project": 6}).bits
    assert {name.partition(".")[0]: width for name, width in bits.items()} == {
        "branches": 5,
        "projections": 6,
        "head": 8,
    }
    with pytest.raises(ConfigError, match=r"quantize.groups: unknown layer groups layer4; this model has other"):
        run.quantize(groups={"layer4": 4})


@pytest.mark.parametrize(("net", "stem"), [("resnet10t", 5), ("mobilenetv3_small_050", 5), ("convnext_atto", 4)])
def test_layer_decay_lowers_the_rate_from_map_to_map(timm, recipe, net, stem):
    """`stem`: its depth, below the first map if the network has one there."""
    model = build_model(of(recipe, net).model, 4, 0)
    depths = {name.removeprefix("branches.main.net."): depth(model, name) for name, _ in model.named_parameters()}
    assert depths["head.weight"] == 0
    order = [deep for name, deep in depths.items() if not name.startswith(("head", "projections", "fusion"))]
    assert order == sorted(order, reverse=True)
    assert (order[0], order[-1]) == (stem, 1)
    assert set(order) == set(range(1, stem + 1))
    groups = build_optimizer(model, "sgd", 1.0, 0.9, 0.0, layer_decay=0.5).param_groups
    assert {group["lr"] for group in groups} == {0.5**deep for deep in range(stem + 1)}


def test_a_network_whose_maps_are_no_ends_has_one_rate(timm, recipe):
    model = build_model(of(recipe, "vit_tiny_patch16_224").model, 4, 0)
    assert {depth(model, name) for name, _ in model.named_parameters() if name.startswith("branches")} == {1}
