"""`xfer quantize --weights`: a network of elsewhere becomes a bundle that says what it says, or why not is said."""

import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from shards.cli.build import build
from shards.loading.open import open_data
from shards.settings import ConfigError
from tests.xfer.command import status
from xfer.backbone import BACKBONES
from xfer.bundle import open_model
from xfer.imported import imported

CLASSES = ("cat", "dog", "owl")
SMALL = ("data.image_size=32", "quantize.calibration=8")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = BACKBONES["resnet10"](num_classes=3).eval()
    for norm in (one for one in net.modules() if isinstance(one, torch.nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 images in three class folders."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir()
        for number in range(8):
            pixels = draw.integers(0, 256, (40, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def flat(folder, tmp_path_factory):
    """The same images without classes."""
    root = tmp_path_factory.mktemp("flat")
    for image in folder.glob("*/*.png"):
        shutil.copy(image, root / f"{image.parent.name}-{image.name}")
    return root


@pytest.fixture
def weights(network, tmp_path):
    file = tmp_path / "net.safetensors"
    save_file(network.state_dict(), file)
    return file


def quantize(weights, images, out, *more: str, arch: str = "resnet10") -> int:
    options = ("--weights", str(weights), "--arch", arch, "--images", str(images), "--out", str(out))
    return status("quantize", *options, *SMALL, *more)


def test_in_float_it_says_what_torchvision_says(network, weights, folder):
    images = torch.randint(0, 256, (4, 3, 64, 64))
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with imported(weights, "resnet10", folder, None, SMALL) as (trained, _), torch.inference_mode():
        expected = network((images / 255 - mean) / std)
        assert torch.allclose(trained.model(images), expected, atol=1e-4)
        assert trained.classes == CLASSES
        assert len(trained.model.state_dict()) == len(network.state_dict()) + 1  # alpha: no projection is added


def test_it_becomes_a_bundle_like_any_other(weights, folder, tmp_path, capsys):
    out = tmp_path / "b"
    assert quantize(weights, folder, out, "--budget", "2MB") == 0
    said = capsys.readouterr().out
    assert "accuracy on images that nothing was calibrated on" in said
    bundle = open_model(out)
    assert bundle.weights_bytes <= 2_000_000
    assert bundle.classes == CLASSES
    assert bundle.image_size == 32
    card = (out / "card.md").read_text()
    assert "- weights from: net.safetensors (sha256 " in card
    assert "trained on:" not in card
    assert status("predict", str(out), str(folder / "cat")) == 0
    assert not yaml.safe_load((out / "recipe.yaml").read_text())["trained_on"]
    options = {"out": tmp_path / "shards", "processes": 1}
    build(folder, **options)
    assert status("evaluate", str(out), "--data", str(options["out"])) == 0
    assert quantize(weights, options["out"], tmp_path / "of-shards") == 0


def test_images_without_classes_measure_agreement_with_the_model_in_float(weights, flat, tmp_path, capsys):
    assert quantize(weights, flat, tmp_path / "b") == 0
    said = capsys.readouterr().out
    assert "agreement on images that nothing was calibrated on, with the answers in float:" in said
    assert "100.0 %" in said
    assert "Agreement on images" in (tmp_path / "b" / "card.md").read_text()
    assert open_model(tmp_path / "b").classes == ("class 0", "class 1", "class 2")


def test_names_are_given_by_a_file_in_order_or_found_among_it(network, weights, folder, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("tom\nrex\nminerva\n")
    with imported(weights, "resnet10", folder, str(names), SMALL) as (trained, recipe):
        assert trained.classes == ("tom", "rex", "minerva")
        assert _counts(recipe) == {"tom": 8, "rex": 8, "minerva": 8}
    names.write_text("owl\nfox\ncat\ndog\n")
    four = tmp_path / "four.safetensors"
    save_file({**network.state_dict(), "fc.weight": torch.zeros(4, 512), "fc.bias": torch.zeros(4)}, four)
    with imported(four, "resnet10", folder, str(names), SMALL) as (trained, recipe):
        assert trained.classes == ("owl", "fox", "cat", "dog")
        assert _counts(recipe) == {"owl": 8, "fox": 0, "cat": 8, "dog": 8}


def _counts(recipe):
    data = open_data(recipe.data)
    labels = np.concatenate([subset.labels() for subset in (*data.train, *data.validation)])
    return {name: int((labels == place).sum()) for place, name in enumerate(data.classes)}


@pytest.mark.parametrize("prefix", ["module.", "module._orig_mod."])
def test_checkpoints_of_training_scripts_are_read(network, folder, tmp_path, prefix):
    file = tmp_path / "checkpoint.pth"
    state = {prefix + name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"state": [1, 2]}}, file)
    with imported(file, "resnet10", folder, None, SMALL) as (trained, _):
        assert torch.equal(trained.model.head.weight, network.fc.weight)


def test_networks_of_timm_are_taken_over_where_their_classifier_reads_the_last_map(folder, tmp_path):
    timm = pytest.importorskip("timm")
    file = tmp_path / "net.safetensors"
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), file)
    with imported(file, "timm/resnet10t", folder, None, SMALL) as (trained, _):
        assert trained.classes == CLASSES
    save_file(timm.create_model("mobilenetv3_small_050", num_classes=3).state_dict(), file)
    message = "--arch timm/mobilenetv3_small_050: its classifier reads something else"
    with pytest.raises(ConfigError, match=message), imported(file, "timm/mobilenetv3_small_050", folder, None, SMALL):
        pass


def test_weights_that_do_not_fit_are_refused_in_one_message(network, folder, tmp_path, capsys):
    state = network.state_dict()
    cases = {
        "not the weights of a resnet34: 120 tensors are missing, .*; they are those of a resnet10": (state, "resnet34"),
        "has no fc.weight, the classifier of a resnet10; they are those of a resnet10, without its fc": (
            {name: value for name, value in state.items() if not name.startswith("fc.")},
            "resnet10",
        ),
        "not finite: layer1.0.conv1.weight": (
            {**state, "layer1.0.conv1.weight": state["layer1.0.conv1.weight"] * torch.nan},
            "resnet10",
        ),
        "1 tensor is unknown, such as extra": ({**state, "extra": torch.zeros(1)}, "resnet10"),
        "--arch: must be resnet10, .* got resnet19": (state, "resnet19"),
    }
    for message, (given, arch) in cases.items():
        file = tmp_path / "net.pth"
        torch.save(given, file)
        with pytest.raises(ConfigError, match=message), imported(file, arch, folder, None, SMALL):
            pass
    file.write_bytes(b"no checkpoint")
    assert quantize(file, folder, tmp_path / "b") == 2
    assert "cannot be read as that" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_images_and_names_that_do_not_fit_are_refused(weights, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    shutil.copytree(folder / "cat", tmp_path / "two" / "cat")
    shutil.copytree(folder / "dog", tmp_path / "two" / "dog")
    cases = [
        (tmp_path / "empty", None, (), "no images in this folder"),
        (tmp_path / "none", None, (), "no such folder"),
        (tmp_path / "two", None, (), "has 2 class folders, and fc has 3 rows"),
        (folder, "a,b", (), "--classes: must name the 3 rows of fc, got 2 names"),
        (folder, None, ("model.fusion.width=8",), "model.fusion.width: follows from --weights"),
        (folder, None, ("data.imagesize=8",), "data.imagesize: follows from|unknown key"),
    ]
    for images, names, changes, message in cases:
        with (
            pytest.raises(ConfigError, match=message),
            imported(weights, "resnet10", images, names, (*SMALL, *changes)),
        ):
            pass


def test_a_run_and_weights_are_one_too_many(weights, folder, tmp_path, capsys):
    assert status("quantize", "runs/x", "--weights", str(weights)) == 2
    said = capsys.readouterr().err
    assert "runs/x: a run, or --weights; not both" in said
    assert "--out: missing" in said
    assert status("quantize") == 2
    assert "give a run folder, or --weights" in capsys.readouterr().err


def test_a_recipe_may_leave_its_only_branch_unprojected(recipe_values):
    from xfer.config import Recipe

    recipe_values["model"] = {"branches": {"a": {"backbone": "resnet10"}}, "fusion": {"width": None}}
    assert Recipe.model_validate(recipe_values).model.fusion.width is None
    recipe_values["model"]["branches"]["b"] = {"backbone": "resnet10"}
    with pytest.raises(
        ValueError, match=r"fusion\.width: none leaves the only branch of a classifier as it is; 2 branch"
    ):
        Recipe.model_validate(recipe_values)
