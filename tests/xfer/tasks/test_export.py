"""`xfer export`: a file gives what its model gives, is on the bundle's codes, says how it is used, or is not there."""

import copy
import errno
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from shards.loading.frame import frame_of
from shards.loading.transforms import whole
from shards.settings import ConfigError
from tests.xfer.tasks.runs import verb
from xfer.bundle import FILES, open_model
from xfer.export import decode, write
from xfer.export.observe import OBSERVERS
from xfer.predict import predictions
from xfer.surface import Run
from xfer.tasks.known import task_of

KINDS = ("linear", "fcos", "fpn")
RESIZES = ("centre", "letterbox", "stretch")


@pytest.fixture
def traced_before(in_float, monkeypatch) -> Callable[[str], None]:
    """Spares a test the seconds that tracing takes."""

    def use(kind: str) -> None:
        proto = onnx.load(in_float(kind))
        monkeypatch.setattr("xfer.export.graph.float_graph", lambda trained, model: proto)

    return use


def noise(count: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def answered(file: Path, images: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images.numpy()}), strict=True))


def properties(file: Path) -> dict[str, str]:
    return {one.key: one.value for one in onnx.load(file).metadata_props}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_in_float_gives_what_the_model_gives_for_any_batch(bundled, in_float, kind):
    model = bundled(kind).trained
    for count in (1, 3):
        images = noise(count, model.image_size)
        found = answered(in_float(kind), images)
        with torch.inference_mode():
            expected = model.model(images)
        for name, value in (expected if isinstance(expected, dict) else {"logits": expected}).items():
            torch.testing.assert_close(torch.from_numpy(found.pop(name)), value, rtol=1e-4, atol=1e-4)
        assert not found


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_how_it_is_used(bundled, in_float, kind):
    about, model = properties(in_float(kind)), bundled(kind).trained
    assert json.loads(about["classes"]) == list(model.classes)
    assert (about["image_size"], about["resize"]) == (str(model.image_size), model.resize)
    assert about["task"] == {"linear": "classification", "fcos": "detection", "fpn": "segmentation"}[kind]
    assert about["weights_sha256"] == model.weights_sha256


@pytest.mark.parametrize("kind", ["linear", "fcos"])
def test_the_file_in_int8_has_the_codes_of_the_bundle_and_its_float_layers(bundled, traced_before, capsys, kind):
    traced_before(kind)
    model = bundled(kind)
    verb("export", model.bundle, "--int8", "--agreement", "0.5")
    said = capsys.readouterr().out
    assert "QLinearConv" in said
    assert "held-out" in said
    file = model.bundle / "model.int8.onnx"
    constants = [numpy_helper.to_array(one) for one in onnx.load(file).graph.initializer]
    codes = model.trained.codes
    assert codes
    assert {one.bits for one in codes.values()} == {4, 8}
    for name, own in codes.items():
        q = own.q.numpy()
        same = [one for one in constants if one.dtype == np.int8 and np.array_equal(one, q)]
        turned = [one for one in constants if q.ndim == 2 and one.dtype == np.int8 and np.array_equal(one, q.T)]
        assert same or turned, name
        live = own.scale.numpy()[own.q.flatten(1).any(1).numpy()]
        assert any(np.isin(live, one).all() for one in constants if one.dtype == np.float32), name
    weights = [name for name in dict(model.trained.model.named_modules()) if ".layer1." in name and "conv" in name]
    assert weights
    for name in weights:
        own = model.trained.model.get_submodule(name).weight.detach().numpy()
        assert any(one.dtype == np.float32 and np.array_equal(one, own) for one in constants), name
    assert json.loads(properties(file)["bits"]) == model.trained.bits


def test_exports_stand_in_the_manifest_until_the_bundle_is_made_again(bundled, in_float, tmp_path):
    file = in_float("fpn")
    listed = json.loads((file.parent / "manifest.json").read_text())
    assert listed["files"].keys() == FILES | {"model.onnx", "decode.py"}
    assert listed["splits"]
    folder = tmp_path / "run"
    shutil.copytree(bundled("fpn").run, folder)
    bundle = folder / "bundle"
    assert open_model(bundle).weights_sha256 == bundled("fpn").trained.weights_sha256
    (bundle / "model.onnx").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"model\.onnx"):
        open_model(bundle)
    Run(folder).quantize(bits=8)
    assert {path.name for path in bundle.iterdir()} == FILES | {"manifest.json"}


def beside(file: Path) -> Any:
    """The decode.py that lies there, as a module."""
    spec = importlib.util.spec_from_file_location("decode_beside", file.with_name("decode.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", ["fcos", "fpn"])
def test_decode_beside_the_file_gives_the_answers_of_the_model(bundled, in_float, scenes, kind):
    read, model = beside(in_float(kind)), bundled(kind).trained
    files = sorted((scenes / "neon" / "images").iterdir())[:4]
    size, resize = model.image_size, model.resize
    for file, answer in predictions(model, files):
        seen = whole(file.read_bytes(), size, resize)
        outputs = answered(in_float(kind), seen.image[None])
        width, height = seen.original
        if kind == "fpn":
            mask = read.pixels(outputs["logits"][0], size, width, height, resize)
            assert (torch.from_numpy(mask) == answer).float().mean() > 0.999  # type: ignore[operator]
        else:
            check_boxes(read, outputs, answer, (width, height, size, resize))


def check_boxes(read: Any, outputs: Any, answer: Any, frame: tuple[int, int, int, str]) -> None:
    boxes, scores, labels = read.to_original(*read.detections(outputs, frame[2])[0], *frame)
    assert len(boxes) == len(answer.boxes) > 5
    ordered = torch.from_numpy(scores).argsort(descending=True, stable=True)
    torch.testing.assert_close(torch.from_numpy(scores)[ordered].float(), answer.scores, rtol=1e-3, atol=1e-4)
    sure = answer.scores.diff().abs() > 1e-4  # of which no neighbour may have changed places with it
    own = torch.from_numpy(boxes).float()
    place = torch.cat([sure[:1], sure[1:] & sure[:-1], sure[-1:]])
    torch.testing.assert_close(own[place], answer.boxes[place], rtol=1e-3, atol=0.05)
    assert torch.equal(torch.from_numpy(labels)[place], answer.labels[place])


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("kind", ["fcos", "retinanet", "fpn"])
def test_decode_knows_every_head_and_resize(trained, kind, resize):
    model, (width, height) = open_model(trained(kind).folder), (90, 50)
    with torch.inference_mode():
        output = model.model(noise(1, 64))
    (answer,) = task_of(model.model.task).answers(output, [frame_of(width, height, 64, resize)])
    if kind == "fpn":
        mask = decode.pixels(output[0].numpy(), 64, width, height, resize)
        assert mask.shape == (height, width)
        assert (torch.from_numpy(mask) == answer).float().mean() > 0.999
    else:
        outputs = {name: value.numpy() for name, value in output.items()}
        check_boxes(decode, outputs, answer, (width, height, 64, resize))


def test_ranges_are_found_on_a_folder_of_images_or_on_the_run_that_is_named(
    bundled, traced_before, scenes, tmp_path, capsys
):
    traced_before("linear")
    shutil.copytree(bundled("linear").bundle, tmp_path / "away")
    one, other = tmp_path / "a.onnx", tmp_path / "b.onnx"
    least = ("--agreement", "0")
    verb("export", tmp_path / "away", one, "--int8", "--images", scenes / "neon" / "images", *least)
    assert "12 were for ranges" in capsys.readouterr().out
    verb("export", tmp_path / "away", other, "--int8", "--run", bundled("linear").run, "--observer", "minmax", *least)
    assert "held-out" in capsys.readouterr().out
    assert (properties(one)["observer"], properties(other)["observer"]) == ("mse", "minmax")
    assert one.read_bytes() != other.read_bytes()


def test_an_observer_says_what_of_a_range_is_kept():
    edges = np.linspace(0, 100, 2049)
    counts = 1e6 * np.exp(-np.abs((edges[:-1] + edges[1:]) / 2))
    counts[-1] = 1
    kept = {name: find(counts, edges) for name, find in OBSERVERS.items()}
    assert kept["minmax"] == (0, 100)
    assert 8 < kept["percentile"].high < 15
    assert kept["mse"].high < 50


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bundle"], "got neither"),
        (["bundle", "--onnx", "--int8"], "got both"),
        (["bundle", "--onnx", "--observer", "mse"], "--observer: belongs to --int8"),
        (["bundle", "--int8", "--agreement", "90"], "must be 0 to 1"),
        (["bundle", "--int8", "--images", "pictures", "--run", "run"], "give one of them"),
        (["bundle", "--int8"], "give --images FOLDER"),
        (["bundle", "--int8", "--images", "pictures"], "no images in this folder"),
        (["bundle", "--int8", "--run", "pictures"], "no run folder"),
        (["run", "--int8"], "needs the codes of a bundle"),
        (["torn", "--onnx"], "is not whole"),
        (["pictures", "--onnx"], "neither a run folder"),
        (["nothing", "--onnx"], "no such folder"),
        (["bundle", "model.pt", "--onnx"], r"must end with \.onnx"),
        (["bundle", "no/model.onnx", "--onnx"], "there is no folder no"),
        (["bundle", "pictures.onnx", "--onnx"], "is a folder"),
        (["bundle", "bundle/mine.onnx", "--onnx"], r"takes model\.onnx of its own"),
        (["bundle", "pictures/model.onnx", "--onnx"], r"decode\.py: exists and is none of ours"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_nothing_is_written(bundled, tmp_path, monkeypatch, words, says):
    shutil.copytree(bundled("fcos").bundle, tmp_path / "bundle")
    shutil.copytree(bundled("fcos").bundle, tmp_path / "torn")
    weights = tmp_path / "torn" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    (tmp_path / "run").symlink_to(bundled("fcos").run)
    (tmp_path / "pictures.onnx").mkdir()
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "decode.py").write_text("print('mine')\n")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=says):
        verb("export", *words)
    assert contents(tmp_path) == before


def test_weights_that_are_not_finite_are_not_exported(bundled, tmp_path):
    broken = copy.deepcopy(bundled("linear").trained.model)
    broken.head.weight.data[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"not finite.*head\.weight"):
        write.check_export(replace(bundled("linear").trained, model=broken), tmp_path / "x.onnx", "model.onnx")


def test_a_file_that_differs_from_the_model_is_not_written(bundled, traced_before, monkeypatch, tmp_path):
    traced_before("linear")
    model = bundled("linear")
    with torch.no_grad():
        other = copy.deepcopy(model.trained.model)
        other.head.bias += torch.tensor([100.0, *[0.0] * (len(other.head.bias) - 1)])
    wrong = replace(model.trained, model=other)
    with pytest.raises(ConfigError, match="differs from the model"):
        write.export_float(wrong, tmp_path / "x.onnx")
    monkeypatch.setattr("xfer.bundle.open_model", lambda path: wrong)
    with pytest.raises(ConfigError, match=r"answers are the model's, and --agreement asks for 90 %"):
        verb("export", model.bundle, tmp_path / "x.onnx", "--int8")
    assert not contents(tmp_path)


def test_a_full_disk_leaves_the_bundle_as_it_was(bundled, traced_before, monkeypatch, tmp_path):
    traced_before("linear")
    shutil.copytree(bundled("linear").bundle, tmp_path / "bundle")
    before = contents(tmp_path)

    def full(folder, extra):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr("xfer.bundle.write_manifest", full)
    with pytest.raises(OSError, match="No space"):
        verb("export", tmp_path / "bundle", "--onnx")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_without_its_libraries_it_names_the_extra(bundled, monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=rf"needs {name}, not installed here: pip install 'xfer\[onnx\]'"):
        verb("export", bundled("linear").bundle, tmp_path / "x.onnx", "--onnx")
