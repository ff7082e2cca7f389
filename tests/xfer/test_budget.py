"""`quantize` to a budget, to a loss, by layers from a file, and `--front`: sizes kept, images kept apart, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from shards.loading.few import few
from shards.settings import ConfigError, parse, replace
from tests.xfer.command import status
from xfer.bundle import open_model
from xfer.config import QuantizeConfig, with_widths
from xfer.front import measure_front
from xfer.outcomes import outcomes_on
from xfer.quant.bits import layers
from xfer.quant.cost import predicted_bytes
from xfer.quant.fold import fold
from xfer.quantize import file_metadata, held_out, make_bundle, try_out
from xfer.surface import Run
from xfer.widths import smallest_within


@pytest.fixture(scope="module")
def sizes(trained, recipe):
    """Bytes of the file with a width in every layer."""
    model = fold(trained.model)
    return {
        width: predicted_bytes(model, dict.fromkeys(layers(model), width), file_metadata(trained, recipe))
        for width in (2, 3, 4, 8)
    }


@pytest.mark.parametrize("share", [0.0, 0.3, 0.72])
def test_the_file_of_a_budget_is_no_larger_and_near_to_it(recipe, trained, data, sizes, tmp_path, share):
    budget = round(sizes[2] + share * (sizes[8] - sizes[2]))
    made = make_bundle(trained, with_widths(recipe, {"budget": budget}), data, tmp_path / "b")
    size = (tmp_path / "b" / "weights.safetensors").stat().st_size
    assert 0.98 * budget < size <= budget
    assert made.foretold_bytes == pytest.approx(size, rel=1e-3)
    bits = yaml.safe_load((tmp_path / "b" / "bits.yaml").read_text())
    assert bits == made.bundle.bits == dict(made.widths.bits)
    assert (len(set(bits.values())) > 1) == (share > 0)
    card = (tmp_path / "b" / "card.md").read_text()
    assert f"for at most {budget:,} bytes" in card
    for name, width in bits.items():
        assert made.widths.losses is not None
        line = next(line for line in card.splitlines() if line.startswith(f"| {name} |"))
        assert line.split("|")[3].strip() == str(width)
        assert float(line.split("|")[5]) == pytest.approx(made.widths.losses[name][width], rel=0.06)


def test_a_coded_budget_is_filled_with_coded_bytes(recipe, trained, data, sizes, tmp_path, capsys):
    budget = (sizes[3] + sizes[4]) // 2
    plain, coded = tmp_path / "plain", tmp_path / "coded"
    for folder, more in ((plain, ()), (coded, ("--coded",))):
        given = ("quantize", str(recipe.folder), "--budget", str(budget), "--out", str(folder))
        assert status(*given, *more) == 0
    said = capsys.readouterr().out
    assert "coded without loss in " in said
    assert "coded without loss in " in (coded / "card.md").read_text()
    assert "coded without loss" not in (plain / "card.md").read_text()
    size = (coded / "weights.safetensors").stat().st_size
    assert 0.97 * budget < size <= budget
    assert f"{size:,} packed ({size:,} foretold)" in said
    weights = {name: layer.weight.numel() for name, layer in layers(open_model(coded).model).items()}
    stored = [sum(weights[name] * bits for name, bits in open_model(one).bits.items()) for one in (plain, coded)]
    assert stored[1] > 1.04 * stored[0]


def test_a_coded_budget_with_finish_is_refused():
    with pytest.raises(ValueError, match="coded: must be false for a budget with finish"):
        QuantizeConfig.model_validate({"coded": True, "budget": "4MB", "finish": 3})


def test_a_budget_is_better_spent_by_sensitivity_than_on_one_width(recipe, trained, data, sizes, tmp_path):
    images = next(few(data.validation, recipe.data, 120)).images
    errors = {}
    for name, way in {"mixed": {"budget": sizes[3]}, "uniform": {"bits": 3}}.items():
        bundle = make_bundle(trained, with_widths(recipe, way), data, tmp_path / name).bundle
        with torch.inference_mode():
            expected, packed = (one.model(images).log_softmax(1) for one in (trained, bundle))
        errors[name] = float((expected.exp() * (expected - packed)).sum(1).mean())
    assert errors["mixed"] < 0.8 * errors["uniform"]


def test_more_than_eight_bits_everywhere_is_eight_bits_everywhere_and_said(recipe, sizes, tmp_path, capsys):
    assert status("quantize", str(recipe.folder), "--budget", "1GB", "--out", str(tmp_path / "b")) == 0
    assert set(open_model(tmp_path / "b").bits.values()) == {8}
    assert "8 bits in every layer need no more" in capsys.readouterr().out


def test_a_budget_below_two_bits_is_refused_before_anything_is_measured(recipe, sizes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("xfer.quantize.sensitivities", lambda *given: pytest.fail("measured"))
    out = tmp_path / "b"
    assert status("quantize", str(recipe.folder), "--budget", str(sizes[2] - 1), "--out", str(out)) == 2
    assert f"quantize.budget: must be at least {sizes[2]:,} bytes" in capsys.readouterr().err
    assert not out.exists()


def test_calibration_search_and_report_share_no_image_and_are_said(recipe, trained, data, sizes, tmp_path):
    held = held_out(data, recipe.data, halved=True)
    search, report = (_keys(part) for part in (held.search, held.report))
    every = _keys(data.validation)
    assert search | report == every
    assert not search & report
    assert 0.3 < len(search) / len(every) < 0.7
    made = make_bundle(trained, with_widths(recipe, {"max_drop": 60.0}), data, tmp_path / "b")
    assert made.compared is not None
    splits = json.loads((tmp_path / "b" / "manifest.json").read_text())["splits"]
    assert splits["calibration"]["images"] == recipe.quantize.calibration
    assert splits["search"]["images"] == len(search)
    assert splits["report"]["images"] == len(report) == made.compared.num_images
    models = {"trained": trained.model, "packed": made.bundle.model}
    found = outcomes_on(models, held.report, recipe.data, trained.classes, "check")
    for name, right in found["packed"].items():
        assert np.array_equal(right, made.compared.second[name])
    for tried in made.widths.tried:
        assert tried.compared.num_images == len(search)
    for part, one in splits.items():
        assert f"{part} on {one['images']:,} images: {one['of']}" in (tmp_path / "b" / "card.md").read_text()


def test_the_smallest_that_was_found_within_a_loss_is_taken(recipe, trained, data, tmp_path):
    made = make_bundle(trained, with_widths(recipe, {"max_drop": 3.0}), data, tmp_path / "b")
    best, *others = made.widths.tried
    assert best.drop <= 3
    assert best.size_bytes == made.bundle.weights_bytes
    assert made.bundle.bits == dict(best.bits)
    assert all(one.drop > 3 for one in others if one.size_bytes < best.size_bytes)
    assert len(others) <= 7
    with pytest.raises(ConfigError, match=r"quantize.max_drop: .* 8 bits in every layer lose"):
        smallest_within(_Front(), -101.0, lambda point, what: best)


def _keys(subsets):
    return {(one.name, int(key)) for one in subsets for key in one.key_hashes()}


class _Front:
    def spread(self, count):
        return [None] * 3


def test_a_front_is_measured_on_the_search_half_and_each_point_can_be_made(recipe, trained, tmp_path, capsys):
    folder = str(recipe.folder)
    assert status("quantize", folder, "--front", "3", "--out", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    front = json.loads((tmp_path / "front.json").read_text())
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    points = front["points"]
    assert [set(points[end]["bits"].values()) for end in (0, -1)] == [{2}, {8}]
    assert [one["bytes"] for one in points] == sorted(one["bytes"] for one in points)
    assert "report" not in front["images"]
    for number, point in enumerate(points, 1):
        assert any(line.split()[:2] == [str(number), f"{point['bytes']:,}"] for line in shown.splitlines())
    out = tmp_path / "b"
    assert status("quantize", folder, "--bits-file", f"{tmp_path / 'front.json'}#2", "--out", str(out)) == 0
    bundle = open_model(out)
    assert bundle.bits == points[1]["bits"]
    assert bundle.weights_bytes == points[1]["bytes"]
    data = held_out(_opened(recipe), recipe.data, halved=True)
    right = outcomes_on({"m": bundle.model}, data.search, recipe.data, bundle.classes, "check")["m"]
    assert np.mean([one.mean() for one in right.values()]) == pytest.approx(points[1]["value"])
    again = tmp_path / "again"
    assert status("quantize", folder, "--bits-file", str(out / "bits.yaml"), "--out", str(again)) == 0
    assert (again / "weights.safetensors").read_bytes() == (out / "weights.safetensors").read_bytes()


def test_a_front_that_was_stopped_measures_the_rest(trained, recipe, tmp_path, monkeypatch):
    whole, broken, sizes = tmp_path / "whole", tmp_path / "broken", []

    def counted(folded, bits, *rest):
        if len(sizes) == 2 and not (whole / "front.json").exists():  # Ctrl-C
            raise KeyboardInterrupt
        sizes.append(bits)
        return try_out(folded, bits, *rest)

    monkeypatch.setattr("xfer.front.try_out", counted)
    with pytest.raises(KeyboardInterrupt):
        measure_front(trained, recipe, 3, broken)
    assert not (broken / "front.json").exists()
    monkeypatch.setattr("xfer.front.try_out", try_out)
    measure_front(trained, recipe, 3, whole)
    monkeypatch.setattr("xfer.front.try_out", counted)
    measure_front(trained, recipe, 3, broken)
    assert len(sizes) == 3
    assert (broken / "front.json").read_bytes() == (whole / "front.json").read_bytes()
    assert sorted(one.name for one in broken.iterdir()) == ["front.json", "front.png"]


def _opened(recipe):
    from xfer.prepare import open_labelled

    return open_labelled(recipe.data)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--budget", "4MB", "--max-drop", "1"], "in one way only, got --budget and --max-drop"),
        (["--budget", "4MB", "quantize.groups.head=8"], "got --budget and quantize.groups.head=8"),
        (["--budget", "4XB"], "quantize.budget: must be a size such as 4MB"),
        (["quantize.budget=1MB", "quantize.bits=4"], "quantize: must say the bits in one way"),
        (["--max-drop", "0"], "quantize.max_drop: must be more than 0"),
        (["--max-drop", "1", "data.validation=0", "data.test={}"], "quantize.max_drop: chooses by held-out images"),
        (["--front", "1"], "--front: must be at least 2"),
        (["--front", "3", "data.validation=0", "data.test={}"], "--front: nothing is held out"),
        (["--bits-file", "{bits}"], "quantize.layers.no.such: this model has no such layer"),
        (["--bits-file", "{bits}#3"], "only a front has numbered points"),
        (["--bits-file", "{front}"], "name one of its points"),
        (["--bits-file", "{front}#3"], "name one of its points"),
        (["--bits-file", "{tmp}/none.yaml"], "no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(recipe, tmp_path, capsys, words, said):
    (bits := tmp_path / "bits.yaml").write_text("no.such: 4\n")
    (front := tmp_path / "front.json").write_text('{"points": [{"bits": {"a": 4}}]}')
    filled = [word.replace("{bits}", str(bits)).replace("{front}", str(front)) for word in words]
    filled = [word.replace("{tmp}", str(tmp_path)) for word in filled]
    assert status("quantize", str(recipe.folder), *filled, "--out", str(tmp_path / "b")) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("4MB", 4_000_000),
        ("4.5MB", 4_500_000),
        ("500kB", 500_000),
        ("2MiB", 2_097_152),
        ("7", 7),
        (7, 7),
        ("1 GB", 10**9),
    ],
)
def test_a_size_may_be_written_with_its_unit(given, size):
    assert parse({"budget": given}, QuantizeConfig).budget == size


def test_an_option_takes_the_place_of_what_the_recipe_says_and_python_has_the_same(recipe, sizes, tmp_path):
    plain = replace(recipe, {"quantize.bits": 4, "quantize.groups": {"head": 8}})
    assert with_widths(plain, {"budget": 10**6}).quantize.groups == {}
    assert with_widths(with_widths(plain, {"budget": 10**6}), {"bits": 4}).quantize.budget is None
    assert with_widths(plain, {}) == plain
    model = Run(recipe.folder).quantize(budget=sizes[4], out=tmp_path / "b")
    assert len(set(model.bits.values())) > 1
    assert Run(recipe.folder).quantize(layers=model.bits, out=tmp_path / "c").bits == model.bits


def test_a_bundle_of_before_there_were_bits_in_it_is_still_one(recipe, tmp_path):
    from xfer.checkpoint import write_manifest

    Run(recipe.folder).quantize(bits=8, out=tmp_path / "b")
    (tmp_path / "b" / "bits.yaml").unlink()
    write_manifest(tmp_path / "b", {"format": 1})
    assert open_model(tmp_path / "b").bits is not None
    assert Run(recipe.folder).quantize(bits=4, out=tmp_path / "b").bits


def test_stopped_in_the_middle_nothing_is_left_but_the_sizes_that_are_measured(recipe, trained, tmp_path, monkeypatch):
    def stop(*given, **options):
        raise KeyboardInterrupt

    for where, run in {
        "xfer.bundle._check_size": lambda: Run(recipe.folder).quantize(bits=8, out=tmp_path / "b"),
        "xfer.front.sizes_png": lambda: measure_front(trained, recipe, 2, tmp_path / "f"),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(where, stop)
            with pytest.raises(KeyboardInterrupt):
                run()
    assert [path.name for path in Path(tmp_path).rglob("*") if path.is_file()] == ["front.part.json"]
