"""Masks: indices pass through, colours become indices, void becomes 255, and each mask belongs to its image."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.format.annotations import parse_mask
from shards.ingest.build import build
from shards.inspect.verify import verify
from shards.settings import ConfigError
from shards.sources import SourceOptions, open_source
from tests.shards.images import encoded, image_folder
from tests.shards.members import members_of
from tests.shards.real import CAMVID, real

STREET_CLASSES = [
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
]
COLORS = "128 128 128\tSky\n0\t0 255  Big Car\n# no class\n0 0 0\tVoid\n"
PALETTE = [value for n in range(256) for value in (n, 255 - n, n // 2)]


def indices(seed: int, classes: int = 3, width: int = 24, height: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, (height, width), dtype=np.uint8)


def png(pixels: np.ndarray, mode: str | None = None, **options) -> bytes:
    image, buffer = Image.fromarray(pixels), io.BytesIO()
    if mode == "P":
        image.putpalette(PALETTE)
    elif mode:
        image = image.convert(mode)
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def masked(root: Path, masks: dict[str, bytes], images: tuple[str, ...] = ("a", "b"), folder: str = "masks") -> Path:
    for number, name in enumerate(images):
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / f"{name}.jpg").write_bytes(encoded(number))
    for name, data in masks.items():
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (root / folder / f"{name}.png").write_bytes(data)
    return root


def test_masks_of_indices_pass_through(tmp_path):
    masks = {"a": png(indices(0)), "deep/b": png(indices(1), "P"), "loose": png(indices(2))}
    root = masked(tmp_path / "raw", masks, ("a", "deep/b"))
    report = build(root, tmp_path / "out", SourceOptions(classes=("x", "y", "z")), processes=1)
    samples = members_of(tmp_path / "out")
    assert (report.kind, report.manifest.task, report.manifest.fields["mask"]) == ("masks", "segmentation", "mask.png")
    assert samples == {
        "a": {"jpg": encoded(0), "mask.png": masks["a"]},
        "deep/b": {"jpg": encoded(1), "mask.png": masks["deep/b"]},
    }
    expected = np.bincount(np.stack([indices(0), indices(1)]).ravel(), minlength=3)
    assert report.manifest.stats.class_counts == tuple(expected)
    assert report.ignored == 1
    verify(tmp_path / "out")


@pytest.mark.parametrize("void", [0, 2])
def test_void_becomes_255(tmp_path, void):
    root = masked(tmp_path / "raw", {"a": png(indices(0)), "b": png(indices(1), "P")})
    build(root, tmp_path / "out", SourceOptions(classes=("x", "y", "z"), void=void), processes=1)
    for seed, members in enumerate(members_of(tmp_path / "out")[key] for key in "ab"):
        expected = np.where(indices(seed) == void, 255, indices(seed))
        assert np.array_equal(parse_mask(members["mask.png"], 3), expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_palettes_keep_their_indices(tmp_path, bits):
    pixels = indices(0, 2)
    root = masked(tmp_path / "raw", {"a": png(pixels, "P", bits=bits)}, ("a",))
    build(root, tmp_path / "out", SourceOptions(classes=("x", "y")), processes=1)
    assert np.array_equal(parse_mask(members_of(tmp_path / "out")["a"]["mask.png"], 2), pixels)


@pytest.mark.parametrize("where", [".", "labels"])
def test_colours_become_indices(tmp_path, where):
    table = np.array([[128, 128, 128], [0, 0, 255], [0, 0, 0]], np.uint8)
    root = masked(
        tmp_path / "raw", {"a_L": png(table[indices(0)]), "b_L": png(table[indices(1)], "RGBA")}, folder="labels"
    )
    (root / where / "label_colors.txt").write_text(COLORS)
    report = build(root, tmp_path / "out", SourceOptions(masks=root / "labels"), processes=1)
    assert report.manifest.classes == ("Sky", "Big Car")
    for seed, key in enumerate("ab"):
        expected = np.array([0, 1, 255])[indices(seed)]
        assert np.array_equal(parse_mask(members_of(tmp_path / "out")[key]["mask.png"], 2), expected)


def test_classes_in_another_order_than_the_colours(tmp_path):
    root = masked(tmp_path / "raw", {"a": png(np.full((20, 24, 3), 128, np.uint8))}, ("a",))
    (root / "label_colors.txt").write_text(COLORS)
    build(root, tmp_path / "out", SourceOptions(classes=("Big Car", "Sky")), processes=1)
    assert np.unique(parse_mask(members_of(tmp_path / "out")["a"]["mask.png"])).tolist() == [1]


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (png(np.full((20, 24, 3), 9, np.uint8)), "480 pixels of no known class; the first has the colour 9 9 9"),
        (png(np.full((20, 24, 3), (0, 0, 255), np.uint8)), "the first has the colour 0 0 255 (Big Car)"),
        (png(indices(0, 5)), "expected 0 to 1, or 255 for none"),
        (png(indices(0, 2, 20, 24)), "the mask has 20 x 24 pixels, the image 24 x 20"),
        (png(indices(0, 2).astype(np.uint16)), "16 bits and PNG colour type 0"),
        (png(indices(0, 2) * 255, "1"), "1 bits and PNG colour type 0"),
        (png(indices(0, 2), "LA"), "PNG colour type 4"),
        (png(indices(0, 2))[:-30], "damaged mask"),
        (encoded(3), "its mask is no PNG"),
        (b"", "its mask is no PNG"),
        (None, "no mask b.png in"),
    ],
)
def test_masks_that_are_refused(tmp_path, mask, reason):
    masks = {"a": png(indices(0, 2)), **({"b": mask} if mask is not None else {})}
    root = masked(tmp_path / "raw", masks)
    (root / "label_colors.txt").write_text(COLORS)
    report = build(root, tmp_path / "out", SourceOptions(classes=("Sky", "Road")), processes=1)
    assert [key for key, _ in report.refused] == ["b"]
    assert reason in report.refused[0][1]


def test_colours_without_a_table_are_refused(tmp_path):
    root = masked(tmp_path / "raw", {"a": png(indices(0, 2)), "b": png(np.zeros((20, 24, 3), np.uint8))})
    report = build(root, tmp_path / "out", SourceOptions(classes=("x", "y")), processes=1)
    assert "a label_colors.txt must say" in dict(report.refused)["b"]


def test_masks_inside_the_folder_of_the_images(tmp_path):
    root = masked(tmp_path / "raw", {"a": png(indices(0)), "b": png(indices(1))}, folder="images/gt")
    options = SourceOptions(masks=root / "images" / "gt", classes=("x", "y", "z"))
    kind, source = open_source(root / "images", options)
    assert (kind, sorted(item.key for item in source.items()), source.ignored) == ("masks", ["a", "b"], 0)


def test_a_list(tmp_path):
    root = masked(tmp_path / "raw", {"a": png(indices(0)), "b": png(indices(1))}, ("a", "b", "c"))
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("b\nc\ngone\na.jpg\n")
    report = build(
        root, tmp_path / "out", SourceOptions(classes=("x", "y", "z"), list="train"), processes=1, max_refused=0.6
    )
    assert members_of(tmp_path / "out").keys() == {"a", "b"}
    reasons = dict(report.refused)
    assert reasons.keys() == {"c", "gone"}
    assert "no image gone" in reasons["gone"]


@pytest.mark.parametrize(
    ("options", "colors", "message"),
    [
        ({}, None, r"what are the classes called\? Name them with --classes"),
        ({"masks": Path("gone"), "images": Path("lost")}, None, "(?s)--images: lost.*--masks: gone"),
        ({"classes": ("x",), "void": 256}, None, "--void: 256"),
        ({"classes": tuple(map(str, range(256)))}, None, "256 classes"),
        ({"classes": ("x",), "list": "train"}, None, "--list: 'train'"),
        ({}, "1 2 3 x\n1 2 3 y\nx\n1 2 256 z\n1 2 3\n", "(?s)line 2: the colour of 'x' again.*line 3.*line 4.*line 5"),
        ({}, "# nothing\n", "label_colors.txt: empty"),
    ],
)
def test_faults_of_the_folders(tmp_path, options, colors, message):
    root = masked(tmp_path / "raw", {"a": png(indices(0))})
    if colors:
        (root / "label_colors.txt").write_text(colors)
    with pytest.raises(ConfigError, match=message):
        open_source(root, SourceOptions(**options))


def test_an_option_tells_the_kind(tmp_path):
    root = image_folder(tmp_path / "raw", per_class=1)
    with pytest.raises(ConfigError, match=re.escape(f"--masks: {root / 'x'}: no such folder")):
        open_source(root, SourceOptions(masks=root / "x", classes=("a", "b")))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_real_streets(tmp_path, part):
    streets = real(CAMVID)
    options = SourceOptions(masks=streets / f"{part}annot", classes=tuple(STREET_CLASSES), void=11)
    report = build(streets / part, tmp_path / "out", options, split=part, processes=1)
    samples = members_of(tmp_path / "out", part)
    counts = np.zeros(256, np.int64)
    for path in (streets / f"{part}annot").iterdir():
        raw = np.array(Image.open(path))
        counts += np.bincount(raw.ravel(), minlength=256)
        assert np.array_equal(parse_mask(samples[path.stem]["mask.png"]), np.where(raw == 11, 255, raw))
    assert not report.refused
    assert report.manifest.num_samples == len(samples) == len(list((streets / part).iterdir()))
    assert report.manifest.stats.class_counts == tuple(counts[:11])
