"""A branch's weights are another model's branch, and a stem for small images."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import xfer
from shards.settings import ConfigError
from xfer.backbone import Branch
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.prepare import batchnorm_faults

FEATURE = {"transfer.mode": "feature"}


@pytest.fixture
def task(recipe_values):
    """A recipe of one branch, called main."""
    recipe_values["model"] = {"branches": {"main": {"backbone": "resnet10"}}, "fusion": {"width": 64}}
    recipe_values["data"] |= {"sources": {"neon": {"path": "neon"}}, "test": {}}
    return recipe_values


def branch(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return open_model(folder).model.branches[name].state_dict()


def test_a_branch_begins_as_one_of_a_run_under_another_name_with_a_new_projection(task, source, capsys):
    task["model"]["branches"]["main"]["weights"] = f"{source.folder}:coarse"
    run = xfer.fit(task, FEATURE, quiet=True)
    said = capsys.readouterr().err
    assert "begins with:" in said
    assert f"branch main  resnet10 taken, coarse of {source.folder}; its projection new" in said
    ours, theirs = branch(run.folder, "main"), branch(source.folder, "coarse")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert run.recipe.model.branches["main"].weights == f"{source.folder}:coarse"
    assert str(source.folder) not in (run.quantize(bits=8).path / "recipe.yaml").read_text()


def test_a_packed_branch_is_unfolded_and_can_be_trained_on(task, source):
    task["model"]["branches"]["main"] |= {"weights": f"{source.folder / 'bundle'}:fine", "stem": "small"}
    zero = xfer.fit(task, {**FEATURE, "name": "zero"}, quiet=True)
    images = torch.rand(2, 3, 32, 32)
    ours, theirs = open_model(zero.folder).model, open_model(source.folder / "bundle").model
    with torch.inference_mode():
        mine, reference = ours.branches["main"](images)["C5"], theirs.branches["fine"](images)["C5"]
    torch.testing.assert_close(mine, reference, atol=1e-3, rtol=1e-3)
    assert any("running_mean" in name for name in ours.branches["main"].state_dict())
    run = xfer.fit(task, {"train.steps": 1}, quiet=True)
    assert [row["step"] for row in run.metrics if "accuracy" in row] == [0, 1]


def test_a_model_with_one_branch_needs_no_name_and_quant_keeps_its_codes(task, source):
    task["model"]["branches"]["main"]["weights"] = f"{source.folder / 'bundle'}:coarse"
    first = xfer.fit(task, {"transfer.mode": "quant", "name": "first"}, quiet=True)
    task["model"]["branches"]["main"]["weights"] = str(first.quantize(bits=5).path)
    bundle = xfer.fit(task, {"transfer.mode": "quant"}, quiet=True).quantize(bits=6)
    ours, theirs = (open_model(path).codes for path in (bundle.path, source.folder / "bundle"))
    for name, codes in theirs.items():
        if name.startswith("branches.coarse"):
            mine = ours[name.replace("coarse", "main")]
            assert mine.bits == codes.bits
            assert torch.equal(mine.q, codes.q)
            assert torch.equal(mine.scale, codes.scale)
    assert ours["projections.main.0"].bits == 8, "the projection is new, of the recipe's bits"
    assert ours["head"].bits == 6


def test_what_does_not_fit_is_named(task, source, tmp_path):
    def fault(**main) -> str:
        task["model"]["branches"]["main"] = {"backbone": "resnet10", **main}
        with pytest.raises(ConfigError) as caught:
            xfer.fit(task, quiet=True)
        (one,) = caught.value.faults
        assert one.startswith("model.branches.main.weights: ")
        return one

    folder = str(source.folder)
    assert f"has the branches coarse, fine; name one, such as {folder}:coarse" in fault(weights=folder)
    assert f"{folder} has no branch midle; it has coarse, fine" in fault(weights=f"{folder}:midle")
    assert "has backbone resnet10, and this one resnet18" in fault(weights=f"{folder}:fine", backbone="resnet18")
    assert "branch fine of" in fault(weights=f"{folder}:fine")
    assert "has stem small, and this one imagenet" in fault(weights=f"{folder}:fine")
    (tmp_path / "empty").mkdir()
    assert "neither a run folder" in fault(weights=str(tmp_path / "empty"))
    assert "no such file, run or bundle" in fault(weights=str(tmp_path / "missing:main"))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in (source.folder / "bundle").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "weights.safetensors").write_bytes((broken / "weights.safetensors").read_bytes()[:-1])
    assert "its size or sha256 is not what the manifest says" in fault(weights=f"{broken}:fine")
    task["train"]["probe_images"] = 0
    task["model"]["branches"]["main"] = {"backbone": "resnet10", "weights": f"{folder}:coarse"}
    with pytest.raises(ConfigError, match=r"train.probe_images: must be at least 1 with parts of another model"):
        xfer.fit(task, quiet=True)


def test_a_small_stem_keeps_small_images_large_and_is_taken_over_by_model_from(task, source):
    assert open_model(source.folder).model.branches["fine"].conv1.stride == (1, 1)
    task["model"] = {"from": str(source.folder / "bundle")}
    run = xfer.fit(task, FEATURE, quiet=True)
    assert run.recipe.model.branches["fine"].stem == "small"
    assert run.recipe.model.branches["coarse"].stem == "imagenet"
    task["model"]["branches"] = {"fine": {"backbone": "resnet10"}}
    with pytest.raises(ConfigError, match=r"model.branches.fine.stem: must be small, as in .*, got imagenet"):
        xfer.fit(task, {**FEATURE, "name": "other"}, quiet=True)


def test_weights_of_a_7_x_7_stem_do_not_fit_a_small_one(task, tmp_path):
    large, small = str(tmp_path / "large.safetensors"), str(tmp_path / "small.safetensors")
    save_file(Branch("resnet10").state_dict(), large)
    save_file(Branch("resnet10", stem="small").state_dict(), small)
    task["model"]["branches"]["main"] = {"stem": "small", "backbone": "resnet10", "weights": large}
    with pytest.raises(ConfigError, match=r"not the weights of a resnet10 with a small stem .* such as conv1.weight"):
        xfer.fit(task, quiet=True)
    task["model"]["branches"]["main"] = {"stem": "small", "backbone": "resnet18", "weights": "DEFAULT"}
    with pytest.raises(ConfigError, match=r"DEFAULT has a 7 x 7 stem"):
        xfer.fit(task, quiet=True)
    task["model"]["branches"]["main"] = {"stem": "small", "backbone": "resnet10", "weights": small}
    run = xfer.fit(task, FEATURE, quiet=True)
    assert branch(run.folder, "main")["conv1.weight"].shape == (64, 3, 3, 3)


@pytest.mark.parametrize(("stem", "largest"), [("imagenet", 32), ("small", 8)])
def test_the_image_size_that_batchnorm_needs_follows_the_stem(task, stem, largest):
    task["model"]["branches"]["main"]["stem"] = stem
    task["data"] |= {"batch_size": 1}
    task["train"]["freeze_batchnorm"] = False

    def faults(size: int) -> list[str]:
        task["data"]["image_size"] = size
        return batchnorm_faults(Recipe.model_validate(task), 1)

    (fault,) = faults(largest)
    assert f"a data.image_size or branch size above {largest}," in fault
    assert faults(largest + 1) == []
