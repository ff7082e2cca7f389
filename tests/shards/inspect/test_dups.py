"""`dups` finds copies of every kind, says which of them are leaks, and looks at each sample once."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.cli import app
from shards.config import DataConfig
from shards.format.manifest import read_manifest, splits_in
from shards.ingest.build import build
from shards.inspect.dups import scan
from shards.inspect.dups.compare import compare
from shards.inspect.dups.copies import open_splits
from shards.inspect.dups.leaks import all_pairs, closest, contradictions, counts, cut_leaks, leaks
from shards.inspect.dups.near import ENOUGH
from shards.inspect.dups.text import read_keys
from shards.inspect.repair import repair
from shards.inspect.verify import inspect
from shards.loading.open import open_data
from shards.loading.reader import Reader
from shards.settings import ConfigError
from tests.shards.kinds import damage
from tests.shards.scenes import COPIES, brighter, file_of, folder_of, mirror, opened, scene

ORIGINALS = {f"{'ab'[seed % 2]}/{seed:03d}.jpg": file_of(scene(seed)) for seed in range(24)}


def verb(*words) -> object:
    return app(["dups", *map(str, words)], result_action="return_value", exit_on_error=False)


def data_set(tmp: Path, split: str, files: dict[str, bytes], name: str = "set", **options) -> Path:
    """The folder of shards after `files` were built into it as a split."""
    raw = folder_of(tmp / "raw" / name / split, files)
    build(raw, tmp / name, split=split, processes=1, **{"shard_mb": 0.06, **options})
    return tmp / name


def others(count: int, first: int = 1000) -> dict[str, bytes]:
    """Pictures that are nowhere else."""
    return {f"{'ab'[n % 2]}/other{n:03d}.jpg": file_of(scene(first + n)) for n in range(count)}


def found_in(*folders, test=(), split=(), **options):
    return compare(open_splits([*map(str, folders)], [*map(str, test)], split, processes=1), processes=1, **options)


def reported(found, pairs) -> set[tuple[str, str, str]]:
    """Kind and both keys of pairs."""
    keys = read_keys(found, (sample for pair in pairs for sample in pair[:2]))
    return {(pair.kind, keys[pair.a], keys[pair.b]) for pair in pairs}


def leaky(tmp: Path) -> tuple[Path, set[tuple[str, str, str]]]:
    """A train split, and a test split with copies of some of it, one of each kind; and what is to be found."""
    made = {"exact": lambda image: file_of(image), **COPIES, "mirror": lambda image: file_of(mirror(image), quality=60)}
    copies, expected = {}, set()
    for seed, (name, make) in enumerate(made.items()):
        kind = {"exact": "exact", "png": "pixels", "mirror": "mirrored"}.get(name, "near")
        image = opened(file_of(scene(seed))) if kind == "pixels" else scene(seed)
        copies[f"{'ab'[seed % 2]}/copy{seed}.jpg"] = make(image)
        expected.add((kind, f"{'ab'[seed % 2]}/copy{seed}", f"{'ab'[seed % 2]}/{seed:03d}"))
    data_set(tmp, "train", ORIGINALS)
    return data_set(tmp, "test", copies | others(20)), expected


def test_a_copy_of_any_kind_in_test_is_a_leak_and_nothing_else_is(tmp_path, capsys):
    folder, expected = leaky(tmp_path)
    found = found_in(folder)
    assert reported(found, leaks(found)) == expected
    assert len(list(all_pairs(found))) == len(expected)
    assert verb(folder) == 1
    printed = capsys.readouterr().out
    assert f"LEAKS: {len(expected)} held-out samples" in printed
    assert f"{len(expected)} of {len(expected) + 20} (1 exact, 1 pixels, 8 near, 1 mirrored)" in printed
    assert "near 0.00" in printed
    assert "b/copy1 " in printed


def test_no_copy_no_leak_and_status_0(tmp_path, capsys):
    data_set(tmp_path, "train", ORIGINALS)
    folder = data_set(tmp_path, "test", others(10))
    assert verb(folder, "--out", tmp_path / "pairs.png", "--csv", tmp_path / "pairs.csv") == 0
    assert "leaks: none" in capsys.readouterr().out
    assert not (tmp_path / "pairs.png").exists()
    assert (tmp_path / "pairs.csv").read_text().count("\n") == 1


def test_what_is_trained_on_is_said_by_names_and_by_test(tmp_path, capsys):
    """Another source's train split is trained on too, unless the folder is only tested on."""
    photo = data_set(tmp_path, "train", ORIGINALS, "photo")
    web = data_set(tmp_path, "train", {"a/x.jpg": ORIGINALS["b/001.jpg"], "b/y.jpg": file_of(scene(50))}, "web")
    assert verb(photo, web) == 0
    assert "all of these splits are trained on" in capsys.readouterr().out
    assert verb(photo, web, "--test", web) == 1
    assert verb(photo, "--test", web) == 1
    found = found_in(photo, test=[web])
    assert reported(found, leaks(found)) == {("exact", "a/x", "b/001")}
    assert verb("--split", "train", "--test", photo, "--test", web, photo) == 0
    assert "none of these splits is trained on" in capsys.readouterr().out


def test_near_is_as_strict_as_it_is_told_and_mirroring_can_be_left_out(tmp_path):
    folder, _ = leaky(tmp_path)
    kinds = [pair.kind for pair in leaks(found_in(folder, near=0))]
    assert kinds.count("exact") == kinds.count("pixels") == 1
    assert len(kinds) < 11
    assert "mirrored" not in {pair.kind for pair in leaks(found_in(folder, mirror=False))}
    assert verb(folder, "--near", "0", "--skip-mirrored") == 1


def test_one_picture_with_two_classes_is_told(tmp_path, capsys):
    wrong = {"b/wrong.png": file_of(opened(ORIGINALS["a/000.jpg"]), "PNG"), "b/again.jpg": ORIGINALS["a/002.jpg"]}
    right = {"a/right.webp": file_of(scene(4), "WEBP")}
    folder = data_set(tmp_path, "train", ORIGINALS | wrong | right)
    found = found_in(folder)
    pairs = {(kind, *sorted(keys)) for kind, *keys in reported(found, contradictions(found))}
    assert pairs == {("pixels", "a/000", "b/wrong"), ("exact", "a/002", "b/again")}
    verb(folder)
    printed = capsys.readouterr().out
    assert "LABELS THAT CONTRADICT: 2 pairs" in printed
    assert "a / b 2" in printed


def test_empty_pictures_are_no_cluster_but_for_the_same_pixels(tmp_path):
    flat = {f"a/{n}.png": file_of(Image.new("RGB", (60, 40), (n, 2 * n, 90)), "PNG") for n in range(40)}
    again = {"b/7.bmp": file_of(Image.new("RGB", (60, 40), (7, 14, 90)), "BMP")}
    folder = data_set(tmp_path, "train", flat | again)
    found = found_in(folder)
    assert {(kind, *sorted(keys)) for kind, *keys in reported(found, [p for _, p in all_pairs(found)])} == {
        ("pixels", "a/7", "b/7")
    }


def test_counts_are_of_samples_and_not_of_pairs(tmp_path):
    one, two = ORIGINALS["a/000.jpg"], ORIGINALS["b/001.jpg"]
    train = {**ORIGINALS, "a/x.jpg": one, "a/y.jpg": one}
    data_set(tmp_path, "train", train)
    folder = data_set(tmp_path, "test", {"a/z.jpg": one, "b/z.webp": file_of(opened(two), "WEBP"), **others(4)})
    found = found_in(folder)
    assert [split.split for split in found.splits] == ["train", "test"]
    assert counts(found).tolist() == [[3, 4], [2, 0]]
    assert sorted(map(len, found.groups)) == [1, 2]


def test_the_table_has_every_pair_and_names_both_sides(tmp_path):
    folder, expected = leaky(tmp_path)
    assert verb(folder, "--csv", tmp_path / "pairs.csv") == 1
    with open(tmp_path / "pairs.csv") as file:
        rows = list(csv.DictReader(file))
    assert {(row["kind"], row["key_b"], row["key_a"]) for row in rows} == expected
    assert len({row["group"] for row in rows}) == len(expected)
    for row in rows:
        for side, split in (("a", "train"), ("b", "test")):
            assert row[f"folder_{side}"] == str(folder)
            assert row[f"split_{side}"] == split
            assert row[f"class_{side}"] == row[f"key_{side}"][0]
            shard = (folder / row[f"shard_{side}"]).read_bytes()
            assert row[f"key_{side}"].replace("/", "%2F").encode() in shard


def test_pairs_stand_side_by_side_on_a_sheet(tmp_path):
    """Both pictures of a pair are there, with their own pixels: left the held-out one."""
    red, blue = (np.full((64, 64, 3), ink, np.uint8) for ink in ((200, 10, 10), (10, 10, 200)))
    data_set(tmp_path, "train", {"a/1.png": file_of(Image.fromarray(blue), "PNG"), **others(3)})
    folder = data_set(tmp_path, "test", {"a/2.bmp": file_of(Image.fromarray(blue), "BMP"), **others(3, 2000)})
    data_set(tmp_path, "val", {"b/3.png": file_of(Image.fromarray(red), "PNG"), **others(3, 3000)})
    assert verb(folder, "--out", tmp_path / "sheet.png") == 1
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    assert (pixels == (10, 10, 200)).all(-1).sum() == 2 * 128 * 128
    assert not (pixels == (200, 10, 10)).all(-1).any()


def test_a_second_time_nothing_is_decoded_and_only_a_new_version_is_looked_at(tmp_path, monkeypatch, capsys):
    folder, expected = leaky(tmp_path)
    first = found_in(folder)
    assert [split.hashes.taken for split in first.splits] == [24, 31]
    monkeypatch.setattr(scan, "take_hash", lambda data: pytest.fail("decoded again"))
    again = found_in(folder)
    assert reported(again, leaks(again)) == expected
    assert verb(folder) == 1
    assert "55 samples had been looked at before" in capsys.readouterr().out
    monkeypatch.undo()
    (folder / "train.prints.0123456789ab.npy").touch()  # as they were called once
    build(tmp_path / "raw" / "set" / "train", folder, split="train", processes=1, shard_mb=0.03, overwrite=True)
    last = found_in(folder)
    assert [split.hashes.taken for split in last.splits] == [24, 0]
    assert len(list(folder.glob("train.hashes.*.npy"))) == 1, "those of the old version are removed"
    assert not list(folder.glob("*.prints.*"))


def test_hashes_of_a_version_that_is_still_there_stay(tmp_path):
    folder = data_set(tmp_path, "train", ORIGINALS)
    found_in(folder)
    damage(folder, 3)
    repair(inspect(folder, statistics=True))
    (old,) = (split for split in splits_in(folder) if "@" in split)
    (now,) = found_in(folder).splits
    assert now.hashes.taken == 23
    assert len(list(folder.glob("train.hashes.*.npy"))) == 2
    (split,) = found_in(folder, split=[old]).splits
    assert split.split == old
    assert len(split.hashes.rows) == 24


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    folder = data_set(tmp_path, "train", ORIGINALS)
    sizes = [shard.samples for shard in read_manifest(folder, "train").shards]
    assert len(sizes) > 2
    calls = []

    def stopping(data):
        calls.append(data)
        if len(calls) > sizes[0] + sizes[1]:
            raise KeyboardInterrupt
        return take_hash(data)

    take_hash = scan.take_hash
    monkeypatch.setattr(scan, "take_hash", stopping)
    with pytest.raises(KeyboardInterrupt):
        found_in(folder)
    assert not list(folder.glob("*.hashes.*.npy"))
    monkeypatch.setattr(scan, "take_hash", lambda data: calls.append(data) or take_hash(data))
    calls.clear()
    whole = found_in(folder).splits[0].hashes
    assert len(calls) == whole.taken == sum(sizes[2:])
    assert [path.name for path in folder.iterdir() if path.name.startswith(".hashes")] == []
    again = data_set(tmp_path, "train", ORIGINALS, "again")
    assert np.array_equal(found_in(again).splits[0].hashes.rows, whole.rows)


def test_damaged_samples_are_named_left_out_and_tried_again(tmp_path, capsys):
    folder, expected = leaky(tmp_path)
    intact = {path: path.read_bytes() for path in folder.glob("train-*.tar")}
    subset = open_splits([str(folder)], [], ["train"])[0].subset
    row = next(i for i in range(24) if Reader([subset]).read(0, *subset.locate(i)).key == "a/000")
    for path in folder.glob("*.hashes.*"):
        path.unlink()
    damage(folder, row)
    assert verb(folder) == 1
    printed = capsys.readouterr().out
    assert "DAMAGED, and left out: 1 sample" in printed
    assert "a/000  its bytes changed" in printed
    assert f"LEAKS: {len(expected) - 1} held-out" in printed
    for path, data in intact.items():
        path.write_bytes(data)
    found = found_in(folder)
    assert reported(found, leaks(found)) == expected
    assert not found.splits[0].hashes.faults


def test_a_lost_shard_costs_its_samples_alone(tmp_path):
    folder, expected = leaky(tmp_path)
    found_in(folder)
    for path in folder.glob("*.hashes.*"):
        path.write_bytes(path.read_bytes()[:700])  # half a file counts as none
    np.save(next(folder.glob("test.hashes.*")), np.zeros(3))  # and so does another one
    lost = read_manifest(folder, "train").shards[1]
    (folder / lost.path).write_bytes(b"")
    found = found_in(folder)
    assert len(found.splits[0].hashes.faults) == lost.samples
    assert reported(found, leaks(found)) < expected
    assert found.splits[1].hashes.taken == 31


def test_a_folder_that_cannot_be_written_to_is_looked_at_all_the_same(tmp_path, monkeypatch):
    folder, expected = leaky(tmp_path)
    before = {path.name for path in folder.iterdir()}
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(scan.os, "access", lambda path, mode: False)
    found = found_in(folder)
    assert reported(found, leaks(found)) == expected
    assert {path.name for path in folder.iterdir()} == before
    assert [split.hashes.taken for split in found_in(folder).splits] == [0, 0]
    assert len(list((tmp_path / "home" / ".cache" / "xfer" / "hashes").glob("*.npy"))) == 2


def test_the_cut_for_validation_is_looked_at_as_a_recipe_makes_it(tmp_path):
    """Copies inside a train split leak into what `validation` cuts from it: by key, and so by chance."""
    twice = {f"b/twice{name[2:]}": data for name, data in ORIGINALS.items()}
    folder = data_set(tmp_path, "train", ORIGINALS | twice)
    config = DataConfig.model_validate({"root": str(tmp_path), "sources": {"set": {"path": "set"}}, "validation": 0.3})
    data, seen = open_data(config), {}
    for subset in (*data.train, *data.validation):
        reader = Reader([subset])
        samples = [reader.read(0, *subset.locate(i)) for i in range(subset.num_samples)]
        seen[subset in data.train] = [(sample.key, sample.image) for sample in samples]
    trained = {image for _, image in seen[True]}
    expected = {key for key, image in seen[False] if image in trained}
    found = found_in(folder)
    assert {a for _, a, _ in reported(found, cut_leaks(found, 0.3))} == expected
    assert 3 < len(expected) < 24


def test_in_a_crowd_a_leak_is_still_a_leak(tmp_path):
    """More near copies than pairs are kept of: every one in test is still reported, with one that is trained on."""
    image = scene(0)
    crowd = [file_of(brighter(image, 0.6 + 0.3 * n / 140), quality=90) for n in range(140)]
    assert len(crowd) > 2 * ENOUGH
    data_set(tmp_path, "train", {f"a/{n}.jpg": crowd[n] for n in range(20)} | others(4))
    folder = data_set(tmp_path, "test", {f"a/{n}.jpg": crowd[n] for n in range(20, 140)} | others(4, 2000))
    found = found_in(folder)
    assert len(leaks(found)) == 120
    assert [len(group) for group in found.groups] == [140]
    assert counts(found).tolist() == [[20, 20], [120, 120]]


def test_the_closest_is_the_surest_kind_then_the_least_distance(tmp_path):
    train, test, expected = {}, {}, set()
    for seed in range(6):
        image = scene(seed)
        dark = {f"a/dark{seed}{n}.jpg": file_of(brighter(image, 0.2 + n / 100), quality=20) for n in range(4)}
        train |= dark | {f"b/same{seed}.png": file_of(image, "PNG")}
        test |= {f"a/x{seed}.bmp": file_of(image, "BMP"), f"b/y{seed}.jpg": file_of(image, quality=95)}
        expected |= {("pixels", f"a/x{seed}", f"b/same{seed}"), ("near", f"b/y{seed}", f"b/same{seed}")}
    data_set(tmp_path, "train", train)
    found = found_in(data_set(tmp_path, "test", test))
    assert reported(found, closest(found, lambda s: found.place(s) == 1, lambda s: found.place(s) == 0)) == expected


def test_a_symmetric_picture_is_no_pair_with_itself_and_its_copy_is_no_mirrored_one(tmp_path):
    halves = [np.asarray(scene(seed, 60, 96)) for seed in (0, 1)]
    whole, other = (Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1)) for half in halves)
    pair = {"a/1.jpg": file_of(whole), "a/2.webp": file_of(whole, "WEBP", quality=80)}
    found = found_in(data_set(tmp_path, "train", pair | {"b/3.jpg": file_of(other)} | others(4)))
    assert list(map(len, found.groups)) == [2]
    assert {(kind, *sorted(keys)) for kind, *keys in reported(found, [p for _, p in all_pairs(found)])} == {
        ("near", "a/1", "a/2")
    }


def test_all_faults_of_the_folders_at_once(tmp_path):
    folder = data_set(tmp_path, "train", others(4))
    with pytest.raises(ConfigError) as error:
        verb(folder, tmp_path / "raw", "s3://bucket/photo", "--test", tmp_path / "nowhere", "--split", "val")
    assert len(error.value.faults) == 4
    assert not list(folder.glob("*.hashes.*")), "nothing was looked at"
    with pytest.raises(ConfigError) as error:
        verb(folder, "--near", "0.7", "--out", tmp_path / "x.txt", "--csv", tmp_path / "y.txt", "--processes", "0")
    assert [fault.split(":")[0] for fault in error.value.faults] == ["--out", "--csv", "--processes", "--near"]


@pytest.mark.slow
def test_several_processes_find_the_same(tmp_path):
    folder, expected = leaky(tmp_path)
    found = compare(open_splits([str(folder)], [], [], processes=2), processes=2)
    assert reported(found, leaks(found)) == expected
    one = data_set(tmp_path, "train", ORIGINALS, "one")
    assert np.array_equal(found.splits[0].hashes.rows, found_in(one).splits[0].hashes.rows)
