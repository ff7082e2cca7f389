"""COCO: categories in the order of their ids, negatives kept, polygons, crowds and captions beside the boxes."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shards.ingest.build import build
from shards.inspect.verify import verify
from shards.settings import ConfigError
from shards.sources import Refused, SourceOptions, open_source
from tests.shards.images import encoded
from tests.shards.members import members_of
from tests.shards.real import BCCD, real

SQUARE = [2, 2, 8, 2, 8, 8]
CONTENT: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 24, "height": 20},
        {"id": 3, "file_name": "deep/b.jpg"},
        {"id": 9, "file_name": "c.jpg"},
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat", "supercategory": "animal"}],
    "annotations": [
        {
            "id": 1,
            "image_id": 7,
            "category_id": 18,
            "bbox": [2, 2, 6, 6.5],
            "iscrowd": 0,
            "segmentation": [SQUARE, [1, 1]],
        },
        {"id": 2, "image_id": 9, "category_id": 2, "bbox": [0, 0, 5, 5]},
        {
            "id": 3,
            "image_id": 7,
            "category_id": 2,
            "bbox": [0, 0, 24, 20],
            "iscrowd": 1,
            "segmentation": {"counts": [0, 480], "size": [20, 24]},
        },
    ],
}
CAPTIONS = {
    "images": CONTENT["images"],
    "annotations": [{"id": n, "image_id": image, "caption": f"text {n}"} for n, image in enumerate((7, 9, 7, 55))],
}


def coco(folder: Path, changes: dict[str, Any] | None = None, name: str = "instances.json") -> Path:
    for number, image in enumerate(CONTENT["images"]):
        path = folder / "val" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({**CONTENT, **(changes or {})}))
    return folder / name


def first(**changes: Any) -> dict[str, Any]:
    """Annotations of which the first is another."""
    return {"annotations": [{**CONTENT["annotations"][0], **changes}, *CONTENT["annotations"][1:]]}


def test_boxes_polygons_crowds_and_negatives(tmp_path):
    report = build(coco(tmp_path), tmp_path / "out", SourceOptions(images=tmp_path / "val"), processes=1)
    samples = members_of(tmp_path / "out")
    boxes = {key: json.loads(members["boxes.json"]) for key, members in samples.items()}
    assert (report.kind, report.manifest.task, report.manifest.classes) == ("coco", "detection", ("cat", "dog"))
    assert boxes["a"] == {
        "boxes": [[2, 2, 8, 8.5], [0, 0, 24, 20]],
        "labels": [1, 0],
        "crowd": [0, 1],
        "polygons": [[SQUARE], None],
        "runs": [None, [0, 480]],
    }
    assert boxes["deep/b"] == {"boxes": [], "labels": []}, "an image without annotations is a negative"
    assert boxes["c"] == {"boxes": [[0, 0, 5, 5]], "labels": [0]}
    assert samples["a"]["jpg"] == encoded(0)
    assert report.manifest.stats.class_counts == (2, 1)
    verify(tmp_path / "out")


def test_captions(tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    options = SourceOptions(images=tmp_path / "val", captions=tmp_path / "captions.json")
    report = build(coco(tmp_path), tmp_path / "out", options, processes=1)
    said = {key: json.loads(members["json"])["captions"] for key, members in members_of(tmp_path / "out").items()}
    assert said == {"a": ["text 0", "text 2"], "c": ["text 1"], "deep/b": []}
    assert report.manifest.fields["side"] == "json"


@pytest.mark.parametrize("images", ["val", "images/val", "images", "annotations"])
def test_the_folder_that_coco_comes_in(tmp_path, images):
    coco(tmp_path, name="annotations/instances_val.json")
    (tmp_path / images).parent.mkdir(exist_ok=True)
    if images == "annotations":
        (tmp_path / "val").rename(tmp_path / "pictures")
        for path in (tmp_path / "pictures").iterdir():
            path.rename(tmp_path / "annotations" / path.name)
    else:
        (tmp_path / "val").rename(tmp_path / images)
    kind, source = open_source(tmp_path, SourceOptions())
    assert (kind, [item.key for item in source.items()]) == ("coco", ["a", "deep/b", "c"])
    coco(tmp_path, name="annotations/instances_train.json")
    with pytest.raises(ConfigError, match=r"found annotations/instances_train.json, annotations/instances_val.json"):
        open_source(tmp_path, SourceOptions())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (first(bbox=[1, 2, 3]), "box 0 is [1, 2, 3], expected x, y, width, height"),
        (first(bbox=None, segmentation=None), "box 0 is null"),
        (
            first(segmentation={"counts": [480], "size": [24, 20]}),
            "outline 0: its run lengths are of a `size` [24, 20]",
        ),
        (first(segmentation={"counts": [0, 400], "size": [20, 24]}), "outline 0: its run lengths [0, 400] do not add"),
        (first(segmentation={"counts": [-1, 481], "size": [20, 24]}), "outline 0: its run lengths"),
        (first(segmentation={"counts": "0P", "size": [20, 24]}), "outline 0: its run lengths end in the middle"),
        (first(segmentation={"counts": "é", "size": [20, 24]}), "outline 0: its run lengths are no text"),
        (first(segmentation={"size": [20, 24]}), "outline 0: its run lengths None"),
        (first(bbox=["1", 2, 3, 4]), "expected x, y, width, height"),
        (first(category_id=4), "box 0 has category 4, which is none of the 2 known"),
        (first(category_id=[4]), "box 0 has category '[4]'"),
        (
            {"images": [{"id": 7, "file_name": "../secret.jpg"}, *CONTENT["images"][1:]]},
            "'../secret.jpg' is no file inside",
        ),
        ({"images": [{"id": 7, "file_name": "gone.jpg"}, *CONTENT["images"][1:]]}, "gone.jpg: no such file"),
    ],
)
def test_samples_that_are_refused(tmp_path, changes, reason):
    (tmp_path / "secret.jpg").write_bytes(encoded(9))
    source = open_source(coco(tmp_path, changes), SourceOptions(images=tmp_path / "val"))[1]
    items = list(source.items())
    with pytest.raises(Refused, match=re.escape(reason)):
        source.read(items[0])
    assert all(source.read(item) for item in items[1:])


def test_an_empty_box_is_dropped_on_request(tmp_path):
    path = coco(tmp_path, first(bbox=[2, 2, 0, 6]))
    options = SourceOptions(images=tmp_path / "val", bad_boxes="drop")
    report = build(path, tmp_path / "out", options, processes=1)
    assert [(key, "x0 < x1" in reason) for key, reason in report.dropped] == [("a", True)]
    assert json.loads(members_of(tmp_path / "out")["a"]["boxes.json"])["labels"] == [0]
    report = build(path, tmp_path / "refused", SourceOptions(images=tmp_path / "val"), processes=1)
    assert [key for key, _ in report.refused] == ["a"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "expected a list `images`, each entry with `id` and `file_name`"),
        ({"images": [{"id": 1}]}, "expected a list `images`"),
        ({"annotations": [{"bbox": [0, 0, 1, 1]}]}, "expected a list `annotations`"),
        ({"annotations": CAPTIONS["annotations"]}, "it holds captions, not boxes"),
        ({"categories": []}, "expected a list `categories`"),
        ({"categories": [{"id": 2, "name": "x"}, {"id": 3, "name": "x"}]}, "every one different"),
        (first(image_id=8), "1 annotations are of images that it does not name"),
        ({"images": [*CONTENT["images"], CONTENT["images"][0]]}, "1 images have the id of another one"),
    ],
)
def test_files_that_are_wrong_as_a_whole(tmp_path, changes, message):
    path = coco(tmp_path, changes)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        list(open_source(path, SourceOptions(images=tmp_path / "val"))[1].items())
    assert str(path) in str(caught.value)


def test_wrong_files_and_folders(tmp_path):
    path = coco(tmp_path)
    with pytest.raises(ConfigError, match=r"'a.jpg' is not in it, nor any of the 3 images.*--images"):
        list(open_source(path, SourceOptions())[1].items())
    with pytest.raises(ConfigError, match=r"(?s)--images: .*no such folder.*--captions: .*no such file"):
        open_source(path, SourceOptions(images=tmp_path / "x", captions=tmp_path / "y"))
    options = SourceOptions(images=tmp_path / "val", captions=path)
    with pytest.raises(ConfigError, match=r"--captions: .*no captions of the images"):
        list(open_source(path, options)[1].items())
    (tmp_path / "others.json").write_text(json.dumps({"annotations": CAPTIONS["annotations"][3:]}))
    options = SourceOptions(images=tmp_path / "val", captions=tmp_path / "others.json")
    with pytest.raises(ConfigError, match=r"others.json: no captions of the images"):
        list(open_source(path, options)[1].items())
    for text, message in (("[", "not JSON"), ("[]", "expected a JSON object"), ("[" * 100_000, "not JSON")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            list(open_source(path, SourceOptions(images=tmp_path / "val"))[1].items())


@pytest.mark.slow
def test_memory_stays_within_a_few_times_the_file(tmp_path):
    numbers = [round(1.37 * n, 2) for n in range(60)]
    notes = [
        {"id": n, "image_id": n % 1000, "category_id": 2, "bbox": [1, 2, 3, 4], "segmentation": [numbers], "area": 1.5}
        for n in range(60_000)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(1000)]
    path = coco(tmp_path, {"images": images, "annotations": notes})
    (tmp_path / "val" / "0.jpg").write_bytes(encoded(0))
    code = f"""
import resource
from pathlib import Path
from shards.sources import SourceOptions, open_source
source = open_source(Path({str(path)!r}), SourceOptions(images=Path({str(tmp_path / "val")!r})))[1]
import shards.sources.coco
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert sum(len(item.payload["notes"]) for item in source.items()) == 60_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < 3.5 * path.stat().st_size


def test_real_boxes_as_coco_are_those_of_voc(tmp_path):
    """The same annotations in both forms: written as COCO here, from the XML text, and built twice."""
    cells = real(BCCD)
    names = (cells / "ImageSets" / "Main" / "test.txt").read_text().split()
    classes = ["Platelets", "RBC", "WBC"]
    notes = []
    for number, name in enumerate(names):
        text = (cells / "Annotations" / f"{name}.xml").read_text()
        found = re.findall(r"<name>(\w+)<.*?<xmin>(\d+)<.*?<ymin>(\d+)<.*?<xmax>(\d+)<.*?<ymax>(\d+)<", text, re.S)
        for label, *corners in found:
            x0, y0, x1, y1 = map(int, corners)
            box = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
            notes.append({"image_id": number, "category_id": classes.index(label), "bbox": box})
    content = {
        "images": [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate(names)],
        "annotations": notes,
        "categories": [{"id": number, "name": name} for number, name in enumerate(classes)],
    }
    (tmp_path / "cells.json").write_text(json.dumps(content))
    drop = {"bad_boxes": "drop"}
    one = build(tmp_path / "cells.json", tmp_path / "coco", SourceOptions(images=cells / "JPEGImages", **drop))
    two = build(cells, tmp_path / "voc", SourceOptions(list="test", **drop))
    assert one.manifest.num_samples == len(names)
    assert one.manifest.stats == two.manifest.stats
    same, boxes = (members_of(tmp_path / kind) for kind in ("coco", "voc"))
    for key, members in same.items():
        assert json.loads(members.pop("boxes.json")) == json.loads(boxes[key].pop("boxes.json"))
    assert same == boxes
