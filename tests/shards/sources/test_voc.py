"""Pascal VOC: pixels counted from 1 become edges counted from 0; lists, classes, and XML that must not be trusted."""

import json
import re
from pathlib import Path

import pytest

from shards.ingest.build import build
from shards.inspect.verify import verify
from shards.settings import ConfigError
from shards.sources import Refused, SourceOptions, open_source
from shards.sources.voc import parse
from tests.shards.images import encoded
from tests.shards.members import members_of
from tests.shards.real import BCCD, real


def note(*objects: tuple[str, tuple], more: str = "") -> str:
    """An annotation of (class, (xmin, ymin, xmax, ymax)) objects."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = ["".join(f"<{c}>{v}</{c}>" for c, v in zip(corners, box, strict=True)) for _, box in objects]
    parts = "".join(
        f"<object><name>{name}</name>{more}<part><name>head</name></part><bndbox>{box}</bndbox></object>"
        for (name, _), box in zip(objects, boxes, strict=True)
    )
    return f"<annotation><filename>other.png</filename>{parts}</annotation>"


@pytest.fixture
def root(tmp_path) -> Path:
    """Three annotated images of 24 x 20 pixels, one of them empty, and one image without annotation."""
    root = tmp_path / "voc"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    notes = {
        "a": note(("dog", (1, 1, 24, 20)), ("cat", (2.5, 3, 4, 5))),
        "b": note(),
        "c.d": note(("dog", (0, 0, 9, 9))),
    }
    for number, name in enumerate([*notes, "loose"]):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(encoded(number))
        if name in notes:
            (root / "Annotations" / f"{name}.xml").write_text(notes[name])
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    (root / "ImageSets" / "Main" / "dog_val.txt").write_text("a  1\nb -1\nc.d  0\n")
    return root


def test_boxes_are_edges_from_zero(root, tmp_path):
    report = build(root, tmp_path / "out", processes=1)
    samples = members_of(tmp_path / "out")
    boxes = {key: json.loads(members["boxes.json"]) for key, members in samples.items()}
    assert (report.kind, report.manifest.task, report.manifest.classes) == ("voc", "detection", ("cat", "dog"))
    assert boxes["a"] == {"boxes": [[0, 0, 24, 20], [1.5, 2, 4, 5]], "labels": [1, 0]}
    assert boxes["b"] == {"boxes": [], "labels": []}, "an image without objects is a sample"
    assert boxes["c.d"] == {"boxes": [[-1, -1, 9, 9]], "labels": [1]}
    assert samples["a"]["jpg"] == encoded(0)
    assert report.ignored == 1
    assert report.manifest.stats.class_counts == (1, 2)
    verify(tmp_path / "out")


def test_difficult_objects_stay(root):
    (root / "Annotations" / "b.xml").write_text(note(("dog", (1, 1, 5, 5)), more="<difficult>1</difficult>"))
    source = open_source(root, SourceOptions())[1]
    members = {item.key: json.loads(source.read(item)["boxes.json"]) for item in list(source.items())}
    assert members["b"] == {"boxes": [[0, 0, 5, 5]], "labels": [1], "difficult": [1]}
    assert "difficult" not in members["a"]


@pytest.mark.parametrize(
    ("named", "keys"), [("train", ["a", "b"]), ("dog_val", ["a", "c.d"]), (None, ["a", "b", "c.d"])]
)
def test_lists(root, named, keys):
    assert sorted(item.key for item in open_source(root, SourceOptions(list=named))[1].items()) == keys


def test_a_list_in_a_file_of_its_own(root, tmp_path):
    (tmp_path / "mine.txt").write_text("a\n\n")
    assert [item.key for item in open_source(root, SourceOptions(list=str(tmp_path / "mine.txt")))[1].items()] == ["a"]
    (tmp_path / "mine.txt").write_text("b\n../../secret\n")
    with pytest.raises(ConfigError, match=r"line 2: '../../secret' leads out"):
        list(open_source(root, SourceOptions(list=str(tmp_path / "mine.txt")))[1].items())


def test_what_is_missing_is_refused_by_name(root, tmp_path):
    (root / "JPEGImages" / "a.jpg").unlink()
    (root / "Annotations" / "b.xml").write_text("<annotation><object>")
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nloose\nc.d\n")
    source = open_source(root, SourceOptions(list="train"))[1]
    reasons = {}
    for item in list(source.items()):
        try:
            source.read(item)
        except Refused as error:
            reasons[item.key] = str(error)
    assert reasons.keys() == {"a", "b", "loose"}
    assert "no image a" in reasons["a"]
    assert "not XML" in reasons["b"]
    assert "loose.xml: no such file" in reasons["loose"]


def test_a_class_that_was_not_named(root):
    source = open_source(root, SourceOptions(classes=("dog", "cow")))[1]
    items = {item.key: item for item in source.items()}
    assert json.loads(source.read(items["c.d"])["boxes.json"])["labels"] == [0]
    with pytest.raises(Refused, match=r"a.xml: class cat is none of the 2 known"):
        source.read(items["a"])


BOMB = '<!DOCTYPE a [<!ENTITY b "bbbbbbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation><object>&c;</object></annotation>'


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (BOMB.encode(), "DOCTYPE"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "DOCTYPE"),
        (BOMB.encode("utf-16"), "NUL bytes"),
        (b"<annotation>" + b" " * 8_000_000 + b"</annotation>", "at most 8,000,000 are read"),
        (b"<svg/>", "begins with <svg>"),
        (b"", "not XML"),
        (b'<?xml version="1.0" encoding="wishful"?><annotation/>', "not XML"),
        (note(("", (1, 1, 2, 2))).encode(), "object 0 of its annotation has no <name>"),
        (note(("cat", (1, 1, 2, "x"))).encode(), "object 0 of its annotation has corners"),
        (note(("cat", (1, 1, 2, ""))).encode(), "expected four numbers"),
    ],
)
def test_annotations_that_are_refused(data, reason):
    with pytest.raises(Refused, match=re.escape(reason)):
        parse(data)


def test_bad_boxes_refuse_their_image_or_are_dropped(root, tmp_path):
    (root / "Annotations" / "b.xml").write_text(
        note(("dog", (5, 5, 9, 9)), ("dog", (5, 5, 40, 9)), ("cat", (9, 9, 2, 2)))
    )
    report = build(root, tmp_path / "one", processes=1)
    assert [key for key, _ in report.refused] == ["b"]
    assert "reaches beyond the image of 24 x 20" in report.refused[0][1] or "x0 < x1" in report.refused[0][1]
    report = build(root, tmp_path / "two", SourceOptions(bad_boxes="drop"), processes=1)
    assert [key for key, _ in report.dropped] == ["b", "b"]
    assert json.loads(members_of(tmp_path / "two")["b"]["boxes.json"]) == {"boxes": [[4, 4, 9, 9]], "labels": [1]}


def test_faults_of_the_folder(tmp_path, root):
    with pytest.raises(ConfigError, match=r"--list: 'trian' is no file.*there are dog_val, train"):
        open_source(root, SourceOptions(list="trian"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"(?s)no folder Annotations.*no folder of images.*--list: 'x'"):
        open_source(tmp_path / "empty", SourceOptions(kind="voc", list="x"))
    for path in (root / "Annotations").iterdir():
        path.write_text(note())
    with pytest.raises(ConfigError, match="no object in any annotation; name the classes"):
        list(open_source(root, SourceOptions())[1].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_real_blood_cells(tmp_path, name):
    cells = real(BCCD)
    options = SourceOptions(list=name, bad_boxes="drop")
    report = build(cells, tmp_path / "out", options, split=name, processes=1)
    names = (cells / "ImageSets" / "Main" / f"{name}.txt").read_text().split()
    texts = {stem: (cells / "Annotations" / f"{stem}.xml").read_text() for stem in names}
    raw = {stem: len(re.findall("<object>", text)) for stem, text in texts.items()}
    kept = {key: len(json.loads(m["boxes.json"])["labels"]) for key, m in members_of(tmp_path / "out", name).items()}
    assert report.manifest.classes == ("Platelets", "RBC", "WBC")
    assert not report.refused
    assert kept.keys() == raw.keys()
    assert sum(kept.values()) == sum(report.manifest.stats.class_counts) == sum(raw.values()) - len(report.dropped)
