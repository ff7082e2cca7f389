"""Outlines of COCO: the pixels that pycocotools has for them, and the masks of classes that they make."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as theirs

from shards.decode import decode
from shards.format.annotations import VOID, parse_mask
from shards.ingest.build import build
from shards.inspect.verify import verify
from shards.settings import ConfigError
from shards.sources import SourceOptions, open_source
from shards.sources.outlines import box_of, pixels, runs
from tests.shards.images import encoded
from tests.shards.ingest.test_notes import turned
from tests.shards.members import members_of

H, W = 20, 24


def polygons() -> list[tuple[list[float], int, int]]:
    """Of all kinds: with corners outside, on whole pixels, on one another, of no area; with height and width."""
    drawn, found = np.random.default_rng(0), []
    for number in range(300):
        height, width = drawn.integers(1, 60, 2).tolist()
        points = (drawn.random((drawn.integers(3, 9), 2)) * 1.4 - 0.2) * [width, height]
        points = np.round(points) if number % 3 == 0 else points
        points[1] = points[0] if number % 7 == 0 else points[1]
        found.append((points.ravel().tolist(), height, width))
    return found


def test_polygons_have_the_pixels_of_pycocotools():
    for points, height, width in polygons():
        square = [0, 0, 3, 0, 3, 3]
        expected = theirs.decode(theirs.merge(theirs.frPyObjects([points, square], height, width)))
        assert (pixels([points, square], height, width) == expected).all()


def test_run_lengths_are_those_of_pycocotools_there_and_back():
    drawn = np.random.default_rng(0)
    for _ in range(100):
        covered = drawn.random(drawn.integers(1, 80, 2)) < drawn.random() ** 3
        size = list(covered.shape)
        packed = theirs.encode(np.asfortranarray(covered.astype(np.uint8)))
        counts = str(packed["counts"], "ascii")
        assert (pixels({"size": size, "counts": counts}, *size) == covered).all()
        assert (pixels({"size": size, "counts": runs(covered)}, *size) == covered).all()
        assert theirs.frPyObjects({"size": size, "counts": runs(covered)}, *size)["counts"] == packed["counts"]
        x, y, width, height = theirs.toBbox(packed)
        assert box_of({"size": size, "counts": counts}, *size) == [x, y, x + width, y + height]


def block(x0: int, y0: int, x1: int, y1: int) -> list[list[float]]:
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def lengths(x0: int, y0: int, x1: int, y1: int, packed: bool = False) -> dict[str, Any]:
    covered = np.zeros((H, W), bool)
    covered[y0:y1, x0:x1] = True
    made = {"size": [H, W], "counts": runs(covered)}
    return made | {"counts": theirs.frPyObjects(made, H, W)["counts"].decode()} if packed else made


def coco(folder: Path, annotations: list[dict[str, Any]], names: tuple[str, ...] = ("cat", "hat")) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(2):
        if not (folder / f"{number}.jpg").exists():
            (folder / f"{number}.jpg").write_bytes(encoded(number))
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": W, "height": H} for number in range(2)],
        "categories": [{"id": number + 5, "name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": 0, **one} for one in annotations],
    }
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


MANY = [
    {"category_id": 6, "segmentation": block(4, 4, 8, 8), "bbox": [4, 4, 4, 4]},  # a hat, inside a cat
    {"category_id": 5, "segmentation": lengths(2, 2, 12, 12), "bbox": [2, 2, 10, 10]},
    {"category_id": 5, "segmentation": lengths(0, 0, 24, 6, packed=True), "bbox": [0, 0, 24, 6], "iscrowd": 1},
    {"category_id": 5, "bbox": [18, 10.5, 4, 4]},
]


def test_a_mask_of_classes_from_polygons_run_lengths_and_crowds(tmp_path):
    options = SourceOptions(task="segmentation")
    report = build(coco(tmp_path / "raw", MANY), tmp_path / "out", options, processes=1)
    assert (report.manifest.task, report.manifest.classes) == ("segmentation", ("background", "cat", "hat"))
    samples = members_of(tmp_path / "out")
    expected = np.zeros((H, W), np.uint8)
    expected[0:6], expected[10:15, 18:22] = VOID, VOID
    expected[2:12, 2:12], expected[4:8, 4:8] = 1, 2
    assert (parse_mask(samples["0"]["mask.png"]) == expected).all()
    assert not parse_mask(samples["1"]["mask.png"]).any(), "an image without objects is background"
    assert "objects without an outline, whose boxes are void in the mask: 1" in report.notes
    assert "boxes.json" not in samples["0"]
    verify(tmp_path / "out")
    boxes = build(coco(tmp_path / "raw", MANY), tmp_path / "boxes", processes=1)
    assert (boxes.manifest.task, boxes.manifest.stats.ignored) == ("detection", 1)


def test_a_category_called_background_is_what_is_around(tmp_path):
    names = ("cat", "background")
    options = SourceOptions(task="segmentation")
    report = build(coco(tmp_path / "raw", MANY[:2], names), tmp_path / "out", options, processes=1)
    assert report.manifest.classes == names
    mask = parse_mask(members_of(tmp_path / "out")["0"]["mask.png"])
    assert (mask[0, 0], mask[3, 3], mask[5, 5]) == (1, 0, 1)


def test_an_outline_alone_has_the_box_around_it(tmp_path):
    alone = [
        {"category_id": 5, "segmentation": lengths(2, 3, 12, 9)},
        {"category_id": 5, "segmentation": block(1, 2, 5, 7)},
    ]
    build(coco(tmp_path / "raw", alone), tmp_path / "out", processes=1)
    boxes = json.loads(members_of(tmp_path / "out")["0"]["boxes.json"])["boxes"]
    assert boxes == [[2, 3, 12, 9], [1, 2, 5, 7]]


@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_outlines_of_stored_pixels_are_turned_with_their_image(tmp_path, orientation):
    (tmp_path / "raw").mkdir()
    for number in range(2):
        turned(tmp_path / "raw" / f"{number}.jpg", orientation, (W, H))
    path = coco(tmp_path / "raw", [{"category_id": 5, "segmentation": lengths(5, 5, 24, 15)}])
    build(path, tmp_path / "boxes", SourceOptions(frame="stored"), processes=1)
    build(path, tmp_path / "masks", SourceOptions(frame="stored", task="segmentation"), processes=1)
    boxes, masks = (members_of(tmp_path / name)["0"] for name in ("boxes", "masks"))
    red = decode(boxes["jpg"])[..., 1] < 100
    said = json.loads(boxes["boxes.json"])
    covered = pixels({"size": list(red.shape), "counts": said["runs"][0]}, *red.shape)
    x0, y0, x1, y1 = map(int, said["boxes"][0])
    assert covered[y0:y1, x0:x1].all()
    assert covered.sum() == (y1 - y0) * (x1 - x0)
    assert (covered == (parse_mask(masks["mask.png"]) == 1)).all()
    assert (covered == red).mean() > 0.9


def test_what_cannot_be_a_mask_is_refused(tmp_path):
    path = coco(tmp_path / "raw", MANY[3:])
    with pytest.raises(ConfigError, match=r"no annotation has an outline \(`segmentation`\)"):
        list(open_source(path, SourceOptions(task="segmentation"))[1].items())
    path = coco(tmp_path / "raw", [{"category_id": 5}])
    with pytest.raises(ConfigError, match="no annotation has a box or an outline; without --task it is one of classes"):
        list(open_source(path, SourceOptions(task="detection"))[1].items())
    path = coco(tmp_path / "raw", MANY, tuple(f"{n}" for n in range(255)))
    with pytest.raises(ConfigError, match=r"256 classes with background; a mask of 8 bits has room for 255"):
        list(open_source(path, SourceOptions(task="segmentation"))[1].items())
    for options, fault in (
        ({"task": "masks"}, "--task: 'masks'; expected detection or segmentation"),
        ({"task": "segmentation", "bad_boxes": "drop"}, "--bad-boxes: masks have no boxes"),
    ):
        with pytest.raises(ConfigError, match=re.escape(fault)):
            build(path, tmp_path / "out", SourceOptions(**options))
    far = [{"category_id": 5, "segmentation": block(0, 0, 10**9, 5), "bbox": [0, 0, 5, 5]}]
    report = build(coco(tmp_path / "raw", far), tmp_path / "far", SourceOptions(task="segmentation"), processes=1)
    assert [reason for _, reason in report.refused] == [
        "outline 0: a polygon has a point far outside of its image of 24 x 20 pixels"
    ]
