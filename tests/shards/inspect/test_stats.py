"""`stats` reports what a person asks of data before training: in words, as a figure, for programs."""

import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure

from shards.cli import app
from shards.decode import image_size
from shards.format.manifest import read_manifest
from shards.inspect.figures import save
from shards.inspect.preview.figure import stats_figure
from shards.inspect.preview.stats import Side, Spread, profile
from shards.inspect.preview.stats_json import as_json
from shards.inspect.preview.stats_text import NONE, blocks, stats_lines
from shards.loading.open import open_subset
from shards.loading.reader import Reader
from shards.settings import ConfigError
from tests.shards.kinds import BOXES, KINDS, captions, cells, damage, street, zoo
from tests.shards.server import FaultyServer


def verb(*words) -> object:
    return app(["stats", *map(str, words)], result_action="return_value", exit_on_error=False)


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes if axes.axison]


def line(text: str, start: str) -> list[str]:
    """The words of the line that begins with `start`, after it."""
    (found,) = [each for each in text.splitlines() if each.strip().startswith(start)]
    return found.strip().removeprefix(start).split()


def test_classes_stand_side_by_side_and_missing_ones_are_seen(tmp_path, capsys):
    verb(zoo(tmp_path), zoo(tmp_path, "farm", ("cow", "dog"), 4))
    out = capsys.readouterr().out
    assert line(out, "cat") == ["10", NONE]
    assert line(out, "dog") == ["10", "4"]
    assert line(out, "cow") == [NONE, "4"]
    assert "the source does not have this class" in out


def test_imbalance_is_told(tmp_path, capsys):
    folder = zoo(tmp_path)
    verb(folder)
    assert "zoo: as many samples of each class" in capsys.readouterr().out
    manifest = read_manifest(folder, "train")
    found = profile(open_subset(folder), 0)
    object.__setattr__(manifest.stats, "class_counts", (27, 3, 9))
    found.manifest = manifest
    assert "9.0 times as many samples of cat as of dog" in "\n".join(stats_lines([found], 100))
    object.__setattr__(manifest.stats, "class_counts", (27, 0, 9))
    assert "1 of 3 classes have no samples" in "\n".join(stats_lines([found], 100))


def test_image_sizes_are_those_of_the_images(tmp_path):
    subset = open_subset(captions(tmp_path, 12))
    found = profile(subset, None)
    assert found.sizes == Counter({(20 + n, 30): 1 for n in range(12)})
    assert (found.width.low, found.width.quantile(0.5), found.width.high) == (20, 25, 31)
    assert found.aspect.high == pytest.approx(31 / 30, rel=1e-3)
    reader = Reader([subset])
    sizes = Counter(image_size(reader.read(0, *subset.locate(i)).image) for i in range(subset.num_samples))
    assert found.sizes == sizes
    assert found.formats == {"jpg": 12}


def test_boxes_are_counted_and_measured_against_the_image(tmp_path, capsys):
    folder = cells(tmp_path)
    found = profile(open_subset(folder), None)
    assert found.counts == {"ox": 2, "rat": 1, "yak": 0}
    assert found.boxes.counts == {2: 1, 1: 1, 0: 1}
    assert dict(zip(found.counts, found.holding, strict=True)) == {"ox": 2, "rat": 1, "yak": 0}
    sides = {
        label: sorted(
            ((x1 - x0) * (y1 - y0) / (24 * 20)) ** 0.5
            for boxes in BOXES.values()
            for name, (x0, y0, x1, y1) in boxes
            if name == label
        )
        for label in found.counts
    }
    for label, spread in zip(found.counts, found.box_sizes, strict=True):
        assert sorted(spread.counts.elements()) == pytest.approx(sides[label], rel=1e-3)
    assert found.coco == [3, 0, 0]
    verb(folder)
    out = capsys.readouterr().out
    assert line(out, "images without box") == ["33.3", "%"]
    assert line(out, "rat")[:5] == ["1", "33.3", "%", "33.3", "%"]
    assert line(out, "yak") == ["0", "0", "0", NONE]
    assert "1 of 3 classes have no boxes" in out


def test_masks_are_shares_of_the_pixels(tmp_path, capsys):
    folder = street(tmp_path)
    found = profile(open_subset(folder), None)
    assert found.void / found.pixels == 0.25
    assert found.holding == [4, 4, 0]
    verb(folder)
    out = capsys.readouterr().out
    assert line(out, "sky")[:4] == ["50.0", "%", "100.0", "%"]
    assert line(out, "pixels of no class") == ["25.0", "%"]


def test_texts_and_numbers_beside_the_image(tmp_path, capsys):
    folder = captions(tmp_path)
    verb(folder)
    out = capsys.readouterr().out
    assert line(out, "text, words")[:5] == ["1", "1", "6", "12", "12"]
    assert line(out, "year")[:5] == ["1990", "1990", "1995", "2001", "2001"]
    assert line(out, "text  ") == ["12", "different", "texts"]


def test_few_texts_are_named_and_very_many_are_not_kept():
    side = Side()
    for text in ["red", "red", "blue"]:
        side.add(text)
    assert side.texts == {"red": 2, "blue": 1}
    for n in range(5000):
        side.add([f"text {n}", "and another"])
    assert side.has_many
    assert not side.texts
    assert side.words.total == 10_003
    assert side.several.counts == {2: 5000}


def test_sizes_says_how_many_samples_are_read(tmp_path, capsys):
    folder = zoo(tmp_path, per_class=40)
    for words, read in (([], 120), (["--sizes", "50"], 50), (["--sizes", "all"], 120), (["--sizes", "0"], 0)):
        verb(folder, "--json", *words)
        assert json.loads(capsys.readouterr().out)[0]["read"] == read
    verb(folder, "--sizes", 50)
    assert "50 of 120 samples read" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="expected 0 or more samples, or `all`"):
        verb(folder, "--sizes", -1)


def test_samples_come_from_everywhere_by_seed(tmp_path):
    subset = open_subset(captions(tmp_path, 40))
    first, again, other = (profile(subset, 20, seed).sizes for seed in (0, 0, 1))
    assert first == again != other
    widths = [width for width, _ in first]
    assert len(widths) == 20
    assert min(widths) < 30 < 50 < max(widths)


def test_manifests_alone_cost_no_look_at_a_shard(tmp_path, capsys):
    folder = zoo(tmp_path)
    for shard in read_manifest(folder, "train").shards:
        (folder / shard.path).write_bytes(b"nothing that can be read")
    verb(folder, "--sizes", 0)
    out = capsys.readouterr().out
    assert line(out, "cat")[0] == "10"
    assert line(out, "width") == ["24"]
    assert "damaged" not in out
    verb(folder)
    assert "30 of 30 samples read are damaged" in capsys.readouterr().out


def test_damage_is_named(tmp_path, capsys):
    folder = zoo(tmp_path)
    damage(folder, 5)
    verb(folder)
    out = capsys.readouterr().out
    assert "1 of 30 samples read are damaged" in out
    assert re.search(r"(cat|dog|owl)/\d+: its bytes changed", out)
    assert profile(open_subset(folder), None).sizes == {(24, 20): 29}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told_to_programs_is_whole(kind, tmp_path, capsys):
    folder = KINDS[kind](tmp_path)
    verb(folder, folder, "--json")
    first, second = json.loads(capsys.readouterr().out)
    manifest = read_manifest(folder, "train")
    assert first["classes"] == dict(zip(manifest.classes, manifest.stats.class_counts, strict=True))
    assert first["version"] == manifest.version
    assert sum(count for *_, count in first["read_samples"]["sizes"]) == manifest.num_samples
    for name in ("width", "height", "aspect", "file_bytes"):
        assert sum(first["read_samples"][name]["counts"]) == manifest.num_samples
    assert first == second


def test_numbers_of_programs_and_people_agree(tmp_path):
    found = profile(open_subset(cells(tmp_path)), None)
    said = as_json(found)["read_samples"]
    assert said["boxes"]["median"] == 1
    assert said["coco_sizes"] == {"small": 3, "medium": 0, "large": 0}
    assert said["box_side_by_class"]["yak"] is None
    assert said["box_side"]["max"] == found.box_size.high == 1


def test_very_many_classes_are_cut_in_words_and_a_curve_in_the_figure(tmp_path, capsys):
    names = tuple(f"kind{n:03d}" for n in range(120))
    folder = zoo(tmp_path, "many", names, 2)
    verb(folder)
    out = capsys.readouterr().out
    assert "... and 85 more ..." in out
    assert len(out.splitlines()) < 70
    found = profile(open_subset(folder), None)
    figure = stats_figure([found])
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "Samples by class"]
    assert axes.get_xlabel() == "120 classes, from the most to the least frequent"
    assert len(as_json(found)["classes"]) == 120


@pytest.mark.parametrize("width", [80, 100, 160])
def test_many_sources_stay_within_the_width(width, tmp_path):
    folders = [zoo(tmp_path, f"a_source_with_a_name_{n}", per_class=2) for n in range(5)]
    profiles = [profile(open_subset(folder), None) for folder in [*folders, cells(tmp_path), street(tmp_path)]]
    lines = stats_lines(profiles, width)
    assert max(map(len, lines)) <= width
    for found in profiles:
        assert any(found.name in line for line in lines)


def test_all_kinds_stand_on_one_figure(tmp_path):
    profiles = [profile(open_subset(build(tmp_path)), None) for build in KINDS.values()]
    figure = stats_figure(profiles)
    expected = {
        "Samples by class",
        "Boxes by class",
        "Share of pixels by class (%)",
        "Image sizes",
        "Width / height",
        "Image file",
        "Boxes an image",
        "Side of a box",
        "Side of a box in cells",
        "text, words",
        "year",
        "Colour: mean ± deviation",
        "Images with the class (%)",
    }
    assert set(titles(figure)) == expected
    for ending in (".png", ".svg", ".pdf"):
        save(figure, tmp_path / f"all{ending}")
        assert (tmp_path / f"all{ending}").stat().st_size > 10_000


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_figure(kind, tmp_path, capsys):
    folder = KINDS[kind](tmp_path)
    verb(folder, "--out", tmp_path / "deep" / "stats.png")
    assert "stats.png" in capsys.readouterr().out
    assert (tmp_path / "deep" / "stats.png").read_bytes().startswith(b"\x89PNG")
    verb(folder, "--sizes", 0, "--out", tmp_path / "bare.png")
    with pytest.raises(ConfigError, match=r"ending in \.png or \.svg or \.pdf"):
        verb(folder, "--out", tmp_path / "stats.gif")


def test_bars_show_a_missing_class_as_nothing(tmp_path):
    one, two = zoo(tmp_path), zoo(tmp_path, "farm", ("cow", "dog"), 4)
    figure = stats_figure([profile(open_subset(folder), 0) for folder in (one, two)])
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left") == "Samples by class"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "owl", "cow"]
    assert sorted(patch.get_width() for patch in axes.patches) == [4, 4, 10, 10, 10]  # pyright: ignore[reportAttributeAccessIssue]


def test_names_are_no_formulas(tmp_path):
    folder = zoo(tmp_path, "$x_{$", ("a$\\frac$", "_b", "c"), 3)
    save(stats_figure([profile(open_subset(folder), None)]), tmp_path / "names.png")


def test_quantiles_and_histograms_are_those_of_the_values():
    values = np.random.default_rng(0).integers(1, 1000, 5000).astype(float)
    spread = Spread()
    for value in values:
        spread.add(value)
    for part in (0, 0.05, 0.5, 0.95, 1):
        assert spread.quantile(part) == np.quantile(values, part, method="inverted_cdf")
    edges = np.linspace(1, 999, 13).tolist()
    assert spread.histogram(edges) == np.histogram(values, edges)[0].tolist()
    assert len(blocks(spread, edges)) == 12


def test_memory_does_not_grow_with_the_values():
    spread = Spread()
    for value in np.random.default_rng(0).random(50_000) + 1:
        spread.add(value)
    assert spread.total == 50_000
    assert len(spread.counts) <= 1001


def test_blocks_tell_few_from_none():
    spread = Spread(Counter({1.0: 1000, 5.0: 1}))
    assert blocks(spread, [0, 2, 4, 6]) == "█·▁"


def test_a_remote_folder_costs_the_shards_that_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder, server = zoo(tmp_path, per_class=40), FaultyServer()
    try:
        server.files = {f"/zoo/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
        for sizes, most in ((0, 0), (20, 2), (120, len(read_manifest(folder, "train").shards))):
            server.requests.clear()
            verb(f"{server.url}/zoo", "--sizes", sizes, "--json")
            assert json.loads(capsys.readouterr().out)[0]["read"] == sizes
            assert sum(".tar" in path for path in server.requests) <= most
    finally:
        server.down()


def test_the_same_name_twice_is_told_apart_by_folder(tmp_path, capsys):
    one, two = zoo(tmp_path / "a"), zoo(tmp_path / "b")
    verb(one, two, "--json")
    names = [said["name"] for said in json.loads(capsys.readouterr().out)]
    assert names == [str(one), str(two)]


def test_all_faults_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        verb(zoo(tmp_path), tmp_path / "nowhere", tmp_path / "raw")
    assert len(caught.value.faults) == 2
    assert all(a != b for a, b in itertools.pairwise(caught.value.faults))
