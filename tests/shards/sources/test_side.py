"""A table of side inputs beside a source that has none: which row is whose, and what is refused."""

import json

import pytest

from shards.cli import app
from shards.ingest.build import BuildError, build
from shards.loading.few import few
from shards.loading.open import open_data, open_subset
from shards.loading.source import Source
from shards.settings import ConfigError
from shards.sources import SourceOptions, open_source
from tests.shards.images import config, encoded
from tests.shards.members import members_of

ROWS = "file,price,maker,zip\ncat/a.jpg,3.5,ann,007\nb,4,,010\ndog\\c,,bob,\nelse,1,x,\n"


@pytest.fixture
def raw(tmp_path):
    """Four images in class folders and a table beside them: rows by path, by stem, with a backslash, of no image."""
    folder = tmp_path / "raw"
    for number, name in enumerate(("cat/a.jpg", "cat/b.jpg", "dog/c.jpg", "dog/d.jpg")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(number))
    (tmp_path / "side.csv").write_text(ROWS)
    return folder


def said(raw, **options) -> dict[str, dict]:
    """The side inputs of each sample by key."""
    source = open_source(raw, SourceOptions(side_table=raw.parent / "side.csv", **options))[1]
    return {item.key: json.loads(source.read(item)["json"]) for item in source.items()}


def refused(raw, text: str, **options) -> str:
    (raw.parent / "side.csv").write_text(text)
    with pytest.raises(ConfigError) as error:
        said(raw, **options)
    return str(error.value)


def test_a_row_is_of_the_image_whose_path_ends_with_its_key_and_others_have_none(raw):
    assert said(raw) == {
        "cat/a": {"price": 3.5, "maker": "ann", "zip": "007"},
        "cat/b": {"price": 4, "zip": "010"},
        "dog/c": {"maker": "bob"},
        "dog/d": {},
    }
    assert said(raw, side=("maker",))["cat/a"] == {"maker": "ann"}


def test_what_was_built_has_them_beside_the_untouched_image_and_says_what_fits_nothing(raw, tmp_path):
    options = SourceOptions(side_table=tmp_path / "side.csv")
    report = build(raw, tmp_path / "out", options, processes=1)
    assert report.manifest.fields == {"image": "jpg", "label": "cls", "side": "json"}
    assert members_of(tmp_path / "out")["cat/a"]["jpg"] == encoded(0)
    found = {one.key: dict(one.side) for one in Source(open_subset(tmp_path / "out"))}
    assert found["cat/b"] == {"price": 4, "zip": "010"}
    assert found["dog/d"] == {}
    assert "images without a row in side.csv, which have no side inputs: 1 (dog/d)" in report.notes
    assert "rows of side.csv without an image: 1" in report.notes
    build(raw, tmp_path / "two", options, name="out", processes=2)
    first, second = ((tmp_path / name / "train-000000.tar").read_bytes() for name in ("out", "two"))
    assert first == second


def test_another_table_is_another_build(raw, tmp_path):
    options = SourceOptions(side_table=tmp_path / "side.csv")
    build(raw, tmp_path / "out", options, processes=1)
    assert build(raw, tmp_path / "out", options, processes=1).already_built
    (tmp_path / "side.csv").write_text(ROWS.replace("3.5", "3.6"))
    with pytest.raises(ConfigError, match="is already another build"):
        build(raw, tmp_path / "out", options, processes=1)


def test_a_key_column_that_is_not_there_is_named_with_those_that_are(raw):
    assert "no column with the images' names found" in refused(raw, "who,price\na,1\n")
    assert "there are 'who', 'price'; say which with --image" in refused(raw, "who,price\na,1\n")
    assert said(raw, image="who")["cat/a"] == {"price": 1}
    assert "--image: no column 'sku'" in refused(raw, "who,price\na,1\n", image="sku")
    assert "--side: no column 'cost'" in refused(raw, "file,price\na,1\n", side=("cost",))
    assert "no column beside 'file'" in refused(raw, "file\na\n")


def test_two_rows_of_one_key_and_one_row_of_two_images_are_refused(raw):
    assert "line 3: 'a' has a row already, in line 2" in refused(raw, "file,price\na,1\na.jpg,2\n")
    (raw / "dog" / "a.jpg").write_bytes(encoded(9))
    assert "the row 'a' is that of" in refused(raw, "file,price\na,1\n")
    (raw.parent / "side.csv").write_text("file,price\na,1\ncat/a,2\n")
    assert {key: row for key, row in said(raw).items() if row} == {"cat/a": {"price": 2}, "dog/a": {"price": 1}}


def test_a_table_that_is_of_no_image_and_one_that_is_not_there_are_refused(raw, tmp_path):
    assert "no row is of any image: its column 'file' has x, y, images are called" in refused(
        raw, "file,price\nx,1\ny,2\n"
    )
    with pytest.raises(ConfigError, match=r"--side-table: .*gone.csv: no such file"):
        open_source(raw, SourceOptions(side_table=tmp_path / "gone.csv"))


def test_a_table_without_rows_and_a_folder_in_its_place_are_told_as_what_they_are(raw, tmp_path):
    assert "has no rows below its header" in refused(raw, "file,price\n")
    with pytest.raises(ConfigError, match="is a folder; expected a"):
        open_source(raw, SourceOptions(side_table=tmp_path))


def test_a_refused_build_leaves_no_folder(raw, tmp_path):
    (tmp_path / "side.csv").write_text("file,price\nother,1\n")
    with pytest.raises(ConfigError, match="no row is of any image"):
        build(raw, tmp_path / "out", SourceOptions(side_table=tmp_path / "side.csv"), processes=1)
    assert not (tmp_path / "out").exists()


def test_columns_without_a_table_are_told_the_option_of_one(raw):
    with pytest.raises(ConfigError, match="--side-table"):
        open_source(raw, SourceOptions(side=("price",)))


def test_a_source_with_side_inputs_of_its_own_takes_no_table(raw, tmp_path):
    with pytest.raises(ConfigError, match="kind 'table' has side inputs of its own"):
        open_source(tmp_path / "side.csv", SourceOptions(kind="table", side_table=tmp_path / "side.csv"))


def test_a_value_that_is_neither_text_nor_number_refuses_its_sample(raw, tmp_path):
    (tmp_path / "side.jsonl").write_text('{"file": "a", "price": {"eur": 1}}\n{"file": "b", "price": [1]}\n')
    with pytest.raises(BuildError, match="expected a text, a number, or a list of texts"):
        build(raw, tmp_path / "out", SourceOptions(side_table=tmp_path / "side.jsonl"), processes=1, max_refused=0.0)


def test_the_verb_takes_the_table_and_the_names_of_its_columns(raw, tmp_path, capsys):
    command = ["build", str(raw), str(tmp_path / "out"), "--side-table", str(tmp_path / "side.csv")]
    app([*command, "--side", "price,maker", "--processes", "1"], result_action="return_value")
    assert "side json" in capsys.readouterr().out
    assert dict(Source(open_subset(tmp_path / "out"))[0].side).keys() <= {"price", "maker"}


def test_side_inputs_are_read_without_an_image_being_decoded(raw, tmp_path, monkeypatch):
    build(raw, tmp_path / "shards" / "a", SourceOptions(side_table=tmp_path / "side.csv"), processes=1)
    settings = config(tmp_path, "a", validation=0)
    (whole,) = few(open_data(settings).train, settings, 4)
    monkeypatch.setattr("shards.loading.transforms.open_image", None)
    (bare,) = few(open_data(settings).train, settings, 4, decoded=False)
    assert bare.side == whole.side
    assert bare.targets.equal(whole.targets)
    assert bare.images.shape == (4, 3, 1, 1)
