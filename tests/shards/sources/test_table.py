"""Tables: which column is what, which file is meant, and which row is refused."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from shards.cli import app
from shards.format.manifest import read_manifest
from shards.ingest.build import build
from shards.inspect.verify import verify
from shards.settings import ConfigError
from shards.sources import Refused, SourceOptions, open_source
from tests.shards.images import encoded, image_folder
from tests.shards.members import members_of
from tests.shards.real import CLOTHING, real


def table(folder: Path, text: str, name: str = "rows.csv", images: tuple[str, ...] = ("a.jpg", "b.png")) -> Path:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(encoded(number, "PNG" if image.endswith("png") else "JPEG"))
    (folder / name).write_text(text)
    return folder / name


def read(path: Path, **options) -> dict[str, dict[str, bytes] | str]:
    """Members of each sample by key, or why it is refused."""
    source, samples = open_source(path, SourceOptions(**options))[1], {}
    for item in source.items():
        try:
            samples[item.key] = source.read(item)
        except Refused as error:
            samples[item.key] = str(error)
    return samples


def test_a_csv_with_side_inputs(tmp_path):
    path = table(tmp_path / "raw", "File,age,zip,Label\na.jpg,148,007,cat\nb.png,1.5,,dog\n")
    kind, source = open_source(path, SourceOptions(side=("age", "zip")))
    items = list(source.items())
    assert (kind, source.task, source.classes) == ("table", "classification", ("cat", "dog"))
    assert source.fields == {"label": "cls", "side": "json"}
    assert [(item.key, item.label) for item in items] == [("a", 0), ("b", 1)]
    assert source.read(items[0]) == {"jpg": encoded(0), "cls": b"0", "json": b'{"age":148,"zip":"007"}'}
    assert source.read(items[1]) == {"png": encoded(1, "PNG"), "cls": b"1", "json": b'{"age":1.5}'}


def test_jsonl_keeps_the_kinds_of_its_values(tmp_path):
    rows = [
        {"file_name": "a.jpg", "label": 1, "age": 3, "id": "3", "texts": ["x", "y"], "kids": True, "none": None},
        {"file_name": "b.png", "label": 0, "extra": "not asked for"},
    ]
    path = table(tmp_path / "raw", "\n\n".join(map(json.dumps, rows)), "metadata.jsonl")
    samples = read(path.parent, side=("age", "id", "texts", "kids", "none"))
    assert json.loads(samples["a"]["json"]) == {"age": 3, "id": "3", "texts": ["x", "y"], "kids": "true"}
    assert (samples["a"]["cls"], samples["b"]["cls"], samples["b"]["json"]) == (b"1", b"0", b"{}")


def test_captions_need_no_class(tmp_path):
    path = table(tmp_path / "raw", 'image,text\na.jpg,"a cat, ""tabby""\nat home"\nb.png,a dog\n')
    report = build(path, tmp_path / "out", SourceOptions(side=("text",)), processes=1)
    assert (report.manifest.task, report.manifest.classes) == ("captioning", ())
    assert json.loads(members_of(tmp_path / "out")["a"]["json"]) == {"text": 'a cat, "tabby"\nat home'}
    verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.csv", "image,label\na.jpg,x\nb.png,y\n"),
        ("x.csv", "\ufeffimage;label\r\na.jpg;x\r\nb.png;y\r\n"),
        ("x.TSV", "label\timage\nx\ta.jpg\n\ny\tb.png"),
        ("x.jsonl", '{"image": "./a.jpg", "label": "x"}\n{"label": "y", "image": "b"}\n'),
    ],
)
def test_spellings_of_one_table(tmp_path, name, text):
    samples = read(table(tmp_path / "raw", text, name))
    assert [(key, sample["cls"]) for key, sample in samples.items()] == [("a", b"0"), ("b", b"1")]


def test_names_without_extension_are_found_also_in_folders_below(tmp_path):
    images = ("a.JPG", "train/cat/b.jpg", "train/cat/twice.jpg", "test/dog/twice.png")
    path = table(tmp_path / "raw", "image,label\na,x\nb,y\ntwice,x\ngone,x\n", images=images)
    samples = read(path, classes=("x", "y"))
    assert samples["a"]["jpg"] == encoded(0)
    assert samples["train/cat/b"] == {"jpg": encoded(1), "cls": b"1"}
    assert "several images 'twice'" in samples["line 4"]
    assert "line 5: no image 'gone'" in samples["line 5"]


def test_rows_are_refused_one_by_one(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(encoded(9))
    outside = tmp_path / "secret.jpg"
    text = f"image,label\na.jpg,x\n../secret.jpg,x\n{outside},x\nb.png,\n,x\ngone.jpg,y\n"
    samples = read(table(tmp_path / "raw", text))
    assert samples.pop("a") == {"jpg": encoded(0), "cls": b"0"}
    assert "line 5: no class in column 'label'" in samples.pop("b")
    assert "no such file" in samples.pop("gone")
    assert "no file inside" in samples["line 3"]
    assert "no file inside" in samples["line 4"]
    assert "line 6: no file name in column 'image'" in samples["line 6"]


def test_classes_that_were_not_named(tmp_path):
    path = table(tmp_path / "raw", "image,label\na.jpg,dog\nb.png,cow\n")
    samples = read(path, classes=("cat,dog",))
    assert samples["a"]["cls"] == b"1"
    assert "its class 'cow' is none of the 2 known" in samples["b"]


@pytest.mark.parametrize(
    ("text", "options", "faults"),
    [
        ("picture,kind\na.jpg,x\n", {}, [r"no column with the file names.*'picture', 'kind'.*--image", "--label"]),
        ("image,label\na.jpg,x\n", {"label": "kind"}, [r"--label: no column 'kind'; there are 'image', 'label'"]),
        ("image,label\na.jpg,x\n", {"side": ("age", "x")}, ["--side: no column 'age'", "--side: no column 'x'"]),
        ("image,label,image\na.jpg,x,b.png\n", {}, ["two columns are named 'image'"]),
        ("image,label\na.jpg,x,y\nb.png\n", {}, ["line 2: 3 values, the header names 2", "line 3: 1 values"]),
        ('image,label\na.jpg,"x\n', {}, ["line 2: unexpected end of data"]),
        ("image,label\na.jpg,\n", {}, ["column 'label' is empty"]),
        ("image,label\na.jpg,x\nb.png,x\n", {}, ["only one class, 'x'"]),
        ("", {}, ["no column with the file names", "no column with the classes"]),
    ],
)
def test_tables_that_are_wrong_as_a_whole(tmp_path, text, options, faults):
    path = table(tmp_path / "raw", text)
    with pytest.raises(ConfigError) as caught:
        list(open_source(path, SourceOptions(**options))[1].items())
    assert len(caught.value.faults) == len(faults)
    for message, fault in zip(caught.value.faults, faults, strict=True):
        assert str(path) in message
        assert re.search(fault, message)


def test_lines_that_are_no_json_or_no_text(tmp_path):
    path = table(tmp_path / "raw", '{"image": "a.jpg", "label": "x"}\n{"image":\n[1]\n', "x.jsonl")
    with pytest.raises(ConfigError, match=r"(?s)line 2: not JSON.*line 3: expected a JSON object, found \[1\]"):
        list(open_source(path, SourceOptions())[1].items())
    path.write_bytes(b'{"image": "a.jpg", "label": "x"}\n{"image": "\xff"}\n')
    with pytest.raises(ConfigError, match="line 2: not UTF-8"):
        list(open_source(path, SourceOptions())[1].items())


def test_an_image_in_two_rows(tmp_path):
    path = table(tmp_path / "raw", "image,label\na.jpg,x\nb.png,y\na.jpg,y\n")
    with pytest.raises(ConfigError, match=r"a.jpg and a.jpg would both be the sample 'a'"):
        build(path, tmp_path / "out", processes=1)


def test_which_folders_are_tables(tmp_path):
    text = "file_name,label\na.jpg,x\nb.png,y\n"
    assert open_source(table(tmp_path / "one", text).parent, SourceOptions())[0] == "table"
    classes = image_folder(tmp_path / "classes", per_class=1)
    table(classes, text)
    assert open_source(table(tmp_path / "two", text).parent, SourceOptions(classes=("x", "y")))[0] == "table"
    (classes / "a.jpg").unlink()
    (classes / "b.png").unlink()
    assert open_source(classes, SourceOptions())[0] == "folder", "a stray table changes nothing"
    (classes / "rows.csv").rename(classes / "metadata.csv")
    assert open_source(classes, SourceOptions())[0] == "table"
    table(tmp_path / "one", text, "more.csv")
    with pytest.raises(ConfigError, match=r"exactly one table.*found more.csv, rows.csv; name the file"):
        open_source(tmp_path / "one", SourceOptions(kind="table"))


def test_the_command_line(tmp_path, capsys):
    path = table(tmp_path / "raw", "image,label,age,text\na.jpg,x,3,hi\nb.png,y,4,ho\n")
    (tmp_path / "names.txt").write_text("y\nx\n")
    options = ["--side", "age, text", "--classes", str(tmp_path / "names.txt")]
    app(["build", str(path), str(tmp_path / "out"), *options], result_action="return_value")
    assert read_manifest(tmp_path / "out", "train").classes == ("y", "x")
    assert json.loads(members_of(tmp_path / "out")["a"]["json"]) == {"age": 3, "text": "hi"}
    assert "from a source of kind table: 2 samples of 2 classes" in capsys.readouterr().out


@pytest.mark.slow
def test_real_clothes(tmp_path):
    clothes = real(CLOTHING)
    options = SourceOptions(side=("sender_id", "kids"))
    report = build(clothes, tmp_path / "out", options, processes=1)
    with open(clothes / "metadata.csv") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert report.kind == "table"
    assert not report.refused
    assert report.manifest.num_samples == len(rows) == 3781
    counts = Counter(row["label"] for row in rows.values())
    assert dict(zip(report.manifest.classes, report.manifest.stats.class_counts, strict=True)) == counts
    for key, members in members_of(tmp_path / "out").items():
        row = rows[key.rpartition("/")[2]]
        assert json.loads(members["json"]) == {"sender_id": int(row["sender_id"]), "kids": row["kids"]}
        assert report.manifest.classes[int(members["cls"])] == row["label"]
        assert members["jpg"] == (clothes / f"{key}.jpg").read_bytes()
