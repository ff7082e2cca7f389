"""A file that `xfer export` wrote answers in the place of its model."""

import json
import shutil
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from shards.settings import ConfigError
from tests.xfer.tasks.runs import verb


@pytest.mark.parametrize("kind", ["linear", "fcos", "fpn"])
def test_predict_by_the_file_says_what_the_model_says(bundled, in_float, scenes, shards_root, kind, capsys, tmp_path):
    model, file = bundled(kind), in_float(kind)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(200 if kind == "linear" else 6):
        size = (40, 30) if number % 2 else (24, 50)
        pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{number:03d}.png")
    capsys.readouterr()
    said = {}
    for name, words in {"torch": (model.bundle,), "onnx": (model.bundle, "--runtime", "onnx"), "file": (file,)}.items():
        verb("predict", *words, images, "--json")
        said[name] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said["onnx"] == said["file"]
    assert len(said["torch"]) == len(said["onnx"]) > 0
    for one, other in zip(said["torch"], said["onnx"], strict=True):
        (first, *_), (second, *_) = (_named(row) for row in (one, other))
        assert one["image"] == other["image"]
        assert first[0] == second[0]
        assert first[1] == pytest.approx(second[1], abs=2e-3)


def _named(row: dict[str, Any]) -> list[tuple[str, float]]:
    """What is said of an image, the surest first."""
    if "boxes" in row:
        return [(box["class"], box["score"]) for box in row["boxes"]] or [("none", 0.0)]
    return sorted(next(row[key] for key in ("classes", "pixels") if key in row).items(), key=lambda one: -one[1])


def test_a_file_that_is_none_of_ours_is_refused(bundled, in_float, tmp_path):
    bundle = bundled("linear").bundle
    foreign, damaged = tmp_path / "foreign.onnx", tmp_path / "damaged.onnx"
    proto = onnx.load(in_float("linear"))
    del proto.metadata_props[:]
    onnx.save(proto, foreign)
    part = proto.metadata_props.add()
    part.key, part.value = "format", "xfer-export 1"
    onnx.save(proto, tmp_path / "part.onnx")
    damaged.write_bytes(in_float("linear").read_bytes()[:1000])
    away = tmp_path / "away"
    shutil.copytree(bundle, away, ignore=shutil.ignore_patterns("*.onnx"))
    for words, said in (
        ((foreign,), "foreign.onnx: does not say what it is; expected xfer-export 1"),
        ((tmp_path / "part.onnx",), "part.onnx: what it says of itself is not whole ('task')"),
        ((damaged,), "damaged.onnx: onnxruntime cannot open it"),
        ((tmp_path / "none.onnx",), "none.onnx: no such file"),
        ((away, "--runtime", "onnx"), f"has no model.onnx; make it with xfer export {away} --onnx"),
    ):
        with pytest.raises(ConfigError) as caught:
            verb("predict", *words, tmp_path)
        assert said in str(caught.value)
