import json

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from tests.xfer.quant.nets import big, images, small
from xfer.quant import bops, correct, fold, layer_bits, pack, predicted_bytes, quantize, read_metadata, unpack
from xfer.quant.bits import WIDTHS
from xfer.quant.stream import from_stream, num_bytes, to_stream


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1001])
def test_streams_come_back(bits, count):
    top = 2 ** (bits - 1) - 1
    q = torch.randint(-top, top + 1, (count,), generator=torch.Generator().manual_seed(count)).to(torch.int8)
    stream = to_stream(q, bits)
    assert stream.dtype == torch.uint8
    assert len(stream) == num_bytes(count, bits)
    assert torch.equal(from_stream(stream, bits, count), q)


def test_the_stream_is_the_documented_one():
    q = torch.tensor([-3, 0, 3, 1, 2], dtype=torch.int8)
    whole = sum((int(code) + 4) << (3 * index) for index, code in enumerate(q))
    assert bytes(to_stream(q, 3).tolist()) == whole.to_bytes(2, "little")


def test_streams_no_writer_made_are_refused():
    with pytest.raises(ValueError, match="a code lies outside"):
        from_stream(torch.zeros(3, dtype=torch.uint8), 3, 8)
    with pytest.raises(ValueError, match="after the last code"):
        from_stream(torch.tensor([0xFC, 0xFF], dtype=torch.uint8), 3, 5)
    with pytest.raises(ValueError, match="are 3 bytes"):
        from_stream(torch.zeros(4, dtype=torch.uint8), 3, 8)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_file_gives_bit_identical_outputs_and_is_as_large_as_predicted(bits, tmp_path):
    reference, path = fold(small()), tmp_path / "weights.safetensors"
    widths = layer_bits(reference, bits, {"head": 32})
    predicted = predicted_bytes(reference, widths, {"note": "é"})
    quantized = quantize(fold(small()), widths)
    correct(quantized, reference, [images()])
    pack(quantized, path, {"note": "é"})
    assert path.stat().st_size == predicted
    fresh = fold(small(seed=9))
    again = unpack(path, fresh)
    assert torch.equal(fresh(images()), quantized.model(images()))
    assert all(torch.equal(again.codes[name].q, codes.q) for name, codes in quantized.codes.items())
    assert read_metadata(path) == {"note": "é"}
    first = path.read_bytes()
    pack(again, path, {"note": "é"})
    assert path.read_bytes() == first


def test_a_resnet_shrinks_as_its_bits_say(tmp_path):
    model, path = fold(big()), tmp_path / "weights.safetensors"
    whole = predicted_bytes(model, {})
    for bits, share in ((8, 1 / 4), (4, 1 / 8)):
        widths = layer_bits(model, bits, {})
        pack(quantize(fold(big()), widths), path, {})
        assert path.stat().st_size == predicted_bytes(model, widths)
        assert path.stat().st_size == pytest.approx(whole * share, rel=0.02)


def test_bops_count_every_convolution():
    model = fold(big())
    macs = 1_814_073_344 - 512 * 900  # the published 1.81 G of ResNet-18, with 100 classes for 1000
    assert bops(model, layer_bits(model, 8, {}), 224) == macs * 64
    assert bops(model, layer_bits(model, 4, {}), 224, activation_bits=4) == macs * 16
    assert bops(model, {}, (224, 224)) == macs * 1024


def test_a_weight_changed_after_quantization_is_not_packed(tmp_path):
    quantized = quantize(fold(small()), {"head": 4})
    quantized.model.head.weight.data += 1e-3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="head: the weight was changed"):
        pack(quantized, tmp_path / "x", {})
    assert list(tmp_path.iterdir()) == []


def _drop(tensors, content):
    del tensors["head.s"]


def _shorten(tensors, content):
    tensors["head.q"] = tensors["head.q"][:-1].clone()


def _blank(tensors, content):
    tensors["head.q"].zero_()


def _retype(tensors, content):
    tensors["head.s"] = tensors["head.s"].double()


def _poison(tensors, content):
    tensors["head.s"][0] = float("nan")


def _surplus(tensors, content):
    tensors["more"] = torch.zeros(1)


def _reshape(tensors, content):
    content["layers"]["head"]["shape"] = [10**9, 10**9]


def _widen(tensors, content):
    content["layers"]["head"]["bits"] = 5


def _unknown_width(tensors, content):
    content["layers"]["head"]["bits"] = 64


def _rename(tensors, content):
    content["layers"]["tail"] = content["layers"].pop("head")


def _newer(tensors, content):
    content["version"] = 3


def _other_format(tensors, content):
    content["format"] = "gguf"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop, "lacks head.s"),
        (_shorten, r"head.q: U8 \[7\]"),
        (_blank, "head: a code lies outside"),
        (_retype, "head.s: F64"),
        (_poison, "head: a scale"),
        (_surplus, "holds more"),
        (_reshape, "head: shape"),
        (_widen, "head.q: U8"),
        (_unknown_width, "head: 64 bits"),
        (_rename, "tail is in the file"),
        (_newer, "format version 3"),
        (_other_format, "no packed model"),
    ],
)
def test_damaged_files_are_refused_and_leave_the_model_alone(damage, message, tmp_path):
    path = tmp_path / "weights.safetensors"
    pack(quantize(fold(small()), {"head": 4}), path, {})
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["packed"])
    damage(tensors, content)
    save_file(tensors, path, metadata={"packed": json.dumps(content)})
    model = fold(small(seed=9))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        unpack(path, model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    pack(quantize(fold(small()), {"head": 4}), path, {})
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no readable safetensors"):
            unpack(path, fold(small()))
    for metadata in (None, {"packed": "[" * 100_000}, {"packed": "[]"}):
        save_file({"a": torch.zeros(1)}, path, metadata=metadata)
        with pytest.raises(ValueError, match=r"no packed model|no JSON"):
            unpack(path, fold(small()))
