"""What is left out, joined, renamed or read otherwise than it stands is reported; what has two readings is refused."""

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from shards.cli import app
from shards.decode import decode
from shards.format.annotations import parse_mask
from shards.format.manifest import read_manifest
from shards.ingest.build import BuildError, build
from shards.ingest.index import index
from shards.settings import ConfigError
from shards.sources import SourceOptions, open_source
from shards.sources.files import Finder, walk
from shards.sources.mapstyle import from_dataset
from shards.sources.notes import Notes, alike
from shards.sources.source import Refused
from tests.shards.foreign import plain_tar
from tests.shards.images import encoded, image_folder
from tests.shards.members import members_of


def table(folder: Path, labels: list[str], head: str = "image,label", encoding: str = "utf-8", end: str = "\n") -> Path:
    """A csv of a label for each image."""
    folder.mkdir()
    for n in range(len(labels)):
        (folder / f"{n}.jpg").write_bytes(encoded(n))
    rows = [head, *(f"{n}.jpg,{label}" for n, label in enumerate(labels))]
    (folder / "rows.csv").write_bytes((end.join(rows) + end).encode(encoding))
    return folder / "rows.csv"


def made(source: Path, out: Path, **options):
    return build(source, out, SourceOptions(**options), processes=1)


def classes_by_key(folder: Path) -> dict[str, str]:
    names = read_manifest(folder, "train").classes
    return {key: names[int(members["cls"])] for key, members in members_of(folder).items()}


# Folders


def test_linked_folders_are_followed_and_reported(tmp_path, capsys):
    root = image_folder(tmp_path / "raw", per_class=2)
    image_folder(tmp_path / "elsewhere", ("x",), per_class=3, seed=9)
    os.symlink(tmp_path / "elsewhere" / "x", root / "cat" / "more")
    os.symlink(root, root / "dog" / "all")
    os.symlink(root / "owl", root / "owl" / "again")
    app(["build", str(root), str(tmp_path / "out")], result_action="return_value")
    assert {key for key in members_of(tmp_path / "out") if "more" in key} == {f"cat/more/00{n}" for n in range(3)}
    said = capsys.readouterr().out
    assert "9 samples of 3 classes" in said
    assert "note: linked folders followed: 1 (cat/more)" in said
    assert "lead back to where they lie, left out: 2 (dog/all, owl/again)" in said


def test_what_is_left_out_is_counted_by_what_it_is(tmp_path):
    root = image_folder(tmp_path / "raw", per_class=2)
    for name in (".hidden.jpg", "._000.jpg", "Thumbs.db", "old.gif", "scan.TIFF", "scan2.tif", "new.heic", "a.txt"):
        (root / "cat" / name).write_bytes(b"x")
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (root / "dog" / name).mkdir()
        (root / "dog" / name / "000.jpg").write_bytes(encoded(1))
        (root / name).mkdir()
    report = made(root, tmp_path / "out")
    assert report.manifest.num_samples == 6
    assert report.ignored == 5
    notes = dict(note.rsplit(": ", 1) for note in report.notes)
    assert notes["hidden files and folders left out"].startswith("7 (")
    unread = "images in formats that are not read, left out (convert them to one of jpg, jpeg, png, webp, bmp)"
    assert notes[unread] == "4 (2 TIFF, 1 GIF, 1 HEIC, ...)"
    assert notes["files that are no images, left out"] == "1 (1 .txt)"
    stored = json.loads((tmp_path / "out" / "train.build-report.json").read_text())
    assert stored["notes"] == list(report.notes)
    again = made(root, tmp_path / "out")
    assert again.already_built
    assert again.notes == report.notes


def test_a_class_of_unread_images_says_of_which_format(tmp_path):
    root = image_folder(tmp_path / "raw", per_class=1)
    (root / "emu").mkdir()
    (root / "emu" / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(ConfigError, match=r"'emu' holds no images but 1 GIF"):
        open_source(root, SourceOptions())
    (root / "emu" / "a.gif").rename(root / "emu" / "a.jpg")
    (root / "emu" / "b.jpg").write_bytes(encoded(1))
    assert "(GIF, which is not read)" in made(root, tmp_path / "out").refused[0][1]


def test_names_that_look_the_same_are_reported(tmp_path):
    names = ("caf\u00e9", "cafe\u0301", "Cat", "cat ", "owl.", "owl", "dog")
    assert [len(group) for group in alike(names)] == [2, 2, 2]
    report = made(image_folder(tmp_path / "raw", names, per_class=1), tmp_path / "out")
    said = [note for note in report.notes if "look the same" in note]
    assert len(said) == 3
    assert "'Cat' and 'cat '" in said[1]
    assert len(report.manifest.classes) == 7


def test_a_missing_file_whose_name_looks_like_another(tmp_path):
    path = table(tmp_path / "raw", ["x", "y", "x"])
    (path.parent / "1.jpg").rename(path.parent / "1.JPG")
    assert "'1.JPG' is there and looks the same as '1.jpg'" in made(path, tmp_path / "out").refused[0][1]


def test_a_link_to_nothing_is_called_one(tmp_path):
    path = table(tmp_path / "raw", ["x", "y", "x"])
    (path.parent / "1.jpg").unlink()
    (path.parent / "1.jpg").symlink_to("gone.jpg")
    assert made(path, tmp_path / "out").refused[0][1].endswith("it is a link to 'gone.jpg', which is not there")


def test_two_files_for_one_name_are_refused(tmp_path):
    for name in ("a.jpg", "a.Png", "b.JPeG"):
        (tmp_path / name).write_bytes(b"")
    find = Finder(tmp_path)
    assert find("b") == "b.JPeG"
    assert find("c") is None
    with pytest.raises(Refused, match=r"a.Png and a.jpg are both in"):
        find("a")
    assert len(list(walk(tmp_path))) == 3


def test_notes_add_up_in_any_order():
    parts = [Notes(), Notes()]
    for number, name in enumerate("dbcaef"):
        parts[number % 2].tell("left out", name)
    sums = [Notes(), Notes()]
    for one, order in zip(sums, (parts, parts[::-1]), strict=True):
        for part in order:
            one.merge(part)
    assert sums[0].lines() == sums[1].lines() == ["left out: 6 (a, b, c, ...)"]


# Labels


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["007", "012", "100"], ("007", "012", "100")),
        (["2", "0", "10"], tuple(map(str, range(11)))),
        (["None", "0", "nan"], ("0", "None", "nan")),
        (["1.0", "2.0"], ("1.0", "2.0")),
        (["-1", "1"], ("-1", "1")),
    ],
)
def test_labels_of_a_table_keep_their_names(tmp_path, labels, names):
    report = made(table(tmp_path / "raw", labels * 2), tmp_path / "out")
    assert report.manifest.classes == names
    found = classes_by_key(tmp_path / "out")
    assert [found[str(n)] for n in range(len(labels))] == labels
    if "10" in labels:
        assert "classes without a single sample: 8 of 11 ('1', '3', '4', '5', '6', ...)" in report.notes
    if "007" in labels:
        assert any("'007', '012' begin with a zero" in note for note in report.notes)


def test_numbers_given_as_classes_are_names(tmp_path):
    path = table(tmp_path / "raw", ["1", "2", "3", "0"])
    report = build(path, tmp_path / "out", SourceOptions(classes=("1", "2", "3")), processes=1)
    assert classes_by_key(tmp_path / "out") == {"0": "1", "1": "2", "2": "3"}
    assert "its class '0' is none of the 3 known" in report.refused[0][1]


def test_a_number_among_names_is_no_place_in_the_list(tmp_path):
    path = table(tmp_path / "raw", ["cat", "dog", "1"])
    assert [key for key, _ in made(path, tmp_path / "out", classes=("cat", "dog")).refused] == ["2"]
    made(table(tmp_path / "more", ["0", "1", "1"]), tmp_path / "indexes", classes=("cat", "dog"))
    assert list(classes_by_key(tmp_path / "indexes").values()).count("dog") == 2


def test_spaces_around_labels_are_reported(tmp_path):
    report = made(table(tmp_path / "raw", ["cat ", "cat", " dog", "dog"]), tmp_path / "out")
    assert report.manifest.classes == ("cat", "dog")
    assert "labels with spaces around them, which were left out: 2 (' dog', 'cat ')" in report.notes


def parquet(folder: Path, labels, kind=None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    images = [{"bytes": encoded(n), "path": None} for n in range(len(labels))]
    pq.write_table(pa.table({"image": images, "label": pa.array(labels, kind)}), folder / "x.parquet")
    return folder


@pytest.mark.parametrize(
    ("labels", "names", "note"),
    [
        (["007", "012"] * 3, ("007", "012"), "begin with a zero"),
        (["-1", "1"] * 3, ("-1", "1"), ""),
        ([True, False] * 3, ("false", "true"), "true or false: read as the names 'true' and 'false': 6"),
        ([0.0, 1.0] * 3, ("0", "1"), "whole numbers written as floating ones (1.0): read as whole ones: 6"),
        ([0.0, 1.0, None, float("nan")], ("0", "1"), ""),
    ],
)
def test_labels_of_every_type_in_parquet(tmp_path, labels, names, note):
    report = build(parquet(tmp_path / "raw", labels), tmp_path / "out", processes=1, max_refused=0.5)
    assert report.manifest.classes == names
    assert not note or any(note in one for one in report.notes)
    spelled = [str(label).lower().removesuffix(".0") for label in labels if label is not None and label == label]
    assert sorted(classes_by_key(tmp_path / "out").values()) == sorted(spelled)
    assert all("it has no class" in reason for _, reason in report.refused)


def test_minus_one_in_a_column_of_numbers_is_named(tmp_path):
    root = parquet(tmp_path / "raw", [-1, 1] * 3)
    with pytest.raises(ConfigError, match=r"(?s)only one class, '1'.*-1 is taken for 'no class'.*--classes=-1,1"):
        made(root, tmp_path / "out")
    made(root, tmp_path / "out", classes=("-1", "1"))
    assert sorted(classes_by_key(tmp_path / "out").values()) == ["-1"] * 3 + ["1"] * 3


def test_classes_of_a_source_that_names_them_keep_their_order(tmp_path):
    """A data set of ours whose classes are called by numbers: its labels are places, not names."""
    folder = image_folder(tmp_path / "raw", ("1", "10", "2"), per_class=2)
    made(folder, tmp_path / "one")
    made(tmp_path / "one", tmp_path / "two", kind="webdataset")
    expected = {key: key.split("/")[0] for key in members_of(tmp_path / "one")}
    assert classes_by_key(tmp_path / "one") == classes_by_key(tmp_path / "two") == expected
    made(tmp_path / "one", tmp_path / "three", kind="webdataset", classes=("2", "1", "10"))
    assert classes_by_key(tmp_path / "three") == expected
    report = made(tmp_path / "one", tmp_path / "four", kind="webdataset", classes=("a", "b", "c"))
    assert "classes renamed by --classes: 1 -> a, 10 -> b, 2 -> c" in report.notes
    with pytest.raises(ConfigError, match="names its classes '1', '10', '2'"):
        made(tmp_path / "one", tmp_path / "five", kind="webdataset", classes=("1", "x", "y"))


def test_numbers_of_tars_that_may_be_names_or_places(tmp_path):
    plain_tar(tmp_path / "t" / "x.tar", [e for n in (0, 1) for e in ((f"{n}.jpg", encoded(n)), (f"{n}.cls", b"1"))])
    with pytest.raises(ConfigError, match="labels '1' may be names in --classes or places in it"):
        index(tmp_path / "t", classes=("1", "2"))
    assert index(tmp_path / "t", classes=("0", "1")).manifest.stats.class_counts == (0, 2)


# Tables, XML, tars


@pytest.mark.parametrize(
    ("encoding", "end", "given"),
    [("utf-8", "\r", None), ("utf-16", "\r\n", None), ("latin-1", "\n", "latin-1"), ("utf-16-le", "\n", "utf-16-le")],
)
def test_tables_of_all_ages(tmp_path, encoding, end, given):
    path = table(tmp_path / "raw", ["Käfer", "Eule"] * 2, encoding=encoding, end=end)
    report = made(path, tmp_path / "out", encoding=given)
    assert report.manifest.classes == ("Eule", "Käfer")
    assert any("tables read as" in note for note in report.notes) == (encoding != "utf-8")


def test_tables_of_an_unknown_encoding_are_refused_with_the_option(tmp_path):
    path = table(tmp_path / "raw", ["Eule", "Käfer"], encoding="latin-1")
    with pytest.raises(ConfigError, match=r"line 3: not UTF-8; .*--encoding"):
        made(path, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--encoding: 'wishful'"):
        made(path, tmp_path / "out", encoding="wishful")
    utf16 = table(tmp_path / "more", ["a", "b"], encoding="utf-16-le")
    with pytest.raises(ConfigError, match=r"perhaps UTF-16.*--encoding"):
        made(utf16, tmp_path / "out")


def test_quoted_line_ends_inside_a_cell_stay(tmp_path):
    path = table(tmp_path / "raw", ["x"] * 2)
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["image", "text"], ["0.jpg", "one\r\ntwo"], ["1.jpg", "three"]])
    made(path, tmp_path / "out", side=("text",))
    assert json.loads(members_of(tmp_path / "out")["0"]["json"]) == {"text": "one\r\ntwo"}


XML = "<annotation>{size}<object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"


def note(name: str, box=(3, 3, 12, 12), size: tuple[int, int] | None = None) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    parts = "".join(f"<{c}>{v}</{c}>" for c, v in zip(corners, box, strict=True))
    said = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return XML.format(size=said, name=name, box=parts)


def voc(root: Path, notes: str = "Annotations", images: str = "JPEGImages", xml: str = "xml", jpg: str = "jpg") -> Path:
    for n, name in enumerate(("cat", "dog", "cat")):
        for folder, file, data in ((notes, f"{n}.{xml}", note(name).encode()), (images, f"{n}.{jpg}", encoded(n))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / file).write_bytes(data)
    return root


@pytest.mark.parametrize(
    ("notes", "images", "xml", "jpg"),
    [
        ("Annotations", "JPEGImages", "XML", "JPG"),
        ("Annotations", "JPEGImages", "xml", "Jpg"),
        ("annots", "images", "xml", "jpg"),
        ("annotations", "images", "xml", "png"),
        ("labels", "Images", "xml", "jpeg"),
        ("annotations/xmls", "images", "xml", "jpg"),
        (".", ".", "xml", "jpg"),
    ],
)
def test_boxes_of_voc_in_the_folders_of_the_field(tmp_path, notes, images, xml, jpg):
    root = voc(tmp_path / "raw", notes, images, xml, jpg)
    report = made(root, tmp_path / "out")
    assert (report.kind, report.manifest.num_samples, report.manifest.classes) == ("voc", 3, ("cat", "dog"))
    assert not report.refused


@pytest.mark.parametrize("encoding", ["gb2312", "utf-16", "shift_jis", "latin-1"])
def test_xml_of_any_encoding_that_it_declares(tmp_path, encoding):
    name, root = ("Käfer" if encoding == "latin-1" else "本"), voc(tmp_path / "raw")
    for path in (root / "Annotations").iterdir():
        path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?>\n{note(name)}'.encode(encoding))
    assert made(root, tmp_path / "out").manifest.classes == (name,)


def test_xml_that_is_not_in_its_encoding_says_so(tmp_path):
    root = voc(tmp_path / "raw")
    for path in (root / "Annotations").iterdir():
        path.write_bytes(note("本").encode("gb2312"))
    with pytest.raises(ConfigError, match=r"not XML in the encoding utf-8 \(it names none\).*encoding="):
        made(root, tmp_path / "out")


def test_yolo_is_refused_by_name(tmp_path):
    root = tmp_path / "raw"
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    (root / "images" / "a.jpg").write_bytes(encoded(1))
    (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.25 0.25\n1 0.1 0.1 .05 5e-2\n")
    with pytest.raises(ConfigError, match=r"labels/a.txt holds boxes as YOLO writes them.*COCO"):
        open_source(root, SourceOptions())
    (root / "labels" / "a.txt").write_text("a picture of 2 cats\n")
    with pytest.raises(ConfigError, match=r"look like images and what is known about them \(1 \.txt\)"):
        open_source(root, SourceOptions())


def test_dots_in_the_names_of_tars(tmp_path):
    entries = [e for n in range(3) for e in ((f"v1.{n} x.jpg", encoded(n)), (f"v1.{n} x.cls", b"%d" % (n % 2)))]
    plain_tar(tmp_path / "t" / "x.tar", entries)
    for read in (lambda: index(tmp_path / "t"), lambda: made(tmp_path / "t", tmp_path / "out")):
        with pytest.raises(ConfigError, match="a key ends at the first dot of a name"):
            read()


def test_files_of_a_tar_that_belong_to_no_sample_are_counted(tmp_path):
    entries = [e for n in range(4) for e in ((f"{n}.jpg", encoded(n)), (f"{n}.cls", b"%d" % (n % 2)))]
    plain_tar(tmp_path / "t" / "x.tar", [("README", b"x"), ("a/._0.jpg", b"x"), *entries])
    for report in (index(tmp_path / "t"), made(tmp_path / "t", tmp_path / "out")):
        assert any("belong to no sample" in one and one.endswith(": 2 (README, a/._0.jpg)") for one in report.notes)


# COCO, masks, frames


def coco(folder: Path, notes: list[dict], sizes: list[tuple[int, int] | None] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    sizes = sizes or [None] * 4
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(4)]
    images = [{**i, **({"width": s[0], "height": s[1]} if s else {})} for i, s in zip(images, sizes, strict=True)]
    for n in range(4):
        if not (folder / f"{n}.jpg").exists():
            (folder / f"{n}.jpg").write_bytes(encoded(n))
    categories = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    content = {"images": images, "annotations": notes, "categories": categories}
    (folder / "x.json").write_text(json.dumps(content))
    return folder / "x.json"


def test_coco_without_boxes_is_one_of_classes(tmp_path):
    path = coco(tmp_path / "raw", [{"id": n, "image_id": n, "category_id": [3, 90][n % 2]} for n in range(4)])
    report = made(path, tmp_path / "out")
    assert (report.manifest.task, report.manifest.fields) == ("classification", {"image": "jpg", "label": "cls"})
    assert classes_by_key(tmp_path / "out") == {"0": "cat", "1": "dog", "2": "cat", "3": "dog"}
    assert any(one.startswith("annotations without a box, which is all of them") for one in report.notes)
    path = coco(tmp_path / "raw", [{"image_id": n // 2, "category_id": [3, 90][n % 2]} for n in range(8)])
    with pytest.raises(BuildError, match=r"it has 2 categories \(3, 90\), expected one"):
        made(path, tmp_path / "two")


def test_boxes_without_area_name_the_option_that_helps(tmp_path):
    notes = [{"image_id": n, "category_id": 3, "bbox": [1, 1, 0 if n < 2 else 5, 5]} for n in range(4)]
    path = coco(tmp_path / "raw", notes)
    with pytest.raises(BuildError, match="2 of them: --bad-boxes drop leaves out the unsound boxes"):
        made(path, tmp_path / "out")
    report = made(path, tmp_path / "out", bad_boxes="drop")
    assert report.manifest.num_samples == 4
    assert "classes without a single box: 1 of 2 ('dog')" in report.notes


def turned(path: Path, orientation: int, size: tuple[int, int] = (80, 40)) -> bytes:
    """An image with a red object at 5, 5, 25, 15 of its stored pixels and a tag that turns it."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).rectangle((5, 5, 24, 14), fill=(200, 0, 0))
    tags = image.getexif()
    tags[0x112] = orientation
    image.save(path, exif=tags, quality=95)
    return path.read_bytes()


def part_of_object(image: np.ndarray, box: list[float]) -> float:
    x0, y0, x1, y1 = map(int, box)
    return float((image[y0:y1, x0:x1, 1] < 100).mean())


@pytest.mark.parametrize("orientation", range(2, 9))
def test_boxes_of_stored_pixels_are_turned_or_refused(tmp_path, orientation):
    (tmp_path / "raw").mkdir()
    for n in range(4):
        turned(tmp_path / "raw" / f"{n}.jpg", orientation)
    polygon = [5, 5, 25, 5, 25, 15]
    box = {"category_id": 3, "bbox": [5, 5, 20, 10], "segmentation": [polygon]}
    for size in ((80, 40), None):
        path = coco(tmp_path / "raw", [{"image_id": n, **box} for n in range(4)], [size] * 4)
        with pytest.raises(BuildError, match=r"(?s)4 of them: --frame.*its EXIF tag turns it.*--frame stored or"):
            made(path, tmp_path / "out")
    report = made(path, tmp_path / "out", frame="stored")
    assert any("turned with them: 4" in one for one in report.notes)
    members = members_of(tmp_path / "out")["0"]
    boxes = json.loads(members["boxes.json"])
    image = decode(members["jpg"])
    assert part_of_object(image, boxes["boxes"][0]) > 0.95
    xs, ys = boxes["polygons"][0][0][::2], boxes["polygons"][0][0][1::2]
    assert [min(xs), min(ys), max(xs), max(ys)] == boxes["boxes"][0]


def test_boxes_of_the_upright_image_stay(tmp_path):
    (tmp_path / "raw").mkdir()
    for n in range(4):
        turned(tmp_path / "raw" / f"{n}.jpg", 6)
    notes = [{"image_id": n, "category_id": 3, "bbox": [25, 5, 10, 20]} for n in range(4)]
    report = made(coco(tmp_path / "raw", notes, [(40, 80)] * 4), tmp_path / "out")
    assert report.manifest.num_samples == 4
    members = members_of(tmp_path / "out")["0"]
    assert part_of_object(decode(members["jpg"]), json.loads(members["boxes.json"])["boxes"][0]) > 0.95


def test_boxes_of_an_image_of_another_size_are_refused(tmp_path):
    notes = [{"image_id": n, "category_id": 3, "bbox": [1, 1, 5, 5]} for n in range(4)]
    path = coco(tmp_path / "raw", notes, [(48, 40), *[(24, 20)] * 3])
    reason = made(path, tmp_path / "out").refused[0][1]
    assert "its boxes are of an image of 48 x 40 pixels, the image has 24 x 20" in reason
    assert not made(path, tmp_path / "two", frame="upright").refused


def test_the_size_that_voc_names_decides_too(tmp_path):
    root = voc(tmp_path / "raw")
    turned(root / "JPEGImages" / "0.jpg", 8)
    (root / "Annotations" / "0.xml").write_text(note("cat", (6, 6, 25, 15), (80, 40)))
    (root / "Annotations" / "1.xml").write_text(note("dog", size=(0, 0)))
    assert "80 x 40 is that of the stored pixels" in made(root, tmp_path / "out").refused[0][1]
    made(root, tmp_path / "two", frame="stored")
    members = members_of(tmp_path / "two")["0"]
    assert part_of_object(decode(members["jpg"]), json.loads(members["boxes.json"])["boxes"][0]) > 0.95


def masks(root: Path, pixels: np.ndarray, orientation: int = 1) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for n in range(3):
        turned(root / "images" / f"{n}.jpg", orientation, (pixels.shape[1], pixels.shape[0]))
        Image.fromarray(pixels).save(root / "masks" / f"{n}.PNG")
    return root


def object_mask(value: int) -> np.ndarray:
    pixels = np.zeros((40, 80), np.uint8)
    pixels[5:15, 5:25] = value
    return pixels


@pytest.mark.parametrize("orientation", range(5, 9))
def test_masks_of_stored_pixels_are_turned(tmp_path, orientation):
    root = masks(tmp_path / "raw", object_mask(1), orientation)
    report = made(root, tmp_path / "out", classes=("ground", "object"))
    assert any("whose mask were of the stored pixels" in one for one in report.notes)
    members = members_of(tmp_path / "out")["0"]
    assert (decode(members["jpg"])[parse_mask(members["mask.png"]) == 1][:, 1] < 100).mean() > 0.95


def test_masks_of_a_half_turn_are_refused_until_it_is_said(tmp_path):
    root = masks(tmp_path / "raw", object_mask(1), 3)
    with pytest.raises(BuildError, match=r"its EXIF tag turns it, and the size 80 x 40 does not say"):
        made(root, tmp_path / "out", classes=("ground", "object"))
    made(root, tmp_path / "out", classes=("ground", "object"), frame="upright")
    kept = parse_mask(members_of(tmp_path / "out")["0"]["mask.png"])
    assert np.array_equal(kept, object_mask(1))


def test_masks_of_0_and_255_are_refused_until_it_is_said(tmp_path):
    root, names = masks(tmp_path / "raw", object_mask(255)), ("ground", "object")
    with pytest.raises(ConfigError, match=r"'object' has no pixels; give --values 0,255 .* or --void 255"):
        made(root, tmp_path / "out", classes=names)
    report = made(root, tmp_path / "out", classes=names, values=("0,255",))
    assert report.manifest.stats.class_counts == (3 * 3000, 3 * 200)
    report = made(root, tmp_path / "void", classes=names, void=255)
    assert "classes without a single pixel: 1 of 2 ('object')" in report.notes
    with pytest.raises(ConfigError, match=r"--values: 0; expected 2 numbers"):
        made(root, tmp_path / "bad", classes=names, values=("0",))


def test_other_values_of_masks(tmp_path):
    root, names = masks(tmp_path / "raw", object_mask(128)), ("ground", "object")
    with pytest.raises(BuildError, match="3 of them: --values names the pixel values of the classes"):
        made(root, tmp_path / "out", classes=names)
    made(root, tmp_path / "out", classes=names, values=("128", "0"))
    kept = parse_mask(members_of(tmp_path / "out")["0"]["mask.png"])
    assert np.array_equal(kept, np.where(object_mask(1) == 1, 0, 1))
    buffer = io.BytesIO()
    Image.fromarray(object_mask(7)).save(buffer, "PNG")
    (root / "masks" / "0.PNG").write_bytes(buffer.getvalue())
    report = made(root, tmp_path / "two", classes=names, values=("0", "128"))
    assert "pixels of value 7, which is none of --values" in report.refused[0][1]


# What else is left out


def test_columns_that_are_left_out_are_named(tmp_path):
    path = table(tmp_path / "raw", ["x,1,2", "y,3,4"], head="image,label,class,age")
    report = made(path, tmp_path / "out", side=("age",))
    assert "columns left out: 1 (class)" in report.notes
    report = made(parquet(tmp_path / "columns", ["a", "b"]), tmp_path / "two")
    assert not any("columns" in one for one in report.notes)


def test_outlines_of_coco_that_are_left_out_are_counted(tmp_path):
    outlines = [{"counts": [0, 480], "size": [20, 24]}, [[1, 1]], [[1, 1, 5, 1, 5, 5]], []]
    notes = [
        {"image_id": n, "category_id": 3, "bbox": [1, 1, 5, 5], "segmentation": outline}
        for n, outline in enumerate(outlines)
    ]
    report = made(coco(tmp_path / "raw", notes), tmp_path / "out")
    assert "polygons of less than three points left out: 1" in report.notes


def test_lists_with_marks_and_old_line_ends(tmp_path):
    root = voc(tmp_path / "raw")
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "cats.txt").write_bytes(b"\xef\xbb\xbf0 1\r1 -1\r2 1\r")
    report = made(root, tmp_path / "out", list="cats", classes=("cat", "dog"))
    assert members_of(tmp_path / "out").keys() == {"0", "2"}
    assert "names marked -1 in the list, left out: 1 (1)" in report.notes


def test_a_label_of_minus_one_in_a_tar_is_named(tmp_path):
    labels = (b"0", b"1", b"-1", b"1")
    plain_tar(
        tmp_path / "t" / "x.tar", [e for n, c in enumerate(labels) for e in ((f"{n}.jpg", encoded(n)), (f"{n}.cls", c))]
    )
    for report in (made(tmp_path / "t", tmp_path / "out"), index(tmp_path / "t")):
        assert [reason for _, reason in report.refused] == ["its cls is -1, expected a class index of 0 or more"]


def test_masks_that_are_no_png_are_named(tmp_path):
    root = masks(tmp_path / "raw", object_mask(1))
    (root / "masks" / "1.PNG").rename(root / "masks" / "1_mask.jpg")
    report = made(root, tmp_path / "out", classes=("ground", "object"))
    assert "1_mask.jpg is there, but masks have to be PNG" in report.refused[0][1]


@pytest.mark.parametrize("folders", [("images", "labels"), ("JPEGImages", "SegmentationClass"), ("img", "annotations")])
def test_images_and_masks_are_not_two_classes(tmp_path, folders):
    for name in folders:
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "a.png").write_bytes(encoded(1, "PNG"))
    with pytest.raises(ConfigError, match=r"look like images and what is known about them.*--masks.*--kind folder"):
        open_source(tmp_path / "raw", SourceOptions())
    assert open_source(tmp_path / "raw", SourceOptions(kind="folder"))[1].classes == tuple(sorted(folders))


def test_names_for_a_dataset_that_has_others_keep_its_order():
    class Pictures:
        classes = ("cat", "dog")

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int):
            return np.zeros((8, 8, 3), np.uint8), index

    assert from_dataset(Pictures(), ("Katze", "Hund")).classes == ("Katze", "Hund")
    with pytest.raises(ConfigError, match="'dog' has number 1 in the dataset"):
        from_dataset(Pictures(), ("dog", "cat"))
