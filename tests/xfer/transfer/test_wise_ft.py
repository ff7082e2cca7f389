"""transfer.wise_ft: the model lies between the probe it began as and what training made of it."""

import shutil

import pytest
import torch

import xfer
from shards.settings import ConfigError
from xfer.bundle import open_model
from xfer.checkpoint import latest_checkpoint, start_weights
from xfer.soup import make_soup


def test_the_model_is_a_part_of_the_way_and_scored_as_such_while_training_is_what_it_was(pretrained):
    pretrained["train"] |= {"steps": 4, "evaluate_every": 2, "learning_rate": 1e-3}
    whole = xfer.fit(pretrained, {"name": "whole"}, quiet=True)
    mixed = xfer.fit(pretrained, {"name": "mixed", "transfer.wise_ft": 0.25}, quiet=True)
    losses = [[row["losses"] for row in run.metrics if "losses" in row] for run in (whole, mixed)]
    assert losses[0] == losses[1]
    start, end = start_weights(mixed.folder / "checkpoints"), latest_checkpoint(mixed.folder / "checkpoints")
    assert end
    trained = end.model()
    for name, value in open_model(mixed.folder).model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * trained[name], atol=1e-6, rtol=1e-5)
    scored = [[row["evaluation_loss"] for row in run.metrics if "evaluation_loss" in row] for run in (whole, mixed)]
    assert scored[0][0] == scored[1][0]  # the probe
    assert scored[0][1:] != scored[1][1:]
    for name, score in mixed.evaluate().items():
        assert score.loss == pytest.approx(scored[1][-1][name], abs=1e-6)


def test_a_soup_is_of_models_as_they_are_handed_over(pretrained, tmp_path):
    pretrained["train"] |= {"steps": 2, "learning_rate": 1e-3}
    changes = {"transfer.wise_ft": 0.5}
    runs = [xfer.fit(pretrained, {"name": f"{seed}", "data.seed": seed, **changes}, quiet=True) for seed in range(2)]
    soup = make_soup([run.folder for run in runs], tmp_path / "soup")
    used = [open_model(path).model.state_dict() for path in soup.used]
    for name, value in open_model(tmp_path / "soup").model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.stack([one[name] for one in used]).mean(0), atol=1e-6, rtol=1e-5)


def test_it_needs_a_probe_to_go_back_to_and_batchnorm_that_stands_still(pretrained):
    pretrained["transfer"] = {"wise_ft": 0.5}
    refused = {
        "mixes the trained weights with those of step 0": {"train.probe_images": 0},
        "must be left out with transfer.mode feature": {"transfer.mode": "feature"},
        "needs train.freeze_batchnorm: true": {"train.freeze_batchnorm": False},
    }
    for why, changes in refused.items():
        with pytest.raises(ConfigError, match=rf"transfer\.wise_ft: {why}"):
            xfer.fit(pretrained, changes, quiet=True)
    run = xfer.fit(pretrained, {"train.steps": 1}, quiet=True)
    with pytest.raises(ConfigError, match=r"transfer\.wise_ft: was 0\.5, is now 1"):
        xfer.fit(pretrained, {"train.steps": 2, "transfer.wise_ft": 1.0}, quiet=True)
    shutil.rmtree(run.folder / "checkpoints" / "step-00000000")
    with pytest.raises(ConfigError, match="step-00000000"):
        open_model(run.folder)
