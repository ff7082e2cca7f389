"""`show` puts each sample beside what it says: on a sheet, in a terminal, in words."""

import io
import itertools
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from shards.cli import app
from shards.decode import decode
from shards.format.manifest import read_manifest, splits_in
from shards.ingest.build import build
from shards.inspect.glance import opened
from shards.inspect.preview.paint import colour, fitted, font, shortened, wrapped
from shards.inspect.preview.show import Preview, choose, contact_sheet, save, sheet_preview, tiles
from shards.inspect.preview.terminal import print_tiles, shows_pictures, terminal_preview
from shards.inspect.repair import repair
from shards.inspect.verify import inspect
from shards.loading.open import open_subset
from shards.settings import ConfigError
from shards.sources import SourceOptions
from tests.shards.images import encoded
from tests.shards.kinds import BOXES, KINDS, captions, cells, damage, street, zoo
from tests.shards.server import FaultyServer

_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def verb(*words) -> object:
    return app(["show", *map(str, words)], result_action="return_value", exit_on_error=False)


def printed(folder, width: int = 80, **options) -> str:
    """What a terminal of 24-bit colours gets to see."""
    settings = {"force_terminal": True, "color_system": "truecolor", "no_color": False, **options}
    console = Console(file=io.StringIO(), width=width, height=50, legacy_windows=False, **settings)
    subset = open_subset(folder)
    preview = terminal_preview(console, [subset], None, 0, None)
    print_tiles(console, subset, tiles(subset, preview), preview.side)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_picture_stands_with_its_own_class_and_key(tmp_path):
    shown = tiles(open_subset(zoo(tmp_path)), Preview(9, side=24))
    assert [tile.title for tile in shown] == ["cat"] * 3 + ["dog"] * 3 + ["owl"] * 3
    for tile in shown:
        assert tile.key.startswith(tile.title)
        data = (tmp_path / "raw" / "zoo" / f"{tile.key}.jpg").read_bytes()
        assert tile.picture is not None
        assert np.array_equal(np.asarray(tile.picture), decode(data))


def test_boxes_are_drawn_where_they_are_in_the_colour_of_their_class(tmp_path):
    subset = open_subset(cells(tmp_path))
    found = {tile.key: tile for tile in tiles(subset, Preview(9, side=240, names=False))}
    assert set(found) == set(BOXES)
    for key, boxes in BOXES.items():
        picture = found[key].picture
        assert picture is not None
        assert picture.size == (240, 200)
        for label, (x0, y0, x1, y1) in boxes[:1]:
            ink = colour(subset.classes.index(label))
            assert picture.getpixel((10 * x0, 10 * (y0 + y1) // 2)) == ink
            assert picture.getpixel((10 * x1 - 1, 10 * (y0 + y1) // 2)) == ink
            assert picture.getpixel((5 * (x0 + x1), 5 * (y0 + y1))) != ink
    assert {key: tile.title for key, tile in found.items()} == {"a": "1 rat, 1 ox", "b": "1 ox", "c": "no box"}


def test_masks_colour_the_image_and_darken_what_has_no_class(tmp_path):
    (tile, *_) = tiles(open_subset(street(tmp_path)), Preview(1, side=24))
    assert tile.picture is not None
    image = np.asarray(Image.open(io.BytesIO(encoded(int(tile.key))))).astype(int)
    drawn = np.asarray(tile.picture).astype(int)
    assert np.abs(drawn[5, 20] - (image[5, 20] + colour(0)) / 2).max() <= 2
    assert np.abs(drawn[15, 20] - (image[15, 20] + colour(1)) / 2).max() <= 2
    assert (drawn[:, :6].sum() / image[:, :6].sum()) < 0.4
    assert tile.title == "sky 38%, road 38%"


def test_side_inputs_are_told(tmp_path):
    shown = {tile.key: tile for tile in tiles(open_subset(captions(tmp_path)), Preview(12))}
    assert shown["2"].said == ("text: word word end", "year: 1992")


def test_a_damaged_sample_keeps_its_place_with_the_reason(tmp_path, capsys):
    folder = zoo(tmp_path)
    before = tiles(open_subset(folder), Preview(30))
    damage(folder, 7)
    after = tiles(open_subset(folder), Preview(30))
    (lost,) = [n for n, tile in enumerate(after) if tile.picture is None]
    assert after[lost].key == before[lost].key
    assert "crc32" in after[lost].said[0]
    assert [tile.key for tile in after] == [tile.key for tile in before]
    verb(folder, "--count", 30, "--out", tmp_path / "sheet.png")
    verb(folder, "--count", 30)
    assert capsys.readouterr().out.count(" damaged  its bytes changed") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_becomes_a_sheet_a_terminal_page_and_words(kind, tmp_path, capsys):
    folder = KINDS[kind](tmp_path)
    assert verb(folder, "--out", tmp_path / "sheet.png") is None
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert len(sheet.convert("RGB").getcolors(1 << 20) or []) > 50
    assert "▀" in printed(folder)
    capsys.readouterr()
    assert verb(folder) is None
    words = capsys.readouterr().out
    assert "\x1b" not in words
    assert re.search(r"\d+x\d+", words)


@pytest.mark.parametrize("width", [20, 79, 80, 81, 132, 250])
@pytest.mark.parametrize("kind", ["classes", "boxes"])
def test_no_line_is_wider_than_the_terminal(kind, width, tmp_path):
    lines = _ESCAPES.sub("", printed(KINDS[kind](tmp_path), width)).splitlines()
    assert max(map(len, lines[1:])) <= width
    blank = [n for n, line in enumerate(lines) if not line.strip()]
    assert all(b - a > 1 for a, b in itertools.pairwise(blank)), "pictures have no gaps"


def test_without_colours_a_terminal_gets_words(tmp_path):
    folder = zoo(tmp_path)
    for options in ({"no_color": True}, {"color_system": None}, {"color_system": "standard"}):
        text = printed(folder, **options)
        assert "▀" not in text
        assert re.search(r"cat/\d+ +24x20 +cat", text)
    assert not shows_pictures(Console(file=io.StringIO()))


def test_only_one_class(tmp_path):
    shown = tiles(open_subset(zoo(tmp_path)), Preview(50, only="dog"))
    assert [tile.title for tile in shown] == ["dog"] * 10
    assert [tile.key for tile in tiles(open_subset(cells(tmp_path)), Preview(5, only="rat"))] == ["a"]
    assert {tile.key for tile in tiles(open_subset(cells(tmp_path / "2")), Preview(5, only="ox"))} == {"a", "b"}
    assert len(tiles(open_subset(street(tmp_path)), Preview(3, only="road"))) == 3


def test_a_class_that_nothing_has_is_said_to_be_missing(tmp_path, capsys):
    assert verb(cells(tmp_path), "--only", "yak", "--out", tmp_path / "sheet.png") == 1
    assert "no sample holds 'yak'" in capsys.readouterr().out
    assert not (tmp_path / "sheet.png").exists()


def test_an_unknown_class_is_answered_with_those_there_are(tmp_path):
    with pytest.raises(ConfigError, match=r"no class 'dogs'; did you mean 'dog'\? there are cat, dog, owl"):
        verb(zoo(tmp_path), "--only", "dogs")
    with pytest.raises(ConfigError, match="no classes"):
        verb(captions(tmp_path), "--only", "dog")
    many = zoo(tmp_path, "many", tuple(f"c{n:02d}" for n in range(40)), 1)
    with pytest.raises(ConfigError, match="c19 and 20 more"):
        verb(many, "--only", "x")


def test_several_folders_share_a_sheet(tmp_path, capsys):
    one, two = zoo(tmp_path), zoo(tmp_path, "farm", ("cow", "dog"))
    verb(one, two, "--count", 4, "--out", tmp_path / "both.png")
    out = capsys.readouterr().out
    assert "zoo/train: 4 of 30 samples" in out
    assert "farm/train: 4 of 20 samples" in out
    verb(one, two, "--only", "cow")
    out = capsys.readouterr().out
    assert "zoo/train: no class 'cow'" in out
    assert out.count("cow/") == 10
    with pytest.raises(ConfigError, match="2 faults"):
        verb(one, tmp_path / "nowhere", tmp_path / "raw")


def test_names_cannot_command_the_terminal(tmp_path, capsys):
    table = tmp_path / "rows.csv"
    for number, name in enumerate("ab"):
        (tmp_path / f"{name}.jpg").write_bytes(encoded(number))
    table.write_text("image,text,label\na.jpg,\x1b[2J\x1b]0;owned\x07,cl\x1bass\nb.jpg,plain,other\n")
    build(table, tmp_path / "out", SourceOptions(side=("text",), label="label"), processes=1)
    verb(tmp_path / "out")
    app(["stats", str(tmp_path / "out")], result_action="return_value", exit_on_error=False)
    assert "\x1b" not in capsys.readouterr().out
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", printed(tmp_path / "out"))


def test_the_seed_chooses_samples_and_classes():
    labels = np.repeat(np.arange(200), 5)
    first, again, other = (choose(labels, 20, seed) for seed in (0, 0, 1))
    assert first == again
    assert len({*labels[first].tolist()}) == 20
    assert len({*labels[first].tolist()} & {*labels[other].tolist()}) < 10
    assert len(choose(labels, 5000, 0)) == 1000


def test_a_rare_class_is_shown_all_the_same():
    labels = np.array([0] * 1000 + [1] * 2)
    assert np.bincount(labels[choose(labels, 10, 0)]).tolist() == [8, 2]


def test_what_cannot_be_drawn_is_refused(tmp_path):
    folder = zoo(tmp_path)
    for words in (["--out", "sheet.gif"], ["--count", 0], ["--count", 10_000], ["--split", "test"]):
        with pytest.raises(ConfigError, match=r"expected|no split"):
            verb(folder, *words)
    with opened([str(folder)], "train") as subsets:
        preview = sheet_preview(subsets, 3, 0, None)
        sheet = contact_sheet([(subsets[0], tiles(subsets[0], preview))], preview.side)
    with pytest.raises(ConfigError, match="too high"):
        save(sheet.resize((10, 70_000)), tmp_path / "sheet.jpg")
    assert not list(tmp_path.glob("*sheet*"))


def test_an_older_version_can_be_looked_at(tmp_path, capsys):
    folder = zoo(tmp_path)
    damage(folder, 3)
    repair(inspect(folder, statistics=True))
    (old,) = [split for split in splits_in(folder) if "@" in split]
    verb(folder, "--count", 40, "--split", old)
    assert "30 of 30" in capsys.readouterr().out
    verb(folder, "--count", 40)
    assert "29 of 29" in capsys.readouterr().out


def test_a_remote_folder_costs_few_shards(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder, server = zoo(tmp_path, per_class=40), FaultyServer()
    shards = len(read_manifest(folder, "train").shards)
    try:
        server.files = {f"/zoo/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
        verb(f"{server.url}/zoo", "--count", 3)
        assert "zoo/train: 3 of 120 samples" in capsys.readouterr().out
        assert 0 < sum(".tar" in path for path in server.requests) < shards
    finally:
        server.down()


def test_texts_are_cut_to_their_room():
    letters = font(12)
    for text in ("a" * 300, "many words " * 40, "short", ""):
        for width in (30, 100, 1000):
            assert letters.getlength(shortened(text, letters, width)) <= width
            lines = wrapped(text, letters, width, 3)
            assert len(lines) <= 3
            assert all(letters.getlength(line) <= width for line in lines)
    assert shortened("photos/2019/a_long_name", letters, 80, keep_end=True).endswith("name")
    assert fitted(Image.new("RGB", (10, 4)), 45)[0].size == (40, 16)


def test_a_class_without_samples_is_no_crash(tmp_path, capsys):
    folder = tmp_path / "rows"
    folder.mkdir()
    for number, name in enumerate(("a", "b")):
        (folder / f"{name}.jpg").write_bytes(encoded(number))
    (folder / "rows.csv").write_text("image,label\na.jpg,cat\nb.jpg,dog\n")
    build(folder / "rows.csv", tmp_path / "out", SourceOptions(classes=("cat", "dog", "owl")), processes=1)
    assert verb(tmp_path / "out", "--only", "owl") == 1
    assert "no sample holds 'owl'" in capsys.readouterr().out
