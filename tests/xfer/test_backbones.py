"""What every backbone has to do: all entries of BACKBONES are tested, later ones too."""

from typing import get_args

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from xfer.backbone import BACKBONES, STAGES, Branch, stride
from xfer.model_config import RESNETS, Depth

SIZE = 40  # not a power of two: sides are rounded up


@pytest.fixture(autouse=True)
def _drawn_alike():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE)


def test_the_configuration_names_every_backbone():
    assert set(RESNETS) == set(BACKBONES)


@pytest.mark.parametrize(("name", "stem"), [(name, "imagenet") for name in BACKBONES] + [("resnet10", "small")])
def test_maps_have_the_channels_and_sides_that_are_promised(name, stem):
    branch = Branch(name, stem=stem).eval()
    with torch.no_grad():
        maps = branch(images())
    assert list(maps) == ["C2", "C3", "C4", "C5"]
    for level, found in zip((2, 3, 4, 5), maps.values(), strict=True):
        side = -(-SIZE // stride(level, stem))
        assert found.shape == (2, branch.channels[level], side, side)
        assert found.isfinite().all()


@pytest.mark.parametrize(
    ("name", "train_from"),
    [(name, "layer4") for name in BACKBONES] + [("resnet10", stage) for stage in get_args(Depth) if stage != "layer4"],
)
def test_frozen_stages_stand_still_with_their_statistics_and_all_others_train(name, train_from):
    branch = Branch(name, train_from).train()
    frozen = {"all": 0, "none": 6}.get(train_from)
    still = ["conv1", "bn1", *STAGES][: STAGES.index(train_from) + 2 if frozen is None else frozen]
    before = {key: value.clone() for key, value in branch.state_dict().items()}
    features = branch(images())["C5"].square().sum()
    trained = [p for p in branch.parameters() if p.requires_grad]
    assert features.requires_grad == bool(trained)
    if trained:
        features.backward()
        torch.optim.SGD(branch.parameters(), lr=0.1, weight_decay=0.1).step()
    for key, value in branch.state_dict().items():
        assert torch.equal(value, before[key]) == (key.split(".")[0] in still), key


@pytest.mark.parametrize("name", BACKBONES)
def test_published_weights_load_by_their_names(name, tmp_path):
    """The file has a classifier, which is left out. Its features are torchvision's."""
    published, path = BACKBONES[name]().eval(), tmp_path / "weights.safetensors"
    save_file(published.state_dict(), path)
    branch = Branch(name)
    branch.load_weights(path)
    theirs, seen = nn.Sequential(*list(published.children())[:-2]), images()
    with torch.no_grad():
        assert torch.equal(branch.eval()(seen)["C5"], theirs(seen))
    other = "resnet34" if name != "resnet34" else "resnet18"
    with pytest.raises(ValueError, match=rf"not the weights of a {other}: .*\d+ tensors? (is|are) "):
        Branch(other).load_weights(path)


def test_a_file_of_other_things_than_tensors_is_refused_by_what_it_holds(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"optimizer": {"momentum": 0.9}, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"must hold tensors by name, got optimizer, epoch"):
        Branch("resnet10").load_weights(path)


def test_the_weights_in_a_training_checkpoint_are_found(tmp_path):
    path, trained, branch = tmp_path / "checkpoint.pth", Branch("resnet10"), Branch("resnet10")
    wrapped = {f"module.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"model": wrapped, "epoch": 3}, path)
    branch.load_weights(path)
    assert torch.equal(branch.conv1.weight, trained.conv1.weight)
