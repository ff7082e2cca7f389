"""`verify` finds all damage, and `--repair` leaves it out by a new version while the old one stays."""

import csv
import itertools
import os

import numpy as np
import pytest

from shards.cli import app
from shards.format.manifest import open_index, read_manifest, splits_in
from shards.inspect.repair import repair
from shards.inspect.verify import inspect, verify
from shards.loading.batch import Slot
from shards.loading.damage import DamagedDataError
from shards.loading.open import open_data
from shards.loading.reader import Reader
from shards.loading.subset import Subset
from shards.loading.train import train_stream
from shards.settings import ConfigError
from tests.shards.images import built, config


def change(folder, row: int, at: int = 1030) -> str:
    """Flips the bits of one byte of a sample; returns its key."""
    manifest = read_manifest(folder, "train")
    subset = Subset("", str(folder), manifest)
    reader = Reader([subset])
    shard, inside = reader.locate(0, row)
    key = reader.read(0, shard, inside).key
    with open(folder / manifest.shards[shard].path, "r+b") as file:
        file.seek(int(open_index(folder, manifest)[row]["offset"]) + at)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
    return key


def keys(folder, split: str = "train") -> list[str]:
    subset = Subset("", str(folder), read_manifest(folder, split))
    reader = Reader([subset])
    return [reader.read(0, *reader.locate(0, i)).key for i in range(subset.num_samples)]


def repaired(folder):
    return repair(inspect(folder, statistics=True))


def verb(*words) -> object:
    return app([str(word) for word in words], result_action="return_value", exit_on_error=False)


def test_every_fault_is_named_with_shard_key_and_reason(tmp_path):
    folder = built(tmp_path, "zoo", per_class=10)
    shards = [shard.path for shard in read_manifest(folder, "train").shards]
    damaged = {change(folder, row) for row in (0, 3, 29)}
    faults = inspect(folder).faults
    assert {fault.key for fault in faults if fault.row is not None} == damaged
    assert {fault.file for fault in faults if fault.row is None} == {shards[0], shards[-1]}
    assert all("crc32" in fault.reason for fault in faults if fault.row is not None)


def test_a_repaired_split_verifies_and_trains_and_the_old_one_is_still_there(tmp_path):
    folder = built(tmp_path, "zoo", per_class=10)
    old, before = read_manifest(folder, "train"), keys(folder)
    damaged = {change(folder, row) for row in (0, 3, 29)}
    new = repaired(folder)
    assert verify(folder) == new
    assert new.parent == old.version != new.version
    assert keys(folder) == [key for key in before if key not in damaged]
    settings = config(tmp_path, "zoo", validation=0, strict=True)
    with train_stream(open_data(settings).train, settings, Slot()) as stream:
        assert len(list(itertools.islice(stream, 5))) == 5

    (kept,) = [split for split in splits_in(folder) if "@" in split]
    assert read_manifest(folder, kept) == old
    assert len(open_index(folder, read_manifest(folder, kept))) == 30
    settings = config(tmp_path, "zoo", sources={"zoo": {"path": "zoo", "split": kept}})
    assert open_data(settings).train[0].manifest.version == old.version


def test_statistics_are_those_of_what_is_left(tmp_path):
    folder = built(tmp_path, "zoo", per_class=10)
    labels = open_index(folder, read_manifest(folder, "train"))["label"].copy()
    assert inspect(folder, statistics=True).tally is not None
    for row in (1, 2, 3):
        change(folder, row)
    stats = repaired(folder).stats
    assert stats.class_counts == tuple(np.bincount(np.delete(labels, [1, 2, 3]), minlength=3).tolist())


def test_bytes_between_samples_cost_no_sample(tmp_path):
    """Padding changed: the sha256 is wrong, every sample is right."""
    folder = built(tmp_path, "zoo", per_class=10)
    path = folder / read_manifest(folder, "train").shards[0].path
    with open(path, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(DamagedDataError, match=r"bytes, .* were written"):
        verify(folder)
    before = keys(folder)
    new = repaired(folder)
    assert keys(folder) == before
    assert new.shards[0].bytes == path.stat().st_size
    assert verify(folder) == new


def test_a_lost_shard_is_one_line_and_leaves_with_all_its_samples(tmp_path):
    folder = built(tmp_path, "zoo", per_class=20)
    shards = read_manifest(folder, "train").shards
    before, lost = keys(folder), shards[0].samples
    (folder / shards[0].path).unlink()
    (fault,) = inspect(folder).faults
    assert (fault.file, fault.key) == (shards[0].path, "")
    assert "No such file" in fault.reason
    new = repaired(folder)
    assert [shard.path for shard in new.shards] == [shard.path for shard in shards[1:]]
    assert keys(folder) == before[lost:]
    assert verify(folder) == new


def test_index_rows_that_fit_no_sample_are_left_out(tmp_path):
    folder = built(tmp_path, "zoo", per_class=10)
    index = np.load(folder / "train.index.npy")
    index["key"][4] += 1
    index["label"][5] = 77
    np.save(folder / "train.index.npy", index)
    faults = {fault.row: fault.reason for fault in inspect(folder).faults}
    assert "sha256" in faults[None]
    assert "key" in faults[4]
    assert "class 77" in faults[5]
    assert repaired(folder).num_samples == 28
    verify(folder)


def test_repair_twice_keeps_every_version(tmp_path):
    folder = built(tmp_path, "zoo", per_class=10)
    versions = [read_manifest(folder, "train").version]
    for row in (2, 5):
        change(folder, row)
        versions.append(repaired(folder).version)
    assert repaired(folder).version == versions[-1], "nothing to repair, nothing written"
    assert len(splits_in(folder)) == 3
    for split in splits_in(folder):
        assert read_manifest(folder, split).version in versions
    with pytest.raises(ConfigError, match="older version"):
        repair(inspect(folder, splits_in(folder)[1], statistics=True))


def test_nothing_sound_is_no_split(tmp_path):
    folder = built(tmp_path, "zoo", per_class=2)
    for shard in read_manifest(folder, "train").shards:
        (folder / shard.path).write_bytes(b"")
    with pytest.raises(DamagedDataError, match="no sample"):
        repaired(folder)
    assert splits_in(folder) == ["train"]


def test_a_missing_version_is_answered_with_those_that_are_there(tmp_path):
    folder = built(tmp_path, "zoo", per_class=5)
    change(folder, 1)
    repaired(folder)
    (kept,) = [split for split in splits_in(folder) if "@" in split]
    with pytest.raises(ConfigError, match=f"no split 'train@0123'; it has train, {kept}"):
        read_manifest(folder, "train@0123")


def test_the_verb_tells_all_and_ends_with_status_1(tmp_path, capsys):
    folder = built(tmp_path, "zoo", per_class=30)
    assert verb("verify", folder) in (0, None)
    damaged = sorted(change(folder, row) for row in range(60))
    assert verb("verify", folder, "--out", tmp_path / "damage.csv") == 1
    assert "more" in capsys.readouterr().out
    with open(tmp_path / "damage.csv") as file:
        listed = sorted(row["key"] for row in csv.DictReader(file) if row["key"])
    assert listed == damaged
    assert verb("verify", folder, "--repair") in (0, None)
    printed = capsys.readouterr().out
    assert "60 of 90 samples left out" in printed
    assert f"split: {splits_in(folder)[1]}" in printed
    assert verb("verify", folder) in (0, None)


@pytest.mark.slow
def test_several_processes_find_the_same(tmp_path):
    folder = built(tmp_path, "zoo", per_class=20)
    for row in (0, 17, 40, 59):
        change(folder, row)
    one, two = inspect(folder, processes=1, statistics=True), inspect(folder, processes=2, statistics=True)
    assert one == two
