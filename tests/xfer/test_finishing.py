"""quantize.finish: a rounded model that is trained to answer as its run does."""

import pytest
import torch

import xfer
from shards.settings import ConfigError, replace
from tests.xfer.command import status
from xfer.bundle import open_model
from xfer.quantize import make_bundle


def test_a_finished_bundle_is_another_one_that_says_so_and_the_same_each_time(recipe, data, tmp_path):
    changed = replace(recipe, {"quantize.bits": 3, "quantize.finish": 20})
    plain = make_bundle(open_model(recipe.folder), replace(recipe, {"quantize.bits": 3}), data, tmp_path / "plain")
    first, second = (make_bundle(open_model(recipe.folder), changed, data, tmp_path / name) for name in "ab")
    weights = [(one.bundle.path / "weights.safetensors").read_bytes() for one in (plain, first, second)]
    assert weights[0] != weights[1] == weights[2]
    assert len(weights[0]) == len(weights[1])
    said = first.widths.said
    assert said.startswith("3; finished in 20 steps: divergence from the run ")
    before, after = (float(one) for one in said.split("run ")[1].split(" on ")[0].split(" -> "))
    assert after < before
    assert said in (tmp_path / "a" / "card.md").read_text()
    assert first.compared
    assert plain.compared
    assert "search images" in said
    assert first.compared.num_images < plain.compared.num_images  # the report half


def test_what_comes_no_nearer_is_left_out(recipe, data, tmp_path, monkeypatch):
    def spoil(quantized, *_, **__):
        with torch.no_grad():
            quantized.model.head.bias += torch.arange(len(quantized.model.head.bias))

    monkeypatch.setattr("xfer.finishing.finish", spoil)
    made = make_bundle(open_model(recipe.folder), replace(recipe, {"quantize.finish": 1}), data, tmp_path / "b")
    plain = make_bundle(open_model(recipe.folder), recipe, data, tmp_path / "plain")
    assert "1 step of finishing brought nothing, so they are left out" in made.widths.said
    files = [(one.bundle.path / "weights.safetensors").read_bytes() for one in (made, plain)]
    assert files[0] == files[1]


def test_codes_that_are_kept_are_not_trained(pretrained, capsys):
    run = xfer.fit(pretrained, {"transfer.mode": "quant"}, quiet=True)
    with pytest.raises(ConfigError, match=r"quantize\.finish: must be 0, branches and projections keep their codes"):
        run.quantize(finish=5)
    assert status("quantize", str(run.folder), "quantize.finish=-1") == 2
    assert "quantize.finish" in capsys.readouterr().err
