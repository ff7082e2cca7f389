"""Fusion, branches and weights: what a user may rely on of the model."""

import urllib.error

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models import resnet18

from shards.settings import ConfigError
from xfer.fusion import FUSIONS, Gate, WeightedSum
from xfer.model import build_model, check_weights_exist
from xfer.model_config import ModelConfig


def two_branches(**fusion: object) -> ModelConfig:
    branches = {"fine": {"backbone": "resnet10"}, "coarse": {"backbone": "resnet10", "size": 32}}
    return ModelConfig.model_validate({"branches": branches, "fusion": {"width": 16, **fusion}})


IMAGES = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, float("nan")], [float("inf"), 1], [1]])
def test_weights_that_are_none_are_refused(weights):
    fusion = Gate([1, 1], 8)
    with pytest.raises(ValueError, match="2 numbers of at least 0, one of them above 0"):
        fusion.set_weights(weights)
    with pytest.raises(ValueError, match="at least 0"):
        WeightedSum([0, 0])


@pytest.mark.parametrize("kind", FUSIONS)
def test_every_fusion_trains_every_branch_and_the_head(kind):
    model = build_model(two_branches(kind=kind), 5, seed=0)
    model(IMAGES).square().sum().backward()
    assert model(IMAGES).shape == (2, 5)
    for name in ("fine", "coarse"):
        grad = model.branches[name].conv1.weight.grad  # pyright: ignore[reportAttributeAccessIssue]
        assert grad is not None
        assert grad.abs().sum() > 0


def test_weights_are_reported_by_branch_name():
    model = build_model(two_branches(weights={"fine": 3, "coarse": 1}), 5, seed=0)
    assert model.fusion_weights == pytest.approx({"fine": 0.75, "coarse": 0.25})


def test_same_seed_same_weights_and_the_global_random_state_is_left_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    one, two, other = (build_model(two_branches(), 5, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)


def test_frozen_stages_get_no_gradient_and_keep_their_statistics():
    config = ModelConfig.model_validate({"branches": {"a": {"backbone": "resnet10", "train_from": "layer4"}}})
    model = build_model(config, 5, seed=0).train()
    statistics = model.branches["a"].bn1.running_mean.clone()  # pyright: ignore[reportAttributeAccessIssue]
    model(IMAGES).sum().backward()
    assert model.branches["a"].layer3[0].conv1.weight.grad is None  # pyright: ignore[reportAttributeAccessIssue]
    assert model.branches["a"].layer4[0].conv1.weight.grad is not None  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(model.branches["a"].bn1.running_mean, statistics)  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_torchvision_weights_load_by_name(tmp_path, suffix):
    net = resnet18().eval()
    path = tmp_path / f"weights.{suffix}"
    save_file(net.state_dict(), path) if suffix == "safetensors" else torch.save(net.state_dict(), path)
    config = ModelConfig.model_validate({"branches": {"a": {"backbone": "resnet18", "weights": str(path)}}})
    branch = build_model(config, 5, seed=0).branches["a"].eval()
    images = torch.randn(1, 3, 64, 64)
    theirs = torch.nn.Sequential(*list(net.children())[:-2])(images)
    torch.testing.assert_close(branch(images)["C5"], theirs)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled!",))


def test_weights_that_do_not_fit_are_all_named_and_no_pickle_runs(tmp_path, capsys):
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    save_file(resnet18().state_dict(), tmp_path / "r18.safetensors")
    branches = {
        "evil": {"weights": str(tmp_path / "evil.pth")},
        "wrong": {"backbone": "resnet34", "weights": str(tmp_path / "r18.safetensors")},
        "gone": {"weights": str(tmp_path / "gone.pth")},
    }
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig.model_validate({"branches": branches}), 5, seed=0)
    assert len(caught.value.faults) == 3
    for name in branches:
        assert f"model.branches.{name}.weights" in str(caught.value)
    assert "unpickled!" not in capsys.readouterr().out


def test_the_order_of_branches_in_the_file_does_not_matter():
    one = two_branches()
    other = ModelConfig.model_validate({"branches": dict(reversed(one.branches.items())), "fusion": one.fusion})
    first, second = build_model(one, 5, seed=0), build_model(other, 5, seed=0)
    assert torch.equal(first.eval()(IMAGES), second.eval()(IMAGES))


def test_published_weights_load_by_name_from_torchvisions_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    net = torchvision.models.resnet18(num_classes=7)
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(net.state_dict(), tmp_path / "checkpoints" / url.rsplit("/", 1)[1])
    config = ModelConfig.model_validate({"branches": {"a": {"weights": "IMAGENET1K_V1"}}})
    assert check_weights_exist(config) == []
    assert torch.equal(build_model(config, 3, seed=0).state_dict()["branches.a.conv1.weight"], net.conv1.weight)


def test_published_weights_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    config = ModelConfig.model_validate(
        {"branches": {"a": {"weights": "IMAGENET1K_V2"}, "b": {"backbone": "resnet10", "weights": "DEFAULT"}}}
    )
    assert check_weights_exist(config) == [
        "model.branches.a.weights: must be IMAGENET1K_V1 or DEFAULT for resnet18, got IMAGENET1K_V2",
        "model.branches.b.weights: there are no published ones for resnet10, got DEFAULT",
    ]

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(ConfigError, match=r"branches.a.weights: IMAGENET1K_V1 of resnet18 could not be downloaded"):
        build_model(ModelConfig.model_validate({"branches": {"a": {"weights": "IMAGENET1K_V1"}}}), 3, seed=0)
