"""Sources: what is taken for what, what is listed, what is refused and how it says so."""

import os
import pickle
from pathlib import Path

import pytest

from shards.format.fields import read_classes
from shards.ingest.build import build
from shards.settings import ConfigError
from shards.sources import SOURCES, Item, SourceOptions, open_source
from tests.shards.images import encoded, image_folder


def listed(root: Path, **options) -> list[Item]:
    return sorted(open_source(root, SourceOptions(**options))[1].items(), key=lambda item: item.key)


def test_a_folder(tmp_path):
    root = image_folder(tmp_path / "raw", ("b", "a"), per_class=1)
    (root / "a" / "deeper").mkdir()
    (root / "a" / "deeper" / "x.y.PNG").write_bytes(encoded(1, "PNG"))
    (root / "a" / ".hidden.jpg").write_bytes(b"")
    (root / ".cache").mkdir()
    (root / "readme.txt").write_text("")
    kind, source = open_source(root, SourceOptions())
    items = sorted(source.items(), key=lambda item: item.key)
    assert (kind, source.classes, source.ignored) == ("folder", ("a", "b"), 1)
    assert [(i.key, i.label) for i in items] == [("a/000", 0), ("a/deeper/x.y", 0), ("b/000", 1)]
    assert source.read(items[1]) == {"png": encoded(1, "PNG"), "cls": b"0"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such file or folder"),
        ([], "no images in it"),
        (["a.jpg", "b.jpg"], "2 images lie directly in it"),
        (["cat/a.txt"], "no images in it"),
        (["cat/a.jpg"], "only one class, 'cat'; a classifier needs two"),
        (["cat/a.jpg", "dog/a.jpg", "owl/x.txt"], "class folder 'owl' holds no images"),
        (["cat/a.jpg", "dog/a.jpg", "loose.jpg"], "1 images lie beside the class folders"),
        (["train/a.jpg", "val/a.jpg"], "splits"),
        (["train/a.jpg", "val/a.jpg", "samples/a.jpg"], "beside them: samples"),
        (["Train/a.jpg", "Testing/a.jpg", "b/a.jpg", "c/a.jpg"], "beside them: b, c"),
    ],
)
def test_folders_that_cannot_be_built(tmp_path, files, message):
    root = tmp_path / "raw"
    for file in files or []:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
    if files == []:
        root.mkdir()
    with pytest.raises(ConfigError, match=message) as caught:
        open_source(root, SourceOptions())
    assert str(root) in str(caught.value)


def test_one_name_of_a_split_may_be_a_class(tmp_path):
    for name in ("bus", "train"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(b"x")
    assert open_source(tmp_path, SourceOptions())[1].classes == ("bus", "train")


def test_all_faults_at_once(tmp_path):
    for file in ("cat/a.jpg", "loose.jpg", "empty/x.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        open_source(tmp_path, SourceOptions())
    assert len(caught.value.faults) == 2


def test_names_that_are_not_text(tmp_path):
    root = image_folder(tmp_path / "raw", per_class=1)
    with open(os.path.join(os.fsencode(root), b"cat", b"\xff.jpg"), "wb"):
        pass
    with pytest.raises(ConfigError, match=r"1 names that are not UTF-8.*cat/.udcff"):
        build(root, tmp_path / "out", processes=1)
    assert not (tmp_path / "out").exists()


def test_two_files_that_would_be_one_sample(tmp_path):
    root = image_folder(tmp_path / "raw", per_class=8)
    for n in range(7):
        (root / "cat" / f"{n:03d}.png").write_bytes(encoded(n, "PNG"))
    with pytest.raises(ConfigError, match=r"cat/00\d.(jpg|png) and cat/00\d.(jpg|png) would both be") as caught:
        build(root, tmp_path / "out", processes=1)
    assert caught.value.faults[-1] == "and 2 more such pairs"
    assert not (tmp_path / "out").exists()


def test_an_option_of_another_kind_is_refused(tmp_path):
    root = image_folder(tmp_path / "raw", per_class=1)
    with pytest.raises(ConfigError, match=r"--bad-boxes: a source of kind 'folder' does not use it"):
        open_source(root, SourceOptions(bad_boxes="drop"))


def test_names_of_classes(tmp_path):
    many = tuple(f"class number {n}" for n in range(1000))
    (tmp_path / "names").write_text("cat\n\n big dog \n")
    assert read_classes(("cat, dog",)) == ("cat", "dog")
    assert read_classes(("cat, dog", "owl")) == ("cat, dog", "owl"), "names may have commas where there are several"
    assert read_classes((str(tmp_path / "names"),)) == ("cat", "big dog")
    assert read_classes(",".join(many)) == read_classes(many) == many, "longer than any file name"
    for given in ("cat,,dog", "cat,dog,cat", "gone.txt"):
        with pytest.raises(ConfigError, match="--classes"):
            read_classes(given)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_says_how_it_looks_and_uses_options_that_exist(kind):
    known = SourceOptions.__dataclass_fields__.keys()
    assert SOURCES[kind].looks
    assert SOURCES[kind].options <= known - {"kind"}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_refuses_what_is_not_there(tmp_path, kind):
    with pytest.raises(ConfigError, match="gone"):
        open_source(tmp_path / "gone", SourceOptions(kind=kind))


def test_a_source_goes_to_other_processes(tmp_path):
    source = open_source(image_folder(tmp_path / "raw", per_class=1), SourceOptions())[1]
    items = list(source.items())
    assert pickle.loads(pickle.dumps(source)).read(items[0]) == source.read(items[0])
