"""Listing a folder: what is taken, what is refused and how it says so."""

import os

import pytest

from shards.settings import ConfigError
from shards.sources import list_folder
from tests.shards.images import encoded, image_folder


def test_a_folder(tmp_path):
    source = image_folder(tmp_path / "raw", ("b", "a"), per_class=1)
    (source / "a" / "deeper").mkdir()
    (source / "a" / "deeper" / "x.y.PNG").write_bytes(encoded(1, "PNG"))
    (source / "a" / ".hidden.jpg").write_bytes(b"")
    (source / ".cache").mkdir()
    (source / "readme.txt").write_text("")
    listing = list_folder(source)
    assert listing.classes == ("a", "b")
    assert [(i.key, i.label, i.extension) for i in listing.items] == [
        ("a/000", 0, "jpg"),
        ("a/deeper/x.y", 0, "png"),
        ("b/000", 1, "jpg"),
    ]
    assert listing.ignored == 1


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder"),
        ([], "no images in it"),
        (["a.jpg", "b.jpg"], "2 images lie directly in it"),
        (["cat/a.txt"], "no images in it"),
        (["cat/a.jpg"], "only one class, 'cat'; a classifier needs two"),
        (["cat/a.jpg", "dog/a.jpg", "owl/x.txt"], "class folder 'owl' holds no images"),
        (["cat/a.jpg", "dog/a.jpg", "loose.jpg"], "1 images lie beside the class folders"),
        (["train/a.jpg", "val/a.jpg"], "splits"),
        (["cat/a.jpg", "cat/a.png", "dog/a.jpg"], "differ only in their extension"),
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
        list_folder(root)
    assert str(root) in str(caught.value)


def test_all_faults_at_once(tmp_path):
    for file in ("cat/a.jpg", "loose.jpg", "empty/x.txt"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(ConfigError) as caught:
        list_folder(tmp_path)
    assert len(caught.value.faults) == 2


def test_names_that_are_not_text(tmp_path):
    source = image_folder(tmp_path / "raw", per_class=1)
    with open(os.path.join(os.fsencode(source), b"cat", b"\xff.jpg"), "wb"):
        pass
    with pytest.raises(ConfigError, match="not UTF-8"):
        list_folder(source)
