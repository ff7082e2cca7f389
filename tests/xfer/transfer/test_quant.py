"""transfer.mode: quant: a new head on the features of a packed model, whose codes stay bit for bit."""

import copy
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import xfer
from shards.loading.open import open_data
from shards.settings import ConfigError
from xfer.__main__ import main
from xfer.backbone import Branch
from xfer.bundle import open_model
from xfer.config import Recipe
from xfer.cost import without_cost
from xfer.labels import annotated, masked_cross_entropy
from xfer.quant.keep import keep, kept
from xfer.quant.weights import quantize_weight
from xfer.quantize import calibration_images, quantize_body
from xfer.transfer.features import features_of

QUANT = {"transfer.mode": "quant"}


@pytest.fixture
def task(recipe_values, source):
    """Another task's recipe, from that bundle."""
    recipe_values["data"] |= {"sources": {"neon": {"path": "neon"}}, "test": {}}
    recipe_values["model"] = {"from": str(source.folder / "bundle")}
    return recipe_values


def test_codes_scales_and_biases_of_the_body_are_the_bundles_bit_for_bit(task, source, capsys):
    run = xfer.fit(task, QUANT, quiet=True)
    said = capsys.readouterr().err
    assert "branch fine    resnet10 and its projection taken, from 3 to 4 bits" in said
    assert "keeps its branches and projections at 3 to 32 bits, as they are; what is fitted is the head" in said
    assert "begins as a linear probe of its pretrained branches, fitted on" in said
    assert [row["step"] for row in run.metrics] == [0]
    bundle = run.quantize(bits=8)
    theirs = load_file(source.folder / "bundle" / "weights.safetensors")
    ours = load_file(bundle.path / "weights.safetensors")
    assert {name for name in ours if not name.startswith("head")} == {name for name in theirs if name[:4] != "head"}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("head"))
    assert bundle.bits is not None
    assert {bits for name, bits in bundle.bits.items() if "layer1" in name} == {3}
    assert not any(name.endswith("fine.conv1") for name in bundle.bits), "the stem stays in float"
    assert bundle.bits["head"] == 8
    assert "head 8" in (bundle.path / "card.md").read_text()


def test_a_run_is_the_bundle_made_of_it_and_every_verb_takes_it(task, capsys):
    run = xfer.fit(task, QUANT, quiet=True)
    bundle = run.quantize(bits=32)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(run.model.model(images), bundle.model(images))
    (row,) = run.metrics
    scores = run.evaluate()
    assert {name: score.accuracy for name, score in scores.items()} == pytest.approx(row["accuracy"])
    assert "32 bits" not in repr(run.model)
    for verb in (["evaluate", str(run.folder)], ["report", str(run.folder)], ["quantize", str(run.folder)]):
        with pytest.raises(SystemExit) as ended:
            main(verb)
        assert not ended.value.code, capsys.readouterr().err
    said = capsys.readouterr()
    assert "its branches and projections keep their bits; quantize.bits is that of the head" in said.err
    for text in (said.out, (bundle.path / "card.md").read_text()):
        assert "head float32" in text
        assert not re.search(r"(?<!head )float32", text), "they are packed already"


def test_the_same_command_repeats_it_bit_by_bit_and_changes_nothing_that_is_done(task):
    run, again = xfer.fit(task, QUANT, quiet=True), xfer.fit(task, {**QUANT, "name": "again"}, quiet=True)
    files = [one.folder / "checkpoints" / "step-00000000" / "model.safetensors" for one in (run, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    before = files[0].stat().st_mtime_ns
    rows = [without_cost(one.metrics) for one in (xfer.fit(task, QUANT, quiet=True), run, again)]
    assert rows[0] == rows[1] == rows[2]
    assert files[0].stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"quantize.bits: was 8, is now 4"):
        xfer.fit(task, {**QUANT, "quantize.bits": 4}, quiet=True)
    shutil.rmtree(run.folder / "checkpoints")  # as if it had been stopped before its first checkpoint
    assert without_cost(xfer.fit(task, QUANT, quiet=True).metrics)[-1] == rows[0][-1]


def train_loss(model, recipe: Recipe) -> float:
    """Cross-entropy on the training images, seen as in evaluation."""
    data = open_data(recipe.data)
    count = sum(subset.num_samples for subset in data.train)
    found = features_of(model, data.train, recipe.data, count)
    masks = annotated(data.train, len(data.classes))[found.sources]
    with torch.no_grad():
        parts = zip(model.projections.values(), found.branches.values(), strict=True)
        logits = model.classify([part(seen.pooled[:, :, None, None]).flatten(1) for part, seen in parts])
    return masked_cross_entropy(logits, found.targets, masks).mean().item()


@pytest.mark.parametrize("bits", [2, 3])
def test_a_head_fitted_on_rounded_features_fits_them_better_than_one_fitted_before(task, source, bits, monkeypatch):
    """From a run in float, whose body is rounded as the recipe says: the same body, under both heads."""
    monkeypatch.setattr("xfer.transfer.linear.PENALTIES", (1e-4,))
    task["model"] = {"from": str(source.folder)}
    task["quantize"] = {"bits": bits, "calibration": 32}
    quant = xfer.fit(task, QUANT, quiet=True)
    before = xfer.fit(task, {"transfer.mode": "feature", "name": "before"}, quiet=True)
    recipe = quant.recipe
    images = calibration_images(open_data(recipe.data), recipe.data, 32)
    rounded = quantize_body(open_model(before.folder).model, recipe.quantize, images)
    ours = open_model(quant.folder).model
    body = {name: value for name, value in ours.state_dict().items() if not name.startswith("head")}
    assert all(torch.equal(value, rounded.state_dict()[name]) for name, value in body.items())
    assert quant.model.bits is not None
    assert set(quant.model.bits.values()) == {bits}
    assert train_loss(ours, recipe) < train_loss(rounded, recipe)


def test_branches_with_weights_are_rounded_too(pretrained):
    run = xfer.fit(pretrained, {**QUANT, "quantize.bits": 4, "model.fusion.kind": "concat"}, quiet=True)
    assert set(run.model.bits.values()) == {4}
    assert run.quantize().bits.keys() == {*run.model.bits, "head"}


def test_a_new_branch_is_rounded_beside_those_that_keep_their_codes(task, source, tmp_path):
    weights = str(tmp_path / "weights.safetensors")
    save_file(Branch("resnet10").state_dict(), weights)
    branches = {"fine": {"backbone": "resnet10", "stem": "small"}, "new": {"backbone": "resnet10", "weights": weights}}
    task["model"] |= {"branches": branches, "fusion": {"width": 16}}
    bundle = xfer.fit(task, {**QUANT, "name": "both", "quantize.bits": 6}, quiet=True).quantize()
    theirs = load_file(source.folder / "bundle" / "weights.safetensors")
    ours = load_file(bundle.path / "weights.safetensors")
    taken = [name for name in theirs if name.startswith(("branches.fine", "projections.fine"))]
    assert taken
    assert all(torch.equal(ours[name], theirs[name]) for name in taken)
    assert {bits for name, bits in bundle.bits.items() if ".new." in name} == {6}


def test_a_quant_run_can_be_begun_with_in_every_mode(task):
    first = xfer.fit(task, QUANT, quiet=True)
    task["model"] = {"from": str(first.folder)}
    second = xfer.fit(task, {**QUANT, "name": "second"}, quiet=True)
    ours, theirs = (open_model(run.folder).model.state_dict() for run in (second, first))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("head"))
    trained = xfer.fit(task, {"name": "trained", "train.steps": 1}, quiet=True)
    assert [row["step"] for row in trained.metrics if "accuracy" in row] == [0, 1]


def test_what_it_cannot_do_is_refused_at_once(task, recipe_values):
    def faults(changes) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            xfer.fit(task, {**QUANT, **changes}, quiet=True)
        return caught.value.faults

    (fault,) = faults({"quantize.groups": {"layer4": 2}})
    assert fault.startswith("quantize.groups.layer4: must be left out, got 2: its layers keep the 4 bits they have")
    branch = {"backbone": "resnet10", "stem": "small", "train_from": "layer3"}
    (fault,) = faults({"model.branches": {"fine": branch}})
    assert fault.startswith("model.branches.fine.train_from: must be left out for transfer.mode quant")
    assert not (Path(task["output"]) / "tiny").exists()
    run = xfer.fit(task, {**QUANT, "quantize.groups": {"layer1": 3, "head": 5}}, quiet=True)
    with pytest.raises(ConfigError, match=r"quantize.groups.stem: must be left out, got 8: .* the 32 bits"):
        run.quantize(groups={"stem": 8})
    assert run.quantize().bits["head"] == 5
    plain = copy.deepcopy(task)
    plain["model"] = {"branches": {"only": {"backbone": "resnet10"}}}
    with pytest.raises(ConfigError, match=r"quant moves pretrained branches, and none has weights: .* or model.from"):
        xfer.fit(plain, {**QUANT, "name": "plain"}, quiet=True)
    assert yaml.safe_load((run.folder / "recipe.yaml").read_text())["transfer"]["mode"] == "quant"


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_layer_keeps_its_codes_and_scales_exactly(bits):
    """Also of channels whose codes are all even, all zero, or of one weight; at scales from 1e-38 to 1e30."""
    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(64, 7, 3, 3, generator=generator) * torch.logspace(-36, 30, 64).view(-1, 1, 1, 1)
    codes = quantize_weight(weight, bits)
    codes.q[0] = 0
    codes.q[1] = 2 * (codes.q[1] // 2)
    layer = torch.nn.Sequential(torch.nn.Conv2d(7, 64, 3), torch.nn.Conv2d(7, 64, 3))
    shape = [-1, 1, 1, 1]
    layer[0].weight.data = codes.q.float() * codes.scale.view(shape)
    keep(layer, {"0": codes, "1": None})
    again = torch.nn.Sequential(torch.nn.Conv2d(7, 64, 3), torch.nn.Conv2d(7, 64, 3))
    keep(again, {"0": None, "1": None})
    again.load_state_dict(layer.state_dict())
    found = kept(again)
    assert found["1"] is None
    assert found["0"] is not None
    assert found["0"].bits == bits
    assert torch.equal(found["0"].q, codes.q)
    assert torch.equal(found["0"].scale, codes.scale)
