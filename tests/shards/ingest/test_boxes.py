"""Boxes, masks and side inputs: sound ones come back as numbers, every other is refused with its reason."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from shards.format.annotations import (
    Annotations,
    check_boxes_fit,
    check_mask_fits,
    parse_boxes,
    parse_mask,
    parse_side,
)

SOUND = {"boxes": [[0, 0.5, 10, 20], [3, 4, 5, 6]], "labels": [2, 0]}


def png(mask: Image.Image) -> bytes:
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()


def test_boxes_come_back_as_rows_of_corners_and_class():
    rows = parse_boxes(json.dumps(SOUND).encode(), 3)
    assert rows.dtype == np.float32
    assert rows.tolist() == [[0, 0.5, 10, 20, 2, 0], [3, 4, 5, 6, 0, 0]]
    assert parse_boxes(b'{"boxes": [], "labels": []}', 3).shape == (0, 6)
    more = SOUND | {"crowd": [0, 1], "polygons": [[[0, 0, 1, 0, 1, 1]], None]}
    assert len(parse_boxes(json.dumps(more).encode(), 3)) == 2


def test_crowds_and_difficult_objects_are_marked_as_ignored_and_stay_so_renumbered():
    content = {"boxes": [[0, 0, 1, 1]] * 4, "labels": [0, 1, 2, 1], "crowd": [0, 1, 0, 1], "difficult": [0, 0, 1, 1]}
    rows = parse_boxes(json.dumps(content).encode(), 3)
    assert rows[:, 5].tolist() == [0, 1, 1, 1]
    assert parse_boxes(json.dumps(content | {"crowd": None}).encode(), 3)[:, 5].tolist() == [0, 0, 1, 1]
    assert Annotations(rows).renumbered(np.array([-1, 0, 5])).boxes[:, 4:].tolist() == [[0, 1], [5, 1], [0, 1]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"boxes": None}, "expected the lists"),
        ({"boxes": [[0, 0, 1, 1]]}, "1 boxes, but 2 labels"),
        ({"labels": [0, 3]}, "box 1 has class 3, expected 0 to 2"),
        ({"labels": [0, True]}, "box 1 has class True"),
        ({"labels": [0, 1.0]}, "box 1 has class 1.0"),
        ({"boxes": [[0, 0, 1, 1], [5, 0, 5, 9]]}, "box 1 is .5, 0, 5, 9., expected x0 < x1"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 1, float("nan")]]}, "box 1 .*finite"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 1, 10**400]]}, "too large"),
        ({"boxes": [[0, 0, 1, 1], [16777216, 0, 16777217, 9]]}, "box 1"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, "1", 1]]}, "box 1 .*four numbers"),
        ({"boxes": [[0, 0, 1, 1], [0, 0, 1]]}, "box 1 .*four numbers"),
        ({"crowd": [0]}, "2 boxes, but 1 crowd"),
        ({"crowd": [0, 2]}, "crowd of box 1"),
        ({"difficult": [0]}, "2 boxes, but 1 difficult"),
        ({"difficult": [0, "1"]}, "difficult of box 1 is '1', expected 0 or 1"),
        ({"polygons": [None, [[1, 2, 3, 4]]]}, "polygons of box 1"),
    ],
)
def test_a_wrong_box_is_refused_with_its_number(change, reason):
    with pytest.raises(ValueError, match=reason):
        parse_boxes(json.dumps(SOUND | change).encode(), 3)


@pytest.mark.parametrize("data", [b"", b"[1]", b"{", b"\xff\xfe\x00", b"[" * 100_000])
@pytest.mark.parametrize("parse", [lambda data: parse_boxes(data, 3), parse_side])
def test_what_is_no_object_is_refused(data, parse):
    with pytest.raises(ValueError, match="JSON"):
        parse(data)


def test_boxes_must_lie_in_the_image():
    rows = parse_boxes(json.dumps(SOUND).encode(), 3)
    check_boxes_fit(rows, 10, 20)
    check_boxes_fit(rows[:0], 10, 20)
    for width, height in ((8, 20), (10, 18)):
        with pytest.raises(ValueError, match=r"box 0 .0, 0.5, 10, 20. reaches beyond"):
            check_boxes_fit(rows, width, height)
    with pytest.raises(ValueError, match="box 0"):
        check_boxes_fit(rows - np.float32([2, 0, 2, 0, 0, 0]), 10, 20)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_mask_comes_back_as_class_indices(mode):
    classes = np.array([[0, 1, 2], [255, 2, 0]], np.uint8)
    image = Image.fromarray(classes)
    if mode == "P":
        image = image.copy()
        image.putpalette(list(range(255, -1, -1)) * 3)
    mask = parse_mask(png(image), 3)
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, classes)
    check_mask_fits(mask, 3, 2)
    with pytest.raises(ValueError, match=r"3 x 2 pixels, the image 2 x 3"):
        check_mask_fits(mask, 2, 3)
    with pytest.raises(ValueError, match="pixels of class 2; expected 0 to 1"):
        parse_mask(png(image), 2)


@pytest.mark.parametrize("mode", ["1", "RGB", "RGBA", "I;16", "LA"])
def test_a_mask_of_another_kind_is_refused(mode):
    with pytest.raises(ValueError, match="8 bits and one channel"):
        parse_mask(png(Image.new(mode, (3, 2))))


def test_a_cut_mask_is_refused():
    data = png(Image.effect_noise((40, 40), 80))
    for cut in (0, 20, 60, len(data) // 2):
        with pytest.raises(ValueError, match=r"mask|PNG"):
            parse_mask(data[:cut])


def test_side_inputs():
    content = {"caption": "a cat", "size": 3, "tags": ["x", "y"], "ratio": 0.5, "none": []}
    assert parse_side(json.dumps(content).encode()) == content
    for wrong in (None, True, [1], {"a": 1}, float("nan")):
        with pytest.raises(ValueError, match=r"'odd' is .*expected a text"):
            parse_side(json.dumps({"odd": wrong}).encode())
