"""Data sets in the formats of other libraries: Parquet, Hugging Face, litData, WebDataset, torchvision.

Their files are written here as those libraries write them; `docs/shards.md` says which versions that was compared with.
"""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards.format.manifest import read_manifest
from shards.ingest.build import build
from shards.ingest.index import index
from shards.inspect.verify import verify
from shards.loading.reader import Reader, Sample
from shards.loading.subset import Subset
from shards.settings import ConfigError
from shards.sources import Item, SourceOptions, open_source
from shards.sources.mapstyle import from_dataset
from tests.shards.foreign import NAMES, plain_tar, sample, webdataset_tars
from tests.shards.images import built, encoded, image_folder, picture

FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(NAMES)}}


def table(count: int, first: int = 0, metadata: bool = False, **columns) -> pa.Table:
    """Rows of (image struct, label n % 3, age, words)."""
    numbers = range(first, first + count)
    rows = pa.table(
        {
            "image": [{"bytes": encoded(n), "path": f"{n}.jpg"} for n in numbers],
            "label": [n % 3 for n in numbers],
            "age": [n / 2 for n in numbers],
            "words": [[f"word {n}", "ü"] for n in numbers],
            **columns,
        }
    )
    info = {"huggingface": json.dumps({"info": {"features": FEATURES}})} if metadata else None
    return rows.replace_schema_metadata(info)


def parquet(path: Path, rows: pa.Table, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, **{"row_group_size": 7, **options})
    return path


def saved(folder: Path, *parts: pa.Table, features: dict = FEATURES) -> Path:
    """As `Dataset.save_to_disk` leaves it."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05d}-of-{len(parts):05d}.arrow" for n in range(len(parts))]
    for name, rows in zip(names, parts, strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def litdata(folder: Path, kinds: dict[str, str], items: list[list[bytes]], chunk: int = 7, **config) -> Path:
    """As litData's `optimize` leaves it; each item is a dict of `kinds`."""
    folder.mkdir(parents=True)
    chunks = []
    for number, at in enumerate(range(0, len(items), chunk)):
        inside = items[at : at + chunk]
        data = [struct.pack(f"<{len(parts)}I", *map(len, parts)) + b"".join(parts) for parts in inside]
        first = 4 * (len(inside) + 2)
        starts = [first + sum(map(len, data[:n])) for n in range(len(inside) + 1)]
        content = struct.pack(f"<{len(starts) + 1}I", len(inside), *starts) + b"".join(data)
        (folder / f"chunk-0-{number}.bin").write_bytes(content)
        chunks.append({"chunk_bytes": len(content), "chunk_size": len(inside), "filename": f"chunk-0-{number}.bin"})
    leaf = {"type": None, "context": None, "children_spec": []}
    tree = {"type": "builtins.dict", "context": json.dumps(list(kinds)), "children_spec": [leaf] * len(kinds)}
    known = {"compression": None, "encryption": None, "item_loader": "PyTreeLoader"}
    spec = {"data_format": list(kinds.values()), "data_spec": json.dumps([1, tree])}
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": {**known, **spec, **config}}))
    return folder


def int64(value: int) -> bytes:
    return struct.pack("<q", value)


def pil(image: Image.Image) -> bytes:
    return struct.pack("<3I", *image.size, len(image.mode)) + image.mode.encode() + image.tobytes()


def listed(path: Path, **options) -> list[tuple[Item, dict[str, bytes]]]:
    source = open_source(path, SourceOptions(**options))[1]
    there = pickle.loads(pickle.dumps(source))
    return [(item, there.read(item)) for item in source.items()]


def samples(folder: Path) -> list[Sample]:
    subset = Subset("", str(folder), read_manifest(folder, "train"))
    reader = Reader([subset])
    return sorted((reader.read(0, *subset.locate(i)) for i in range(subset.num_samples)), key=lambda one: one.key)


def check_build(source, out: Path, **options) -> list[Sample]:
    """The samples of a build of it that verifies."""
    build(source, out, SourceOptions(**options), processes=1)
    verify(out)
    return samples(out)


def test_parquet_as_hugging_face_writes_it(tmp_path):
    parquet(tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", table(20, metadata=True))
    parquet(tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", table(10, 20, metadata=True))
    parquet(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet", table(5, 50, metadata=True))
    with pytest.raises(ConfigError, match=r"several parts \(test, train\); say which with --part"):
        open_source(tmp_path / "hub", SourceOptions())
    found = check_build(tmp_path / "hub", tmp_path / "out", part="train", side=("age", "words"))
    manifest = read_manifest(tmp_path / "out", "train")
    assert (manifest.classes, manifest.made_by["kind"]) == (NAMES, "parquet")
    assert [one.key for one in found[19:21]] == [
        "data/train-00000-of-00002/0000019",
        "data/train-00001-of-00002/0000000",
    ]
    assert [(one.label, one.image) for one in found] == [(n % 3, encoded(n)) for n in range(30)]
    assert json.loads(found[7].fields["json"]) == {"age": 3.5, "words": ["word 7", "ü"]}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["dog", "cat", "dog"] * 4, ("cat", "dog")),
        ([4, 0, 2] * 4, ("0", "1", "2", "3", "4")),
        (pa.array(["x", "y", "x"] * 4).dictionary_encode(), ("x", "y")),
    ],
)
def test_a_class_is_a_text_or_a_number(tmp_path, labels, classes):
    file = parquet(tmp_path / "x.parquet", table(12, label=labels))
    source = open_source(file, SourceOptions())[1]
    assert source.classes == classes
    texts = labels.to_pylist() if isinstance(labels, pa.Array) else labels
    assert [classes[item.label] for item in source.items()] == [str(text) for text in texts]


def test_a_thousand_class_names_are_not_taken_for_a_file(tmp_path):
    names = tuple(f"class-{n}" for n in range(1000))
    file = parquet(tmp_path / "x.parquet", table(12))
    assert open_source(file, SourceOptions(classes=names))[1].classes == names
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert open_source(file, SourceOptions(classes=(str(tmp_path / "names.txt"),)))[1].classes == names


def test_rows_without_image_or_class_are_refused_one_by_one(tmp_path):
    images = [{"bytes": encoded(n), "path": None} for n in range(20)]
    images[3] = {"bytes": None, "path": "/etc/passwd"}
    gif = b"GIF89a" + bytes(20)
    images[4] = {"bytes": gif, "path": None}
    labels = [n % 2 for n in range(20)]
    labels[6] = -1
    file = parquet(tmp_path / "x.parquet", pa.table({"image": images, "label": labels}))
    report = build(file, tmp_path / "out", processes=1, max_refused=0.2)
    assert [(key[-1], reason) for key, reason in report.refused] == [
        ("3", "its image is only the name of a file, '/etc/passwd'"),
        (
            "4",
            f"its image begins with {gif[:12]!r} (GIF, which is not read); expected one of jpg, jpeg, png, webp, bmp",
        ),
        ("6", "it has no class (column label is -1)"),
    ]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({}, {"image": "picture"}, "--image: no column picture in .*; it has image, label, age, words"),
        ({"left": [b"x"] * 4}, {}, "several columns with a image .image, left.; say which"),
        ({"label": [1.5] * 4}, {}, "--label: column label holds double; expected whole numbers or texts"),
        ({"label": ["a"] * 4}, {}, "only one class, 'a'"),
        ({"label": ["a", "b"] * 2}, {"classes": ("a", "c")}, "labels 'b' are none of the 2 --classes"),
        ({}, {"side": ("image",)}, "--side: column image holds struct"),
        ({}, {"part": "val"}, "--part: 'val'"),
        ({}, {"masks": Path("m")}, "--masks: a source of kind 'parquet' does not use it"),
    ],
)
def test_columns_that_do_not_fit(tmp_path, columns, options, message):
    file = parquet(tmp_path / "x.parquet", table(4, **columns))
    with pytest.raises(ConfigError, match=message):
        open_source(file, SourceOptions(**options))


def test_row_groups_too_large_for_shuffled_reads_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shards.sources.columnar._KEPT_BYTES", 10_000)
    file = parquet(tmp_path / "x.parquet", table(60), row_group_size=60)
    with pytest.raises(ConfigError, match=r"x\.parquet: .*row_group_size=100"):
        open_source(file, SourceOptions())


def test_broken_columnar_files_are_named(tmp_path):
    file = parquet(tmp_path / "x.parquet", table(30))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"x\.parquet: not a Parquet file"):
        open_source(file, SourceOptions())
    folder = saved(tmp_path / "saved", table(30))
    part = folder / "data-00000-of-00001.arrow"
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(ConfigError, match=r"\.arrow: cannot be read"):
        open_source(folder, SourceOptions())


def test_a_dataset_saved_to_disk(tmp_path):
    folder = saved(tmp_path / "saved", table(20), table(10, 20))
    found = check_build(folder, tmp_path / "out", side=("age",))
    assert read_manifest(tmp_path / "out", "train").classes == NAMES
    assert [(one.label, one.image) for one in found] == [(n % 3, encoded(n)) for n in range(30)]


def test_a_dataset_dict_saved_to_disk(tmp_path):
    saved(tmp_path / "dict" / "train", table(12))
    saved(tmp_path / "dict" / "test", table(6, 50))
    (tmp_path / "dict" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    with pytest.raises(ConfigError, match="has train, test; say which with --part"):
        open_source(tmp_path / "dict", SourceOptions())
    assert len(listed(tmp_path / "dict", part="test")) == 6


def test_names_in_state_json_do_not_lead_out_of_the_folder(tmp_path):
    folder = saved(tmp_path / "saved", table(6))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../x.arrow"}]}))
    with pytest.raises(ConfigError, match="is no file in it"):
        open_source(folder, SourceOptions())


def test_litdata_chunks(tmp_path):
    kinds = {"image": "jpeg", "class": "int", "age": "float", "odd": "pickle"}
    items = [[encoded(n), int64(n % 3), struct.pack("<d", n / 2), b"\x80\x04N."] for n in range(20)]
    found = check_build(litdata(tmp_path / "lit", kinds, items), tmp_path / "out", side=("age",), classes=("a,b,c",))
    assert read_manifest(tmp_path / "out", "train").classes == ("a", "b", "c")
    assert [(one.label, one.image) for one in found] == [(n % 3, encoded(n)) for n in range(20)]
    assert json.loads(found[3].fields["json"]) == {"age": 1.5}


def test_raw_pixels_become_png_without_loss(tmp_path):
    items = [[pil(picture(n)), NAMES[n % 3].encode()] for n in range(6)]
    found = listed(litdata(tmp_path / "lit", {"image": "pil", "label": "str"}, items))
    for n, (_, members) in enumerate(found):
        (tmp_path / "x.png").write_bytes(members["png"])
        assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.asarray(picture(n)))


@pytest.mark.parametrize(
    ("kinds", "config", "options", "message"),
    [
        ({"image": "jpeg", "label": "pickle"}, {}, {}, "--label: label is pickled, and reading it can run any code"),
        ({"image": "pickle", "label": "int"}, {}, {"image": "image"}, "--image: image is pickled"),
        ({"image": "jpeg", "label": "int"}, {"compression": "zstd"}, {}, "compression 'zstd'; optimize it again"),
        ({"image": "jpeg", "label": "int"}, {"encryption": {"a": 1}}, {}, "encryption"),
        ({"image": "jpeg", "label": "int"}, {"item_loader": "TokensLoader"}, {}, "written for TokensLoader"),
        ({"image": "jpeg", "label": "int"}, {"data_spec": "["}, {}, "not the index of litData chunks"),
        ({"image": "jpeg", "other": "jpeg", "label": "int"}, {}, {}, "--image: several to choose from"),
    ],
)
def test_litdata_that_cannot_be_used(tmp_path, kinds, config, options, message):
    folder = litdata(tmp_path / "lit", kinds, [[encoded(n), int64(n), b"x"][: len(kinds)] for n in range(3)], **config)
    with pytest.raises(ConfigError, match=message):
        open_source(folder, SourceOptions(**options))


def test_damaged_litdata_chunks_are_named(tmp_path):
    folder = litdata(tmp_path / "lit", {"image": "jpeg", "label": "int"}, [[encoded(n), int64(n)] for n in range(6)])
    chunk = folder / "chunk-0-0.bin"
    for data in (chunk.read_bytes()[:100], b"", b"\xff" * 4 + chunk.read_bytes()[4:]):
        chunk.write_bytes(data)
        with pytest.raises(ConfigError, match=r"chunk-0-0\.bin: "):
            open_source(folder, SourceOptions())


@pytest.mark.parametrize("kind", ["jpg+cls", "jpg+json", "png+txt"])
def test_tars_packed_anew(tmp_path, kind):
    found = check_build(webdataset_tars(tmp_path / "tars", kind), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out", "train")
    assert manifest.classes == (("0", "1", "2") if kind == "jpg+cls" else NAMES)
    assert [(one.key, one.label) for one in found[:2]] == [("000000/set/0000", 0), ("000000/set/0001", 1)]
    assert [one.image for one in found] == [encoded(n, "PNG" if kind == "png+txt" else "JPEG") for n in range(24)]


def test_what_the_index_refuses_is_fixed_by_packing_anew(tmp_path):
    """Members of one sample apart, and the same keys in each tar."""
    parts = [part for n in range(6) for part in sample(n)]
    for name in ("a", "b"):
        plain_tar(tmp_path / "tars" / f"{name}.tar", parts[::2] + parts[1::2])
    found = check_build(tmp_path / "tars", tmp_path / "out")
    assert [one.key for one in found] == [f"{tar}/{n:04d}" for tar in "ab" for n in range(6)]
    assert [(one.label, one.image) for one in found] == [(n % 3, encoded(n)) for n in range(6)] * 2


def test_a_data_set_of_ours_packed_anew_keeps_keys_and_classes(tmp_path):
    folder = built(tmp_path, "zoo", per_class=5)
    again = check_build(folder, tmp_path / "again")
    assert read_manifest(tmp_path / "again", "train").classes == ("cat", "dog", "owl")
    assert again == samples(folder)


def test_an_indexed_folder_packed_anew_holds_the_same(tmp_path):
    folder = webdataset_tars(tmp_path / "tars", "jpg+json")
    index(folder)
    before = [(one.label, one.image) for one in samples(folder)]
    assert [(one.label, one.image) for one in check_build(folder, tmp_path / "out")] == before


def test_a_broken_tar_is_named(tmp_path):
    folder = webdataset_tars(tmp_path / "tars")
    (folder / "000001.tar").write_bytes((folder / "000001.tar").read_bytes()[:3000])
    with pytest.raises(ConfigError, match=r"000001\.tar: the file ends inside"):
        open_source(folder, SourceOptions())


class Squares:
    """A dataset of one's own."""

    classes = ("dark", "light")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.full((9, 7, 3), 20 * i, np.uint8), int(i > 5)


def test_a_dataset_object(tmp_path):
    found = check_build(from_dataset(Squares()), tmp_path / "out")
    assert read_manifest(tmp_path / "out", "train").stats.class_counts == (6, 6)
    (tmp_path / "x.png").write_bytes(found[3].image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), np.full((9, 7, 3), 60, np.uint8))


class Odd(Squares):
    transform = None

    def __getitem__(self, i: int):
        return "a.jpg", "light"


def test_dataset_objects_that_do_not_fit(tmp_path):
    with pytest.raises(ConfigError, match=r"item 0 of Odd is \(str, str\); expected"):
        build(from_dataset(Odd()), tmp_path / "out", processes=1)
    with pytest.raises(ConfigError, match="expected two names"):
        from_dataset(Squares(), ("one",))
    odd = Odd()
    odd.transform = str  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ConfigError, match="Odd has a transform; expected the images as they are"):
        from_dataset(odd)


def mnist(root: Path, count: int = 20) -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, *pixels.shape) + pixels.tobytes())
        labels = bytes(n % 10 for n in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels)
    return root


@pytest.mark.slow  # importing torchvision takes seconds
def test_torchvision_by_name(tmp_path):
    found = check_build(mnist(tmp_path / "raw"), tmp_path / "out", kind="torchvision", dataset="MNIST", part="test")
    assert [one.label for one in found] == [n % 10 for n in range(20)]
    assert read_manifest(tmp_path / "out", "train").classes[7] == "7 - seven"


@pytest.mark.slow
def test_torchvision_files_pass_through_untouched(tmp_path):
    image_folder(tmp_path / "raw" / "eurosat" / "2750", ("Forest", "River"), per_class=3)
    found = check_build(tmp_path / "raw", tmp_path / "out", kind="torchvision", dataset="EuroSAT")
    assert {one.image for one in found} == {p.read_bytes() for p in (tmp_path / "raw").rglob("*.jpg")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--dataset: None; expected one of torchvision's: .*CIFAR10"),
        ({"dataset": "os"}, "--dataset: 'os'"),
        ({"dataset": "CIFAR10"}, "torchvision cannot open CIFAR10 there"),
        ({"dataset": "MNIST", "part": "val"}, "--part: 'val'; torchvision's MNIST has train or test"),
    ],
)
def test_torchvision_that_cannot_be_opened(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        open_source(tmp_path, SourceOptions(kind="torchvision", **options))
    assert not list(tmp_path.iterdir()), "nothing is downloaded"
