"""Tars that others wrote become data sets where they lie: found, checked, streamed, and never changed."""

import bz2
import gzip
import hashlib
import itertools
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.cli import app
from shards.format.fields import Roles
from shards.format.manifest import read_manifest
from shards.ingest.build import BuildError, build
from shards.ingest.index import index
from shards.inspect.verify import inspect, verify
from shards.loading.batch import Slot
from shards.loading.open import open_data
from shards.loading.reader import Reader
from shards.loading.subset import Subset
from shards.loading.train import train_stream
from shards.settings import ConfigError
from tests.shards.foreign import NAMES, energon_folder, plain_tar, sample, webdataset_tars
from tests.shards.images import config, encoded, image_folder


def samples(folder: Path, split: str = "train") -> dict[str, tuple[str, bytes]]:
    """key -> (class name, image) of a split, as training reads them."""
    subset = Subset("", str(folder), read_manifest(folder, split))
    reader = Reader([subset])
    read = (reader.read(0, *subset.locate(i)) for i in range(subset.num_samples))
    return {one.key: (subset.classes[one.label] if one.label >= 0 else "", one.image) for one in read}


def digests(folder: Path) -> dict[str, str]:
    return {tar.name: hashlib.sha256(tar.read_bytes()).hexdigest() for tar in sorted(folder.glob("*.tar*"))}


def copied(folder: Path, to: Path) -> Path:
    """The tars alone."""
    to.mkdir(parents=True)
    for tar in folder.glob("*.tar"):
        shutil.copy(tar, to)
    return to


def verb(*words) -> object:
    return app([str(word) for word in words], result_action="return_value", exit_on_error=False)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("jpg+cls", {"image": "jpg", "label": "cls"}),
        ("jpg+json", {"image": "jpg", "label": "json:label"}),
        ("png+txt", {"image": "png", "label": "txt"}),
    ],
)
def test_tars_of_webdataset_are_indexed_in_place_and_train(tmp_path, kind, fields):
    folder = webdataset_tars(tmp_path / "shards" / "zoo", kind)
    before = digests(folder)
    manifest = index(folder).manifest
    assert digests(folder) == before
    assert {shard.path: shard.sha256 for shard in manifest.shards} == before
    assert (manifest.task, dict(manifest.fields)) == ("classification", fields)
    names = ("0", "1", "2") if kind == "jpg+cls" else NAMES
    assert manifest.classes == names
    assert manifest.stats.class_counts == (8, 8, 8)
    assert samples(folder) == {
        f"set/{n:04d}": (names[n % 3], encoded(n, "PNG" if kind == "png+txt" else "JPEG")) for n in range(24)
    }
    assert verify(folder) == manifest

    settings = config(tmp_path, "zoo", validation=0, strict=True)
    with train_stream(open_data(settings).train, settings, Slot()) as stream:
        batches = list(itertools.islice(stream, 2))
    assert np.bincount(np.concatenate([batch.targets for batch in batches])).tolist() == [8, 8, 8]


def test_what_is_given_counts_before_what_is_found(tmp_path):
    folder, names = webdataset_tars(tmp_path / "zoo", "jpg+json"), ("dog", "owl", "cat")
    manifest = index(folder, given=Roles(label="json:meta.breed"), classes=names, name="pets").manifest
    assert (manifest.name, manifest.classes, manifest.fields["label"]) == ("pets", names, "json:meta.breed")
    assert samples(folder)["set/0001"] == ("dog", encoded(1))


def test_captions_are_side_inputs(tmp_path):
    folder = webdataset_tars(tmp_path / "zoo", "jpg+caption")
    with pytest.raises(ConfigError, match=r"no label found.*--label EXT.*--side EXT for captions"):
        index(folder)
    manifest = index(folder, given=Roles(side="txt")).manifest
    assert (manifest.task, manifest.classes, manifest.fields["side"]) == ("captioning", (), "txt")
    verify(folder)


def test_the_verbs_work_on_it(tmp_path, capsys):
    folder = webdataset_tars(tmp_path / "zoo")
    assert verb("index", folder, "--classes", "cat,dog,owl") is None
    assert "indexed zoo/train: 24 samples of 3 classes in 3 tars (image jpg, label cls)" in capsys.readouterr().out
    verb("show", folder, "--out", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert verb("verify", folder) == 0
    verb("stats", folder)
    assert "owl" in capsys.readouterr().out
    verb("index", folder, "--classes", "cat,dog,owl")
    assert "already indexed" in capsys.readouterr().out


def test_numbers_for_names_are_pointed_out(tmp_path, capsys):
    verb("index", webdataset_tars(tmp_path / "zoo"))
    assert "give them with --classes" in capsys.readouterr().out


def test_several_splits_in_a_folder_stay_apart(tmp_path):
    folder = webdataset_tars(tmp_path / "zoo", count=20, prefix="train-")
    webdataset_tars(folder, count=10, prefix="val-")
    index(folder)
    index(folder, "val")
    assert [read_manifest(folder, split).num_samples for split in ("train", "val")] == [20, 10]
    with pytest.raises(ConfigError, match="speak of train, val, not of split 'test'; give --split"):
        index(folder, "test")
    assert index(folder, "both", glob="*.tar").manifest.num_samples == 30


def test_one_key_in_two_tars_is_two_samples(tmp_path):
    folder = tmp_path / "zoo"
    webdataset_tars(folder, count=6, prefix="a-")
    webdataset_tars(folder, count=6, prefix="b-")
    assert index(folder).manifest.num_samples == 12


def test_what_energon_prepared_is_understood(tmp_path):
    folder = energon_folder(tmp_path / "zoo", exclude=("train-000000.tar/set/0003",))
    manifest = index(folder).manifest
    assert [shard.path for shard in manifest.shards] == ["train-000000.tar", "train-000001.tar"]
    assert manifest.fields["label"] == "json:meta.breed"
    assert samples(folder).keys() == {f"set/{n:04d}" for n in range(20)} - {"set/0003"}
    assert index(folder, "val").manifest.num_samples == 10
    with pytest.raises(ConfigError, match="no split 'test'; it has train, val"):
        index(folder, "test")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("../../etc/x.tar", "leads out of the folder"),
        ("/etc/x.tar", "leads out of the folder"),
        ("train-{0..999999999}.tar", "names more than 1,000,000 tars"),
        ("train-{000000..000007}.tar", "are missing: .*train-000002.tar"),
    ],
)
def test_energons_names_are_not_believed(tmp_path, train, message):
    with pytest.raises(ConfigError, match=message):
        index(energon_folder(tmp_path / "zoo", train))


@pytest.mark.parametrize(("ending", "pack"), [("tar.gz", gzip.compress), ("tar", gzip.compress), ("tar", bz2.compress)])
def test_compressed_tars_are_to_be_unpacked(tmp_path, ending, pack):
    folder = webdataset_tars(tmp_path / "zoo", count=6)
    (tar,) = folder.glob("*.tar")
    packed = pack(tar.read_bytes())
    tar.unlink()
    (folder / f"x.{ending}").write_bytes(packed)
    with pytest.raises(ConfigError, match=r"compressed.*unpack"):
        index(folder)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2 + 600]


def with_a_broken_header(data: bytes) -> bytes:
    return data[:600] + data[600:].replace(b"0004.jpg", b"0009.jpg", 1)


def twice(data: bytes) -> bytes:
    return data + data


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, r"the file ends inside \d+\.(jpg|cls) \(at byte"),
        (with_a_broken_header, r"the header at byte \d+ is damaged"),
        (twice, "more follows .* two tars joined into one"),
        (lambda data: b"", "the file ends inside the header at byte 0"),
        (lambda data: b"<html>404" * 200, "no tar header at byte 0"),
    ],
)
def test_a_tar_that_cannot_be_trusted_stops_the_work_and_is_named(tmp_path, harm, message):
    folder = tmp_path / "zoo"
    for name in "abc":
        plain_tar(folder / f"{name}.tar", itertools.chain(*(sample(n) for n in range(6))))
    sound = (folder / "b.tar").read_bytes()
    (folder / "b.tar").write_bytes(harm(sound))
    with pytest.raises(BuildError, match=rf"1 of 3 tars cannot be indexed.*\n  b.tar: {message}"):
        index(folder)
    assert not list(folder.glob("*.manifest.json"))
    (folder / "b.tar").write_bytes(sound)
    assert index(folder).manifest.num_samples == 18


def test_members_of_one_sample_that_stand_apart_are_refused(tmp_path):
    parts = [part for n in range(3) for part in sample(n)]
    plain_tar(tmp_path / "zoo" / "x.tar", parts[::2] + parts[1::2])
    with pytest.raises((BuildError, ConfigError), match="have to be neighbours"):
        index(tmp_path / "zoo", given=Roles(("jpg",), "cls"))


def test_a_key_twice_in_a_tar_is_refused(tmp_path):
    plain_tar(tmp_path / "zoo" / "x.tar", [*sample(0), *sample(1), *sample(0)])
    with pytest.raises(BuildError, match="no two may have one name"):
        index(tmp_path / "zoo")


def test_samples_that_cannot_be_used_are_left_out_and_named(tmp_path):
    folder = tmp_path / "zoo"
    bad = [
        [("bad-image.jpg", b"no picture"), ("bad-image.cls", b"1")],
        [("no-label.jpg", encoded(1))],
        [("no-image.cls", b"1")],
        [("below.jpg", encoded(1)), ("below.cls", b"-1")],
    ]
    plain_tar(folder / "x.tar", itertools.chain(*(sample(n) for n in range(12)), *bad))
    with pytest.raises(BuildError, match="4 of 16 samples refused, 1 are tolerated"):
        index(folder)
    report = index(folder, max_refused=0.3)
    assert [key for key, _ in report.refused] == ["x.tar/bad-image", "x.tar/no-label", "x.tar/no-image", "x.tar/below"]
    assert samples(folder).keys() == {f"{n:04d}" for n in range(12)}
    written = json.loads((folder / "train.build-report.json").read_text())
    assert [entry["key"] for entry in written["refused"]] == [key for key, _ in report.refused]
    assert verify(folder).num_samples == 12


def test_pickled_members_are_refused_by_name(tmp_path):
    plain_tar(tmp_path / "zoo" / "x.tar", [*sample(0), *sample(1), ("0002.jpg", encoded(2)), ("0002.pkl", b"cos\n")])
    with pytest.raises(BuildError, match=r"0002.pkl: pickled members are refused"):
        index(tmp_path / "zoo")


def test_links_are_refused(tmp_path):
    plain_tar(tmp_path / "zoo" / "x.tar", sample(0))
    with tarfile.open(tmp_path / "zoo" / "x.tar", "a") as tar:
        link = tarfile.TarInfo("0001.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ConfigError, match=r"0001.jpg: not a regular file; pack links with"):
        index(tmp_path / "zoo")


def test_stopped_half_way_it_goes_on(tmp_path):
    folder = webdataset_tars(tmp_path / "zoo", "jpg+json", 60)
    (folder / "000004.tar").rename(tmp_path / "away.tar")
    (folder / "000004.tar").write_bytes(b"x" * 1024)
    with pytest.raises(BuildError, match="1 of 6 tars"):
        index(folder)
    state = folder / ".build-train"
    kept = {path.name: path.stat().st_mtime_ns for path in state.glob("*.json")}
    assert len(kept) == 5
    os.replace(tmp_path / "away.tar", folder / "000004.tar")
    whole = index(folder).manifest
    assert not state.exists()
    assert index(copied(folder, tmp_path / "other" / "zoo")).manifest == whole


@pytest.mark.slow
def test_one_process_or_two_give_the_same_index(tmp_path):
    folder = webdataset_tars(tmp_path / "zoo", "jpg+json")
    other = copied(folder, tmp_path / "other" / "zoo")
    assert index(folder, processes=1).manifest == index(other, processes=2).manifest


def test_a_changed_tar_is_another_data_set(tmp_path):
    folder = webdataset_tars(tmp_path / "zoo")
    first = index(folder).manifest
    webdataset_tars(folder, count=5, prefix="more-")
    assert inspect(folder).faults == ()
    with pytest.raises(ConfigError, match=r"is a data set already.*--overwrite"):
        index(folder)
    second = index(folder, overwrite=True).manifest
    assert (first.num_samples, second.num_samples) == (24, 29)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_build_never_removes_tars_of_others(tmp_path, indexed):
    folder = webdataset_tars(tmp_path / "zoo", prefix="train-")
    if indexed:
        index(folder)
    before = digests(folder)
    image_folder(tmp_path / "raw", per_class=2)
    with pytest.raises(ConfigError, match=r"3 tars of split 'train' are there that no build wrote"):
        build(tmp_path / "raw", folder, overwrite=True, processes=1)
    assert digests(folder) == before
    assert indexed == (folder / "train.manifest.json").exists()
    assert not list(folder.glob(".build-train"))


def test_a_label_that_its_index_row_does_not_tell_is_noticed(tmp_path):
    """As where somebody swaps two tars of equal layout and corrects the checksums."""
    folder = webdataset_tars(tmp_path / "zoo", "jpg+json")
    manifest = index(folder).manifest
    rows = np.load(folder / manifest.index.path)
    rows["label"][7] = (rows["label"][7] + 1) % 3
    np.save(folder / manifest.index.path, rows)
    (fault,) = (fault for fault in inspect(folder).faults if fault.row is not None)
    assert (fault.row, "its index row says class" in fault.reason) == (7, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "a/b"}, "--split"),
        ({"classes": ("cat", "cat")}, "given twice"),
        ({"processes": 0}, "--processes"),
        ({"max_refused": 1.5}, "--max-refused"),
        ({"glob": "../*.tar"}, "--shards"),
        ({"glob": "x*.tar"}, "no file matches"),
        ({"classes": ("cat", "dog")}, "labels '2' are none of the 2 --classes"),
        ({"given": Roles(label="json:label")}, "--label: 'json:label' is in none of them"),
        ({"given": Roles(("gif",))}, "no image among its members"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    folder = webdataset_tars(tmp_path / "zoo", count=6)
    with pytest.raises((ConfigError, BuildError), match=message):
        index(folder, **options)
    assert not list(folder.glob("*.manifest.json"))


def test_what_is_no_folder_of_tars(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "gone", "no such folder"), (tmp_path / "empty", "no file matches")):
        with pytest.raises(ConfigError, match=message):
            index(path)
