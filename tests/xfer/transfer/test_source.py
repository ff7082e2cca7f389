"""model.from: a run or a bundle to begin with."""

import copy
from pathlib import Path

import pytest
import torch
import yaml

import xfer
from shards.loading.open import open_data
from shards.settings import ConfigError, load
from tests.xfer.transfer.test_stages import saved
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.quantize import calibration_images
from xfer.surface import Run

PARTS = ("branches.fine", "branches.coarse", "projections.fine", "projections.coarse", "fusion")


@pytest.fixture
def source(recipe_values) -> Run:
    """A trained run of two branches."""
    recipe_values["model"]["fusion"]["weights"] = {"fine": 0.7, "coarse": 0.3}
    recipe_values["train"] |= {"freeze_batchnorm": False, "learning_rate": 0.01}
    return xfer.fit({**recipe_values, "name": "source"}, quiet=True)


@pytest.fixture
def task(recipe_values, source):
    """Another task's recipe, from that run: its branches and fusion are not repeated."""
    recipe_values["data"] |= {"sources": {"neon": {"path": "neon"}}, "test": {}}
    recipe_values["model"] = {"from": str(source.folder)}
    recipe_values["train"] |= {"learning_rate": 1e-4, "select": "last"}
    return recipe_values


def test_branches_projections_and_fusion_are_taken_whole_and_the_head_is_new(task, source, capsys):
    run = xfer.fit(task, quiet=True)
    told = capsys.readouterr().err
    assert f"begins as {source.folder}" in told
    for line in ("branch fine    resnet10 and its projection taken", "fusion wsum    taken, coarse 0.300, fine 0.700"):
        assert line in told
    assert "new, 4 classes; that of source, 4 classes, left" in told
    begun, given = saved(run.folder)[2], None
    begun = {**begun}
    given = open_model(source.folder).model.state_dict()
    step0 = xfer.fit({**task, "name": "at-once", "transfer": {"mode": "feature"}}, quiet=True)
    start = open_model(step0.folder).model.state_dict()
    assert all(torch.equal(start[name], given[name]) for name in given if name.startswith(PARTS))
    assert not torch.equal(start["head.weight"], given["head.weight"])
    assert not torch.equal(begun["branches.fine.conv1.weight"], given["branches.fine.conv1.weight"])
    written = yaml.safe_load((run.folder / "recipe.yaml").read_text())["model"]
    assert written["from"] == str(source.folder)
    assert written["branches"]["coarse"] | {"weights": None} == {
        "backbone": "resnet10", "weights": None, "size": 16, "train_from": "all", "stem": "imagenet"
    }  # fmt: skip
    assert load(run.folder / "recipe.yaml", Recipe).model.fusion.weights == {"fine": 0.7, "coarse": 0.3}
    assert [row["step"] for row in run.metrics if "accuracy" in row] == [0, 4]


def test_the_bundle_of_such_a_run_says_nothing_of_where_it_came_from(task):
    bundle = xfer.fit(task, {"transfer.mode": "feature"}, quiet=True).quantize(bits=8)
    assert yaml.safe_load((bundle.path / "recipe.yaml").read_text())["model"]["from"] is None


def test_a_packed_bundle_is_begun_with_exactly_and_can_be_trained_on(task, source, capsys):
    bundle = source.quantize(bits=4)
    task["model"] = {"from": str(bundle.path)}
    run = xfer.fit(task, {"train.steps": 1, "train.learning_rate": 1e-12, "train.weight_decay": 0}, quiet=True)
    assert "branch fine    resnet10 and its projection taken, from 4 to 4 bits" in capsys.readouterr().err
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    ours, theirs = open_model(run.folder).model, bundle.model
    zero = xfer.fit({**task, "name": "zero", "transfer": {"mode": "feature"}}, quiet=True)
    begun = open_model(zero.folder).model
    with torch.inference_mode():
        for mine, reference in zip(begun.features(images), theirs.features(images), strict=True):
            torch.testing.assert_close(mine, reference, atol=1e-3, rtol=1e-3)
    # BatchNorm knows the statistics of the images: on all of them, training mode sees what evaluation sees
    data = zero.recipe.data
    (seen,) = calibration_images(open_data(data), data, 64)
    with torch.no_grad():
        still, moving = begun.eval().features(seen), begun.train().features(seen)
    for mine, reference in zip(moving, still, strict=True):
        assert (mine - reference).std() < 0.3 * reference.std()
    begun.load_state_dict(open_model(zero.folder).model.state_dict())
    # a step of no length in training mode hardly moves them
    for name, value in begun.state_dict().items():
        if name.endswith("running_var"):
            assert (ours.state_dict()[name] - value).abs().mean() < 0.1 * value.abs().mean() + 1e-3, name


def test_a_branch_more_or_less_than_the_source_has(task, source, capsys):
    task["model"] |= {"branches": {"fine": {"backbone": "resnet10"}, "extra": {"backbone": "resnet10"}}}
    task["model"] |= {"fusion": {"width": 16}}
    run = xfer.fit(task, {"train.steps": 1, "transfer.mode": "feature"}, quiet=True)
    told = capsys.readouterr().err
    for line in ("branch extra   resnet10, new", "branch coarse  left", "fusion wsum    new, extra 0.500, fine 0.500"):
        assert line in told, told
    model, given = open_model(run.folder).model.state_dict(), open_model(source.folder).model.state_dict()
    assert all(torch.equal(model[n], given[n]) for n in given if n.startswith(("branches.fine", "projections.fine")))


def test_what_does_not_fit_is_named_all_at_once(task, source):
    def faults(changes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            xfer.fit(task, changes, quiet=True)
        return caught.value.faults

    before = copy.deepcopy(task)
    (fault,) = faults({"train.probe_images": 0})
    assert fault == "train.probe_images: must be at least 1 with parts of another model, which get a new head"
    found = faults({"model.branches": {"fine": {"backbone": "resnet18"}}, "model.fusion": {"width": 32}})
    assert [fault.split(",")[0] for fault in found] == [
        "model.branches.fine.backbone: must be resnet10", "model.fusion.width: must be 16"
    ]  # fmt: skip
    (fault,) = faults({"model.branches": {"other": {"backbone": "resnet10"}}})
    assert "none is in" in fault
    assert "which has coarse, fine" in fault
    assert task == before, "a caller's values stay as they are"


@pytest.mark.parametrize("what", ["missing", "empty", "damaged", "file"])
def test_a_source_that_is_none_is_refused_by_name(task, source, tmp_path: Path, what):
    place = tmp_path / "place"
    if what == "empty":
        place.mkdir()
    elif what == "file":
        place.write_text("x")
    elif what == "damaged":
        place = source.folder
        for file in place.glob("checkpoints/*/model.safetensors"):
            file.write_bytes(file.read_bytes()[:-1])
    task["model"] = {"from": str(place)}
    with pytest.raises(ConfigError, match=rf"model(\.from)?: .*{place}"):
        xfer.fit(task, quiet=True)
    assert not (Path(task["output"]) / "tiny").exists()


def test_a_key_that_looks_like_from_is_pointed_to_it(task):
    task["model"]["form"] = task["model"].pop("from")
    with pytest.raises(ConfigError) as caught:
        xfer.fit(task, quiet=True)
    assert "model.form: unknown key; did you mean 'from'?" in caught.value.faults
