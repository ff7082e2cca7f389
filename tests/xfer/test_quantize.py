"""`quantize`: what each key of its section changes, what it says about accuracy, what it refuses."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from shards.settings import ConfigError, replace
from tests.xfer.command import status
from xfer.bundle import Trained, open_model
from xfer.outcomes import outcomes_on
from xfer.prepare import open_labelled
from xfer.quant.fold import fold
from xfer.quantize import calibration_images, make_bundle, quantize_model


def logits_error(trained: Trained, model: torch.nn.Module, images: torch.Tensor) -> float:
    with torch.inference_mode():
        expected = trained.model(images)
        return float((model(images) - expected).norm() / expected.norm())


def test_bits_and_groups_decide_the_width_of_every_layer(recipe, trained, data, tmp_path):
    changed = replace(recipe, {"quantize.bits": 5, "quantize.groups": {"layer4": 3, "head": 32}})
    bundle = make_bundle(trained, changed, data, tmp_path / "bundle").bundle
    assert bundle.bits is not None
    widths = {name: bits for name, bits in bundle.bits.items() if "layer4" not in name}
    assert set(widths.values()) == {5}
    assert {bits for name, bits in bundle.bits.items() if "layer4" in name} == {3}
    assert "head" not in bundle.bits
    assert torch.equal(bundle.model.head.weight, trained.model.head.weight)


def test_calibration_is_how_many_training_images_are_read(recipe, data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("xfer.quantize.correct", lambda model, reference, batches: seen.extend(map(len, batches)))
    changed = replace(recipe, {"quantize.calibration": 17})
    make_bundle(open_model(recipe.folder), changed, data, tmp_path / "bundle")
    assert sum(seen) == 17


def test_correct_brings_every_quantized_layer_and_the_logits_nearer_to_float(recipe, trained, data, tmp_path):
    held_out = next(iter(calibration_images(data, recipe.data, 200)))[-64:]
    errors, means = {}, {}
    for on in (True, False):
        changed = replace(recipe, {"quantize.bits": 3, "quantize.correct": on})
        bundle = make_bundle(trained, changed, data, tmp_path / str(on)).bundle
        errors[on] = logits_error(trained, bundle.model, held_out)
        means[on] = _mean_gap(trained, bundle, held_out)
    assert errors[True] < 0.8 * errors[False]
    assert means[True] < 0.5 * means[False]


def _mean_gap(trained: Trained, bundle: Trained, images: torch.Tensor) -> float:
    """How far the channel means of the quantized layers are from those in float, over all layers."""
    found = {}
    assert bundle.bits is not None
    for key, model in (("float", fold(trained.model)), ("packed", bundle.model)):
        sums = found[key] = {}
        for name in bundle.bits:
            hook = lambda _, __, out, name=name, sums=sums: sums.update({name: out.transpose(0, 1).flatten(1).mean(1)})  # noqa: E731
            model.get_submodule(name).register_forward_hook(hook)
        with torch.inference_mode():
            model(images)
    return sum(float((found["packed"][name] - mean).norm() / mean.norm()) for name, mean in found["float"].items())


def test_the_same_run_and_bits_give_the_same_file(recipe, data, tmp_path):
    for name in ("a", "b"):
        make_bundle(open_model(recipe.folder), replace(recipe, {"quantize.bits": 4}), data, tmp_path / name)
    first, second = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_recipe_that_decodes_on_a_gpu_is_quantized_without_one(recipe, tmp_path):
    out = [str(tmp_path / name) for name in ("cpu", "gpu")]
    for decode, folder in zip(("cpu", "gpu"), out, strict=True):
        assert status("quantize", str(recipe.folder), f"data.decode={decode}", "--out", folder) == 0
    first, second = (Path(folder, "weights.safetensors").read_bytes() for folder in out)
    assert first == second


def test_accuracy_is_said_by_source_with_the_interval_of_the_difference_and_kept_in_the_card(recipe, tmp_path, capsys):
    assert status("quantize", str(recipe.folder), "quantize.bits=2", "--out", str(tmp_path / "b")) == 0
    text, card = capsys.readouterr().out, (tmp_path / "b" / "card.md").read_text()
    trained, bundle, data = open_model(recipe.folder), open_model(tmp_path / "b"), open_labelled(recipe.data)
    models = {"float32": trained.model, "packed": bundle.model}
    found = outcomes_on(models, data.validation, recipe.data, trained.classes, "check")
    for source in ("paint", "outline"):
        a, b = found["float32"][source], found["packed"][source]
        for line in (_line(text, source), _line(card, f"| {source}")):
            words = line.replace("|", " ").split()
            assert words[1] == str(a.size)
            assert [float(word) for word in (words[2], words[4])] == pytest.approx(
                [100 * a.mean(), 100 * b.mean()], abs=0.06
            )
            value, low, high = (float(word) for word in (words[6], words[7], words[9]))
            assert value == pytest.approx(100 * (b.mean() - a.mean()), abs=0.06)
            assert low < value < high
    assert "mean of sources" in text
    for said in (text, card):
        assert "one image is worth up to" in said
        assert ("within the noise" in said) or ("the packed model" in said.lower())
        assert "held-out parts of the training sources" in said
    assert f"{bundle.weights_bytes:,} packed" in text


def _line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(start))


def test_both_models_see_the_same_images_in_stored_order_and_stay_as_they_were(recipe, trained, data):
    models = {"once": trained.model, "again": trained.model}
    found = outcomes_on(models, data.validation, recipe.data, trained.classes, "check")
    assert list(found["once"]) == [subset.name for subset in data.validation]
    for subset in data.validation:
        assert found["once"][subset.name].size == subset.num_samples
        assert (found["once"][subset.name] == found["again"][subset.name]).all()
    assert next(trained.model.parameters()).device.type == "cpu"
    assert not trained.model.training


def test_images_of_a_class_that_the_models_lack_are_left_out(recipe, trained, data):
    fewer = [name if name != "star" else "another" for name in trained.classes]
    found = outcomes_on({"m": trained.model}, data.validation, recipe.data, fewer, "check")["m"]
    paint = next(subset for subset in data.validation if subset.name == "paint")
    stars = int((paint.labels() == data.classes.index("star")).sum())
    assert 0 < stars < paint.num_samples
    assert found["paint"].size == paint.num_samples - stars


def test_where_nothing_is_held_out_that_is_said(recipe, tmp_path, capsys):
    changes = ["data.validation=0", "data.test={}"]
    assert status("quantize", str(recipe.folder), *changes, "--out", str(tmp_path / "b")) == 0
    assert "nothing is held out" in capsys.readouterr().out
    assert "Accuracy" not in (tmp_path / "b" / "card.md").read_text()


@pytest.mark.parametrize("bits", [4, 8, 32])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_in_one_message(recipe, data, bits, value):
    trained = open_model(recipe.folder)
    trained.model.branches["only"].conv1.weight.data[0, 0, 0, 0] = value  # pyright: ignore[reportAttributeAccessIssue]
    trained.model.head.bias.data[0] = value
    calibration = calibration_images(data, recipe.data, 8)
    with pytest.raises(ConfigError, match=r"not finite.*conv1.weight and 1 more") as caught:
        quantize_model(trained.model, replace(recipe, {"quantize.bits": bits}).quantize, calibration)
    assert len(caught.value.faults) == 1


def test_finite_weights_whose_outputs_overflow_are_refused(recipe, data):
    trained = open_model(recipe.folder)
    trained.model.head.weight.data *= 1e38
    trained.model.projections["only"][0].weight.data *= 1e30
    with pytest.raises(ConfigError, match="makes of images is not finite"):
        quantize_model(trained.model, recipe.quantize, calibration_images(data, recipe.data, 8))


def test_a_checkpoint_that_is_not_finite_ends_the_verb_with_status_2_and_writes_nothing(recipe, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    from xfer.checkpoint import latest_checkpoint, write_manifest

    folder = tmp_path / "run"
    shutil.copytree(recipe.folder, folder)
    newest = latest_checkpoint(folder / "checkpoints")
    assert newest is not None
    tensors = load_file(newest.path / "model.safetensors")
    tensors["head.weight"][0, 0] = float("nan")
    save_file(tensors, newest.path / "model.safetensors")
    manifest = yaml.safe_load((newest.path / "manifest.json").read_text())
    write_manifest(newest.path, {key: value for key, value in manifest.items() if key != "files"})
    assert status("quantize", str(folder)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("xfer: the trained model is not finite")
    assert "head.weight" in said[-1]
    assert not (folder / "bundle").exists()
