"""Codes written shorter: exactly the codes come back, the size is foretold, and no stream does more than it may."""

import json
import tracemalloc
import zlib
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file, safe_open, save_file
from torch import nn

from tests.xfer.quant.nets import small
from xfer.quant import fold, layer_bits, pack, predicted_bytes, quantize, unpack
from xfer.quant.bits import WIDTHS
from xfer.quant.coded import decode, encode
from xfer.quant.cost import coded_sizes, layer_bytes, sizes_of
from xfer.quant.pack import is_coded
from xfer.quant.weights import largest_code
from xfer.widths import front_of


def plain() -> nn.Module:
    """Three layers, of which the second has codes enough to be shorter when they are coded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = {
            "conv1": nn.Conv2d(3, 32, 3),
            "layer1": nn.Conv2d(32, 64, 3),
            "pool": nn.AdaptiveAvgPool2d(1),
            "flat": nn.Flatten(),
            "head": nn.Linear(64, 10),
        }
        nn.init.normal_(parts["layer1"].weight)
        return nn.Sequential(OrderedDict(parts)).eval()


@st.composite
def some_codes(draw):
    """A width and int8 codes of it, few different ones among them or many."""
    bits = draw(st.sampled_from(WIDTHS))
    top = min(largest_code(bits), draw(st.integers(0, 127)))
    return bits, torch.from_numpy(draw(arrays.arrays("int8", st.integers(0, 300), elements=st.integers(-top, top))))


@given(some_codes())
@settings(max_examples=150, deadline=None)
def test_every_code_comes_back(given):
    bits, q = given
    assert torch.equal(decode(encode(q, bits), bits, q.numel()), q)


@pytest.mark.parametrize("bits", WIDTHS)
def test_peaked_codes_come_near_to_their_entropy(bits):
    draw = torch.Generator().manual_seed(0)
    top = largest_code(bits)
    q = (torch.randn(60_000, generator=draw) * max(top / 3.5, 0.6)).round().clamp(-top, top).to(torch.int8)
    shares = q.unique(return_counts=True)[1] / q.numel()
    entropy = float(-(shares * shares.log2()).sum()) * q.numel() / 8
    assert entropy <= len(encode(q, bits)) < 1.025 * entropy + 200


@given(st.sampled_from(WIDTHS), st.binary(max_size=200), st.integers(0, 500))
@settings(max_examples=150, deadline=None)
def test_no_stream_gives_other_than_codes_or_a_reason(bits, content, count):
    stream = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)
    try:
        codes = decode(stream, bits, count)
    except ValueError:
        return
    assert codes.shape == (count,)
    assert not count or int(codes.abs().max()) <= largest_code(bits)


def _raw(content: bytes) -> torch.Tensor:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return torch.frombuffer(bytearray(coder.compress(content) + coder.flush()), dtype=torch.uint8)


def test_streams_that_no_writer_made_are_refused():
    q = torch.tensor([-3, 0, 3, 1, 2], dtype=torch.int8)
    good = encode(q, 3)
    bomb = _raw(bytes(50_000_000))
    assert len(bomb) < 60_000
    for stream, count, message in [
        (bomb, 5, "not one of 5 codes"),
        (good[:-1], 5, "damaged|not one of"),
        (torch.cat([good, good]), 5, "not one of 5 codes"),
        (good, 7, "not one of 7 codes"),
        (_raw(b"\x00\x00\x00"), 5, "a code lies outside"),
        (_raw(b"\xc9\x09\x01"), 5, "bits between codes"),
        (_raw(b"\x09\x09\x09"), 5, "bits after the last code"),
    ]:
        tracemalloc.start()
        with pytest.raises(ValueError, match=message):
            decode(stream, 3, count)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_coded_file_is_smaller_as_large_as_foretold_and_the_same_model(bits, tmp_path):
    widths = layer_bits(plain(), bits, {"head": 32})
    quantized = quantize(plain(), widths)
    straight, coded = tmp_path / "straight", tmp_path / "coded"
    pack(quantized, straight, {})
    pack(quantized, coded, {}, coded=True)
    assert is_coded(coded)
    assert not is_coded(straight)
    assert coded.stat().st_size < 0.96 * straight.stat().st_size
    before = predicted_bytes(plain(), widths, {}, coded_sizes(plain(), [bits]))
    assert coded.stat().st_size == before == predicted_bytes(plain(), widths, {}, sizes_of(quantized.codes))
    fresh = plain()
    codes = unpack(coded, fresh).codes
    assert all(torch.equal(codes[name].q, one.q) for name, one in quantized.codes.items())
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in quantized.model.state_dict().items())


def test_layers_that_would_grow_are_left_and_a_file_of_them_is_of_the_old_version(tmp_path):
    draw = torch.Generator().manual_seed(0)
    model = fold(small())
    quantized = quantize(model, {"head": 8})
    flat = torch.randint(-127, 128, quantized.codes["head"].q.shape, generator=draw)
    assert len(encode(flat.to(torch.int8), 8)) > flat.numel()
    assert sizes_of(quantized.codes) == {"head": {}}
    pack(quantized, tmp_path / "a", {}, coded=True)
    pack(quantized, tmp_path / "b", {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def _changed(path, name, change):
    """The file with the entry of a layer in its header changed."""
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["packed"])
    change(content)
    save_file(load_file(path), path, metadata={"packed": json.dumps(content)})


def test_headers_that_do_not_fit_are_refused_before_a_tensor_is_read(tmp_path):
    path, name = tmp_path / "x", "layer1"
    quantized = quantize(plain(), {name: 4})
    for change, message in [
        (lambda one: one["layers"][name].update(coded=10**9), f"{name}: 1000000000 coded bytes in the file"),
        (lambda one: one["layers"][name].update(coded=True), f"{name}: True coded bytes"),
        (lambda one: one["layers"][name].pop("coded"), "does not go with 0 coded layers"),
        (lambda one: one.update(version=1), "does not go with 1 coded layers"),
        (lambda one: one["layers"][name].update(coded=17), "in the file, U8"),
        (lambda one: one.update(version=3), "this release reads 1 and 2"),
    ]:
        pack(quantized, path, {}, coded=True)
        _changed(path, name, change)
        with pytest.raises(ValueError, match=message):
            unpack(path, plain())


def test_widths_are_traded_by_the_bytes_that_are_written():
    model = plain()
    losses = {name: {width: 4.0**-width for width in WIDTHS} for name in ("conv1", "layer1", "head")}
    coded = {"layer1": {8: 500}}
    sizes = layer_bytes(model, coded=coded)
    points = front_of(model, losses, {}, coded).points
    assert all(point.size_bytes == sum(sizes[name][bits] for name, bits in point.bits.items()) for point in points)
    assert {point.bits["layer1"] for point in points[1:]} == {8}  # all others are larger


def test_a_damaged_layer_is_named(tmp_path):
    path, name = tmp_path / "x", "layer1"
    pack(quantize(plain(), {name: 4}), path, {}, coded=True)
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors[f"{name}.q"][:] = 255
    save_file(tensors, path, metadata=about)
    model = plain()
    before = model(torch.ones(1, 3, 16, 16))
    with pytest.raises(ValueError, match=f"{name}: the coded stream"):
        unpack(path, model)
    assert torch.equal(model(torch.ones(1, 3, 16, 16)), before)
