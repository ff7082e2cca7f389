"""Building: the same bytes for any number of processes and after any interruption; every bad input named."""

import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shards.format import tar as tars
from shards.format.lock import locked
from shards.format.manifest import open_index, read_manifest
from shards.ingest.build import BuildError, build
from shards.inspect.verify import verify
from shards.settings import ConfigError
from shards.sources import SourceOptions
from tests.shards.images import built, encoded, image_folder

KB = 1e-3


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if "report" not in path.name}


def start(source: Path, out: Path, *options: str, **how) -> subprocess.Popen:
    code = f"import sys; from shards.cli import app; app(['build', {str(source)!r}, {str(out)!r}, *{options!r}])"
    return subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **how
    )


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.002)


def test_what_is_built(tmp_path):
    folder = built(tmp_path, "zoo", per_class=20)
    manifest = read_manifest(folder, "train")
    assert (manifest.name, manifest.classes, manifest.num_samples) == ("zoo", ("cat", "dog", "owl"), 60)
    assert manifest.stats.class_counts == (20, 20, 20)
    assert (manifest.stats.width, manifest.stats.height) == ((24, 24), (20, 20))
    counts = [shard.samples for shard in manifest.shards]
    assert len(counts) > 2
    assert max(counts) - min(counts) <= 1
    index = open_index(folder, manifest)
    for number, shard in enumerate(manifest.shards):
        rows = index[sum(counts[:number]) : sum(counts[: number + 1])]
        assert len(set(rows["label"])) > 1, "shards mix classes"
        found = [(offset, length, crc) for _, offset, length, crc in tars.scan(folder / shard.path)]
        assert found == [(r["offset"], r["length"], r["crc32"]) for r in rows]
    assert verify(folder) == manifest
    assert not list(folder.glob(".*")), "no temporary files are left"


def test_statistics_are_those_of_the_pixels(tmp_path):
    from shards.decode import decode

    folder = built(tmp_path, "zoo", per_class=3)
    files = sorted((tmp_path / "raw" / "zoo").rglob("*.jpg"))
    pixels = np.concatenate([decode(path.read_bytes()).reshape(-1, 3) for path in files]).T / 255
    stats = read_manifest(folder, "train").stats
    assert np.allclose(stats.channel_mean, pixels.mean(1), atol=1e-5)
    assert np.allclose(stats.channel_std, pixels.std(1), atol=1e-5)


def test_other_tools_read_the_shards(tmp_path):
    folder = built(tmp_path, "zoo", per_class=4, shard_mb=64)
    listed = subprocess.run(["tar", "tf", folder / "train-000000.tar"], capture_output=True, text=True, check=True)
    assert len(listed.stdout.split()) == 24
    with tarfile.open(folder / "train-000000.tar") as tar:
        assert all(member.mtime == 0 for member in tar)
    samples = list(webdataset.WebDataset(str(folder / "train-000000.tar"), shardshuffle=False))  # pyright: ignore[reportAttributeAccessIssue]
    classes = ("cat", "dog", "owl")
    for sample in samples:
        key = tars.sample_key(sample["__key__"])
        assert classes[int(sample["cls"])] == key.split("/")[0]
        assert sample["jpg"] == (tmp_path / "raw" / "zoo" / f"{key}.jpg").read_bytes(), "images pass through untouched"
    assert len(samples) == 12


def test_any_key_comes_back(tmp_path):
    names = ["a.b.c", "ü ñ 漢", "x" * 120, "50%", "~t", "q" * 30 + ".tar.gz"]
    for folder in ("one", "two"):
        (tmp_path / "raw" / folder / "deep.er").mkdir(parents=True)
        for n, name in enumerate(names):
            (tmp_path / "raw" / folder / "deep.er" / f"{name}.JPG").write_bytes(encoded(n))
    build(tmp_path / "raw", tmp_path / "out", processes=1)
    keys = {tars.sample_key(key) for key, *_ in tars.scan(tmp_path / "out" / "train-000000.tar")}
    assert keys == {f"{folder}/deep.er/{name}" for folder in ("one", "two") for name in names}
    samples = webdataset.WebDataset(str(tmp_path / "out" / "train-000000.tar"), shardshuffle=False)  # pyright: ignore[reportAttributeAccessIssue]
    assert {tars.sample_key(sample["__key__"]) for sample in samples} == keys
    verify(tmp_path / "out")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path):
    one = built(tmp_path, "zoo", per_class=30)
    build(tmp_path / "raw" / "zoo", tmp_path / "two", name="zoo", shard_mb=30 * KB, processes=2)
    assert contents(one) == contents(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "stop"), [(1, signal.SIGKILL), (2, signal.SIGINT)])
def test_an_interrupted_build_goes_on(tmp_path, stop, processes):
    whole = built(tmp_path, "zoo", per_class=200, shard_mb=20 * KB)
    out, state = tmp_path / "out", tmp_path / "out" / ".build-train"
    options = ("--name", "zoo", "--shard-mb", str(20 * KB), "--processes", str(processes))
    process = start(tmp_path / "raw" / "zoo", out, *options)
    wait_for(lambda: len(list(state.glob("*.tar.json"))) >= 3)
    process.send_signal(stop)
    process.communicate(timeout=30)
    assert process.returncode != 0, "it finished before it could be stopped"
    assert not list(out.glob("*.tar"))
    assert not list(out.glob("*.manifest.json"))
    records = {path: path.stat().st_mtime_ns for path in state.glob("*.tar.json")}
    with pytest.raises(ConfigError, match="not finished"):
        read_manifest(out, "train")
    again = start(tmp_path / "raw" / "zoo", out, *options)
    wait_for(lambda: again.poll() is not None or len(list(state.glob("*.tar.json"))) > len(records))
    kept = [path for path, written in records.items() if path.exists() and path.stat().st_mtime_ns == written]
    again.communicate(timeout=60)
    assert again.returncode == 0
    assert len(kept) == len(records), "finished shards are not written again"
    assert contents(out) == contents(whole)


def test_a_commit_that_was_cut_goes_on(tmp_path, monkeypatch):
    """Some shards are moved, the manifest is not written."""
    whole = built(tmp_path, "zoo", per_class=20)
    replace, moved = os.replace, []

    def failing(source, target):
        if str(target).endswith(".tar") and Path(target).parent == tmp_path / "out":
            moved.append(target)
            if len(moved) == 3:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "raw" / "zoo", tmp_path / "out", name="zoo", shard_mb=30 * KB, processes=1)
    monkeypatch.undo()
    assert not list((tmp_path / "out").glob("*.manifest.json"))
    build(tmp_path / "raw" / "zoo", tmp_path / "out", name="zoo", shard_mb=30 * KB, processes=1)
    assert contents(tmp_path / "out") == contents(whole)


def test_the_same_build_again_does_nothing(tmp_path):
    folder = built(tmp_path, "zoo")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    report = build(tmp_path / "raw" / "zoo", folder, shard_mb=30 * KB)
    assert report.already_built
    assert report.manifest == read_manifest(folder, "train")
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_a_lost_shard_is_built_again(tmp_path):
    folder = built(tmp_path, "zoo")
    whole = contents(folder)
    (folder / "train-000001.tar").unlink()
    assert not build(tmp_path / "raw" / "zoo", folder, shard_mb=30 * KB, processes=1).already_built
    assert contents(folder) == whole


def test_another_build_is_not_overwritten_unasked(tmp_path):
    folder = built(tmp_path, "zoo", per_class=20)
    other = image_folder(tmp_path / "farm", ("cow", "pig"), per_class=2)
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"'zoo' \(60 samples.*'farm' \(4 samples.*--overwrite"):
        build(other, folder, name="farm")
    assert contents(folder) == before
    build(other, folder, name="farm", overwrite=True, processes=1)
    assert read_manifest(folder, "train").classes == ("cow", "pig")
    assert [path.name for path in folder.glob("*.tar")] == ["train-000000.tar"], "the old shards are gone"


def test_splits_share_a_folder(tmp_path):
    folder = built(tmp_path, "zoo", per_class=5)
    build(image_folder(tmp_path / "held-out", per_class=2, seed=5), folder, split="test", processes=1)
    assert read_manifest(folder, "train").num_samples == 15
    assert read_manifest(folder, "test").num_samples == 6
    with pytest.raises(ConfigError, match="no split 'val'; it has test, train"):
        read_manifest(folder, "val")


def test_damaged_images_are_refused_by_name(tmp_path):
    source = image_folder(tmp_path / "raw", ("cat", "dog"), per_class=100)
    (source / "cat" / "text.jpg").write_text("not an image at all")
    (source / "dog" / "cut.jpg").write_bytes(encoded(1)[:-100])
    (source / "dog" / "empty.png").write_bytes(b"")
    (source / "dog" / "notes.txt").write_text("ignored")
    (source / "cat" / "old.gif").write_bytes(b"GIF89a")
    why = r"3 of 203 samples refused, 2 are tolerated(?s:.*)cat/text: not an image(?s:.*)note: images in formats.*1 GIF"
    with pytest.raises(BuildError, match=why):
        build(source, tmp_path / "out", processes=1)
    assert not list((tmp_path / "out").glob("*.tar"))
    assert not list((tmp_path / "out").glob("*.manifest.json"))
    report = build(source, tmp_path / "out", processes=1, max_refused=0.02)
    assert [key for key, _ in report.refused] == ["cat/text", "dog/cut", "dog/empty"]
    assert (report.manifest.num_samples, report.ignored) == (200, 2)
    written = json.loads((tmp_path / "out" / "train.build-report.json").read_text())
    assert [entry["key"] for entry in written["refused"]] == ["cat/text", "dog/cut", "dog/empty"]
    assert "Premature end" in written["refused"][1]["reason"]
    verify(tmp_path / "out")


def test_one_damaged_image_is_tolerated_in_a_small_folder(tmp_path):
    source = image_folder(tmp_path / "raw", per_class=2)
    (source / "cat" / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert build(source, tmp_path / "out", processes=1).manifest.num_samples == 6


def test_two_builds_at_once(tmp_path):
    source = image_folder(tmp_path / "raw", per_class=2)
    (tmp_path / "out").mkdir()
    with (
        locked(tmp_path / "out" / ".build-train.lock", "in use"),
        pytest.raises(ConfigError, match="another build is writing split 'train'"),
    ):
        build(source, tmp_path / "out")
    assert build(source, tmp_path / "out", processes=1).manifest.num_samples == 6


def test_a_lock_left_by_a_dead_build_is_no_obstacle(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".build-train.lock").touch()
    build(image_folder(tmp_path / "raw", per_class=2), tmp_path / "out", processes=1)


@pytest.mark.slow
def test_disk_full(tmp_path):
    """A file size limit stands for a full disk: the same kind of error from the same write."""
    source = image_folder(tmp_path / "raw", per_class=20)
    limit = (20_000, 20_000)
    process = start(source, tmp_path / "out", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "BuildError" in errors
    assert "no space left" in errors
    assert "make room" in errors
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".tar", ".tmp", ".npy")]
    assert build(source, tmp_path / "out", processes=1).manifest.num_samples == 60


def test_too_little_space_is_said_before_the_work(tmp_path, monkeypatch):
    source = image_folder(tmp_path / "raw", per_class=2)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ConfigError, match="MB needed, 0 MB free"):
        build(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "a/b"}, "--split"),
        ({"shard_mb": 0}, "--shard-mb"),
        ({"processes": 0}, "--processes"),
        ({"max_refused": 1.5}, "--max-refused"),
        ({"options": SourceOptions(kind="tape")}, "known here: .*folder"),
        ({"name": " "}, "--name"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build(image_folder(tmp_path / "raw", per_class=1), tmp_path / "out", **arguments)


def test_the_shards_may_not_lie_in_the_source(tmp_path):
    source = image_folder(tmp_path / "raw", per_class=1)
    with pytest.raises(ConfigError, match="inside the source"):
        build(source, source / "shards")
