"""xfer soup: the mean of runs that began alike, kept as long as held-out images say so."""

import shutil
from pathlib import Path

import pytest
import torch

import xfer
from shards.loading.few import few
from shards.loading.open import open_data
from shards.settings import ConfigError, replace
from xfer.bundle import open_model
from xfer.checkpoint import latest_checkpoint, write_checkpoint
from xfer.model import build_model
from xfer.soup import STATISTICS_IMAGES, make_soup
from xfer.train import set_training
from xfer.transfer.settle import settle


@pytest.fixture
def runs(pretrained) -> list[Path]:
    """Three of one start: two that learn a little, and one that answers the opposite."""
    pretrained["train"] |= {"steps": 3, "freeze_batchnorm": False, "learning_rate": 1e-3}
    changes = {"one": {}, "two": {"data.seed": 7}, "spoilt": {"data.seed": 8}}
    made = [xfer.fit(pretrained, {"name": name, **change}, quiet=True).folder for name, change in changes.items()]
    checkpoint = latest_checkpoint(made[2] / "checkpoints")
    assert checkpoint is not None
    weights = checkpoint.model()
    weights["head.weight"] *= -100
    shutil.rmtree(checkpoint.path)
    write_checkpoint(made[2] / "checkpoints", checkpoint.state, weights, {})
    return made


def model_of(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    return checkpoint.model()


def test_what_helps_is_averaged_and_what_does_not_is_left_out(runs, tmp_path):
    soup = make_soup(runs, tmp_path / "out" / "soup")
    assert list(soup.alone.values()) == sorted(soup.alone.values(), reverse=True)
    assert str(runs[2]) not in soup.used
    assert soup.after >= max(soup.alone.values())
    text = soup.text()
    assert f"{len(soup.used)} of 3 in the soup: " in text

    run = xfer.Run(tmp_path / "out" / "soup")
    weights, parts = model_of(run.folder), [model_of(Path(path)) for path in soup.used]
    for name, value in weights.items():
        if "running_" not in name and value.is_floating_point():
            torch.testing.assert_close(value, torch.stack([part[name] for part in parts]).mean(0))
    scores = run.evaluate()
    assert sum(one.accuracy for one in scores.values()) / len(scores) == pytest.approx(soup.after)
    assert run.metrics[-1]["accuracy"] == {name: pytest.approx(one.accuracy) for name, one in scores.items()}
    assert run.quantize(bits=8).classes == xfer.Run(runs[0]).model.classes


def test_the_statistics_are_those_of_training_images_under_the_averaged_weights(runs, tmp_path):
    soup = make_soup(runs[:2], tmp_path / "soup")
    if len(soup.used) < 2:
        pytest.fail("the two runs that learn alike are to be averaged: their fixture has changed")
    recipe = xfer.Run(runs[0]).recipe
    data = open_data(recipe.data)
    model = build_model(recipe.model, len(data.classes), 0, load_weights=False)
    model.load_state_dict(model_of(tmp_path / "soup"))
    count = sum(subset.num_samples for subset in data.train)
    assert count < STATISTICS_IMAGES
    (batch,) = few(data.train, recipe.data, count, sources="proportional", batch_size=count)
    x = (batch.images.float() / 255 - model.mean) / model.std
    maps = model.branches["only"].conv1(x)  # of the first BatchNorm, over all images
    norm = model.branches["only"].bn1
    torch.testing.assert_close(norm.running_mean, maps.mean((0, 2, 3)), atol=0.02, rtol=0.05)  # pyright: ignore[reportAttributeAccessIssue]
    assert not torch.equal(norm.running_mean, model_of(runs[0])["branches.only.bn1.running_mean"])  # pyright: ignore[reportAttributeAccessIssue]


def test_what_training_held_still_stays(runs):
    recipe = replace(xfer.Run(runs[0]).recipe, {"model.branches.only.train_from": "layer4"})
    model = build_model(recipe.model, 3, 0, load_weights=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    set_training(model, freeze_batchnorm=False)
    moving = [part for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d) and part.training]
    settle(model, [images], moving)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith(("branches.only.layer4", "projections.")) for name in moved)
    assert {part.momentum for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d)} == {0.1}
    set_training(model, freeze_batchnorm=True)
    assert not any(part.training for part in model.modules() if isinstance(part, torch.nn.BatchNorm2d))


def test_what_cannot_be_averaged_is_refused_with_every_reason_and_nothing_is_written(runs, pretrained, tmp_path):
    def reason(*paths: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            make_soup(paths, tmp_path / "soup")
        assert not (tmp_path / "soup").exists()
        return str(caught.value)

    width = xfer.fit(pretrained, {"name": "wide", "model.fusion.width": 256, "data.image_size": 40}, quiet=True).folder
    assert "began with other weights (step 0 differs)" in reason(runs[0], width)
    assert "data.image_size: is not that of the first run" in reason(runs[0], width)
    scratch = xfer.fit(
        pretrained, {"name": "scratch", "model.branches.only.weights": None, "train.steps": 1}, quiet=True
    ).folder
    assert "no checkpoint of step 0" in reason(runs[0], scratch)
    assert "no run folder" in reason(runs[0], tmp_path)
    assert "at least 2" in reason(runs[0])
    assert "given twice" in reason(runs[0], runs[0])
    shutil.copytree(runs[1], tmp_path / "soup")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        make_soup(runs[:2], tmp_path / "soup")
    assert open_model(tmp_path / "soup").classes


def test_the_verb_says_what_is_in_the_soup(runs, tmp_path, capsys):
    from xfer.__main__ import app

    app(["soup", *map(str, runs[:2]), "--out", str(tmp_path / "soup")], result_action="return_value")
    said = capsys.readouterr().out
    assert "accuracy alone" in said
    assert f"written: {tmp_path / 'soup'}" in said
