"""`diff` reports exactly what changed between two splits or versions, and reads only what it must."""

import csv
import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from shards.cli import app
from shards.config import DataConfig
from shards.format.manifest import older_split, read_manifest, splits_in
from shards.ingest.build import build
from shards.inspect import diff as diff_module
from shards.inspect.diff import PARTS, compare
from shards.inspect.glance import opened, read
from shards.inspect.repair import repair
from shards.inspect.verify import inspect
from shards.loading.batch import Slot
from shards.loading.open import open_data, open_subset
from shards.loading.reader import Reader
from shards.loading.state import resume
from shards.loading.subset import Subset
from shards.loading.train import train_stream
from shards.settings import ConfigError
from shards.sources import SourceOptions
from tests.shards.images import encoded
from tests.shards.kinds import cells, damage, street
from tests.shards.server import FaultyServer

Rows = dict[str, tuple[int, str]]


def verb(*words) -> object:
    return app(["diff", *map(str, words)], result_action="return_value", exit_on_error=False)


def table(tmp: Path, name: str, rows: Rows, **options) -> Path:
    """The folder of shards of a table: key -> seed of the image, class."""
    raw = tmp / "raw" / name
    raw.mkdir(parents=True)
    for key, (seed, _) in rows.items():
        (raw / f"{key}.jpg").write_bytes(encoded(seed))
    lines = ["image,label", *(f"{key}.jpg,{label}" for key, (_, label) in rows.items())]
    (raw / "rows.csv").write_text("\n".join(lines))
    build(raw / "rows.csv", tmp / name, SourceOptions(), name="zoo", processes=1, **{"shard_mb": 0.03, **options})
    return tmp / name


def zoo(count: int = 40) -> Rows:
    return {f"k{n:02d}": (n, ("cat", "dog", "owl")[n % 3]) for n in range(count)}


def edited(rows: Rows) -> Rows:
    """Two removed, three added, two with another label, one with another image, one with both."""
    rows = {key: value for key, value in rows.items() if key not in ("k03", "k11")}
    rows |= {"k05": (5, "cat"), "k06": (6, "dog"), "k07": (107, "dog"), "k08": (108, "cat")}
    return rows | {"new0": (200, "cat"), "new1": (201, "ant"), "new2": (202, "ant")}


def keys(subset: Subset, rows) -> list[str]:
    return [sample.key for _, sample in read(subset, sorted(rows.tolist()))]


def changes(subset_a: Subset, subset_b: Subset) -> dict[str, set[str]]:
    """What changed -> keys."""
    found = compare(subset_a, subset_b)
    reported = {"removed": set(keys(subset_a, found.removed)), "added": set(keys(subset_b, found.added))}
    reported["label"] = set(keys(subset_a, found.a[found.label]))
    for column, part in enumerate(PARTS):
        reported[part] = set(keys(subset_a, found.a[found.parts[:, column]]))
    reported["unreadable"] = set(keys(subset_a, found.a[found.unread]))
    assert found.num_same == subset_a.num_samples - len(found.removed) - len(found.a)
    return {what: names for what, names in reported.items() if names}


EDITS = {
    "removed": {"k03", "k11"},
    "added": {"new0", "new1", "new2"},
    "label": {"k05", "k06", "k08"},
    "image": {"k07", "k08"},
}


@pytest.mark.parametrize("slice_", [1 << 22, 7])
def test_every_change_is_found_and_nothing_else(slice_, tmp_path, monkeypatch):
    """A class that is new in front gives all others new numbers: that is no change."""
    monkeypatch.setattr(diff_module, "_SLICE", slice_)
    a, b = (open_subset(table(tmp_path, name, rows)) for name, rows in (("a", zoo()), ("b", edited(zoo()))))
    assert a.classes != b.classes
    assert changes(a, b) == EDITS
    back = {**EDITS, "removed": EDITS["added"], "added": EDITS["removed"]}
    assert changes(b, a) == back


def test_only_what_differs_is_read(tmp_path, monkeypatch):
    a, b = (open_subset(table(tmp_path, name, rows)) for name, rows in (("a", zoo()), ("b", edited(zoo()))))
    same_classes = open_subset(table(tmp_path, "c", zoo() | {"k07": (107, "dog")}))
    seen = []
    get = Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, *place: seen.append(place) or get(self, *place))
    compare(a, same_classes)
    assert len(seen) == 2
    seen.clear()
    compare(a, b)
    assert len(seen) == 2 * 38, "with other numbers of classes every sample in both is another one on disk"


def test_the_verb_tells_it_all_with_status_1(tmp_path, capsys):
    a, b = table(tmp_path, "a", zoo()), table(tmp_path, "b", edited(zoo()), seed=3)
    assert verb(a, b, "--out", tmp_path / "diff.csv") == 1
    printed = capsys.readouterr().out
    assert "samples: 34 the same, 2 removed, 3 added, 4 changed" in printed
    for line in (
        r"removed +cat +1  k03",
        r"removed +owl +1  k11",
        r"added +ant +2  new\d, new\d",
        r"label +owl -> cat +2  k0\d, k0\d",
        r"image +dog +1  k07",
        r"made_by.seed +0 +3",
        r"classes that only B has: ant",
        r"come in another order",
    ):
        assert re.search(line, printed), line
    with open(tmp_path / "diff.csv") as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert rows.keys() == set.union(*EDITS.values())
    assert rows["k08"]["what"] == "label image"
    assert (rows["k08"]["class_a"], rows["k08"]["class_b"]) == ("owl", "cat")
    assert (rows["k03"]["shard_b"], rows["new0"]["shard_a"]) == ("", "")
    for row in rows.values():
        for side, folder in (("a", a), ("b", b)):
            if row[f"shard_{side}"]:
                assert row["key"].encode() in (folder / row[f"shard_{side}"]).read_bytes()


def test_the_same_version_is_the_same_wherever_it_lies_and_whatever_it_is_called(tmp_path, capsys):
    a = table(tmp_path, "a", zoo())
    build(tmp_path / "raw" / "a" / "rows.csv", tmp_path / "b", SourceOptions(), name="b", processes=1, shard_mb=0.03)
    assert verb(a, tmp_path / "b") == 0
    printed = capsys.readouterr().out
    assert "the same version" in printed
    assert re.search(r"name +zoo +b", printed)
    assert verb(a, a) == 0


def test_order_alone_and_shards_alone_are_told_apart(tmp_path, capsys):
    a, seed = table(tmp_path, "a", zoo()), table(tmp_path, "seed", zoo(), seed=1)
    cut = table(tmp_path, "cut", zoo(), shard_mb=0.01)
    assert verb(a, seed) == 1
    printed = capsys.readouterr().out
    assert "40 the same, 0 removed, 0 added, 0 changed" in printed
    assert "in another order" in printed
    assert verb(a, cut) == 1
    printed = capsys.readouterr().out
    assert "40 the same, 0 removed, 0 added, 0 changed" in printed
    assert "only cut into other shards" in printed


def test_versions_of_one_folder_and_how_a_run_goes_on(tmp_path, capsys):
    """What `diff` says of a run is what a run says, and what it proposes works."""
    folder = table(tmp_path, "a", zoo())
    old = read_manifest(folder, "train")
    for row in (2, 9):
        damage(folder, row)
    repair(inspect(folder, statistics=True))
    kept = older_split(old)
    assert kept in splits_in(folder)
    assert verb(folder, "--split", kept, "--split-b", "train") == 1
    printed = capsys.readouterr().out
    assert "samples: 38 the same, 2 removed, 0 added, 0 changed" in printed

    def config(split: str) -> DataConfig:
        settings = {"image_size": 16, "batch_size": 4, "workers": 0, "validation": 0}
        return DataConfig.model_validate(
            {"root": str(tmp_path), "sources": {"NAME": {"path": "a", "split": split}}, **settings}
        )

    before = config(kept)
    with train_stream(open_data(before).train, before, Slot()) as stream:
        next(stream)
        state = stream.state()
    with pytest.raises(ConfigError) as error:
        resume(open_data(config("train")).train, config("train"), state)
    for fault in error.value.faults:
        assert f"  {fault}\n" in printed
    assert f"`split: {kept}` goes on with A" in printed
    assert resume(open_data(before).train, before, state).position == 4
    going_on = config("train").model_copy(update={"on_change": "continue"})
    with train_stream(open_data(going_on).train, going_on, Slot(), state) as stream:
        assert stream.position == 4
        assert len(list(itertools.islice(stream, 3))) == 3


def test_boxes_and_masks_that_changed_are_told_as_such(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    a, b = cells(tmp_path / "x"), cells(tmp_path / "y")
    notes = tmp_path / "y" / "raw" / "cells" / "cells.json"
    notes.write_text(notes.read_text().replace("[8, 4, 6, 6]", "[8, 4, 6, 7]"))
    build(notes, b, SourceOptions(kind="coco"), processes=1, overwrite=True)
    assert changes(open_subset(a), open_subset(b)) == {"boxes": {"b"}}
    a, b = street(tmp_path / "x"), street(tmp_path / "y")
    raw = tmp_path / "y" / "raw" / "street"
    (raw / "masks" / "2.png").write_bytes((raw / "masks" / "1.png").read_bytes())
    (raw / "images" / "2.jpg").write_bytes(encoded(77))
    build(raw, b, SourceOptions(classes=("sky", "road", "car")), processes=1, overwrite=True)
    assert changes(open_subset(a), open_subset(b)) == {"image": {"2"}}


def test_what_cannot_be_read_is_told_and_not_guessed(tmp_path, capsys):
    a, b = table(tmp_path, "a", zoo()), table(tmp_path, "b", edited(zoo()))
    subset = open_subset(a)
    row = next(row for row, sample in read(subset, range(40)) if sample.key == "k09")
    damage(a, row)
    found = changes(subset, open_subset(b))
    assert len(found.pop("unreadable")) == 1
    assert found == EDITS
    assert verb(a, b, "--out", tmp_path / "diff.csv") == 1
    assert re.search(r"unreadable +cat +1 ", capsys.readouterr().out)


def test_nothing_in_common(tmp_path, capsys):
    others = {f"x{n}": (500 + n, "ant") for n in range(10)} | {"y": (600, "bee")}
    assert verb(table(tmp_path, "a", zoo()), table(tmp_path, "b", others)) == 1
    printed = capsys.readouterr().out
    assert "0 the same, 40 removed, 11 added, 0 changed" in printed
    assert "order" not in printed
    assert "`xfer shards dups` finds them" in printed


def test_urls_are_compared_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    a, b = table(tmp_path, "a", zoo()), table(tmp_path, "b", edited(zoo()))
    server = FaultyServer()
    try:
        server.files = {f"/b/{path.name}": path.read_bytes() for path in b.iterdir() if path.is_file()}
        with opened([str(a)], "train") as (ours,), opened([f"{server.url}/b"], "train") as (theirs,):
            assert changes(ours, theirs) == EDITS
        assert verb(a, f"{server.url}/b") == 1
        assert "3 added" in capsys.readouterr().out
    finally:
        server.down()


def test_what_is_missing_is_said_before_any_work(tmp_path):
    a = table(tmp_path, "a", zoo(9))
    with pytest.raises(ConfigError, match="compared with what"):
        verb(a)
    with pytest.raises(ConfigError, match="no split 'val'; it has train"):
        verb(a, "--split-b", "val")
    with pytest.raises(ConfigError, match=r"--out: .*\.csv"):
        verb(a, a, "--out", tmp_path / "x.png")


def test_an_index_that_names_no_class_is_no_crash(tmp_path):
    a, b = (open_subset(table(tmp_path, name, zoo(9))) for name in "ab")
    index = a.index()
    wrong = index.copy()
    wrong["label"][4] = 77
    broken = dataclasses.replace(a, index_path=str(tmp_path / "wrong.npy"))
    np.save(tmp_path / "wrong.npy", wrong)
    assert set(changes(broken, b)) == {"label", "unreadable"}
