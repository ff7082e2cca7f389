"""The same images are found again whatever they are called, however they were built, and in whichever data set."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.format.hashing import content_key
from shards.format.manifest import open_content, read_manifest, write_manifest
from shards.format.tar import sample_key, scan
from shards.ingest.build import build
from shards.ingest.index import index
from shards.inspect.repair import repair
from shards.inspect.verify import inspect
from shards.loading.open import open_data
from shards.settings import ConfigError
from tests.shards.foreign import plain_tar
from tests.shards.images import built, config, encoded, image_folder
from tests.shards.kinds import damage
from tests.shards.server import FaultyServer


def without_hashes(folder: Path) -> None:
    """As a data set was built before there were content hashes."""
    manifest = read_manifest(folder, "train")
    version = manifest.version
    (folder / "train.content.npy").unlink()
    write_manifest(folder, replace(manifest, content=None))
    assert read_manifest(folder, "train").version == version


def faults(tmp: Path, train: str, test: str, **source) -> list[str]:
    settings = config(tmp, train, test={"t": {"path": test}}, validation=0, **source)
    try:
        open_data(settings)
    except ConfigError as error:
        return error.faults
    return []


def another_build(tmp: Path, name: str, seed: int = 7) -> None:
    """The images of `a`, in another order."""
    build(tmp / "raw" / "a", tmp / "shards" / name, shard_mb=0.03, processes=1, seed=seed)


def test_each_image_has_the_hash_of_its_bytes(tmp_path):
    folder = built(tmp_path, "a", per_class=10)
    manifest = read_manifest(folder, "train")
    content = open_content(folder, manifest)
    assert content is not None
    keys = [sample_key(key) for shard in manifest.shards for key, *_ in scan(folder / shard.path)]
    expected = [content_key((tmp_path / "raw" / "a" / f"{key}.jpg").read_bytes()) for key in keys]
    assert content.tolist() == expected
    assert content.dtype == np.uint64


@pytest.mark.parametrize("old", [(), ("a",), ("b",), ("a", "b")])
def test_the_same_images_built_with_another_seed(tmp_path, old):
    built(tmp_path, "a", per_class=10)
    another_build(tmp_path, "b")
    for name in old:
        without_hashes(tmp_path / "shards" / name)
    (fault,) = faults(tmp_path, "a", "b")
    assert fault.startswith(f"data.test.t: 30 of 30 samples of {tmp_path / 'shards' / 'b'} are also in sources.a")
    assert any(f"{name}/00" in fault for name in ("cat", "dog", "owl")), "samples are named"


def test_a_few_equal_images_under_other_names_and_labels(tmp_path):
    built(tmp_path, "a", per_class=10)
    other = image_folder(tmp_path / "raw" / "b", ("horse", "pig"), per_class=5, seed=3)
    for n in range(2):
        shutil.copy(tmp_path / "raw" / "a" / "cat" / f"00{n}.jpg", other / "pig" / f"copy{n}.jpg")
    build(other, tmp_path / "shards" / "b", processes=1)
    (fault,) = faults(tmp_path, "a", "b")
    assert "2 of 12 samples" in fault
    assert "pig/copy0" in fault
    assert "pig/copy1" in fault
    assert not faults(tmp_path, "a", built(tmp_path, "c", per_class=3, seed=9).name)


def test_images_of_indexed_tars(tmp_path):
    built(tmp_path, "a", per_class=5)
    taken = (tmp_path / "raw" / "a" / "owl" / "002.jpg").read_bytes()
    images = [taken if n == 4 else encoded(50 + n) for n in range(6)]
    entries = [e for n, image in enumerate(images) for e in ((f"{n}.jpg", image), (f"{n}.cls", b"%d" % (n % 2)))]
    plain_tar(tmp_path / "shards" / "tars" / "x.tar", entries)
    index(tmp_path / "shards" / "tars", classes=("x", "y"))
    (fault,) = faults(tmp_path, "a", "tars")
    assert "1 of 6 samples" in fault
    assert "): 4: the model" in fault


def test_parts_of_one_data_set_that_share_no_image_are_no_leak(tmp_path):
    built(tmp_path, "a", per_class=10)
    another_build(tmp_path, "b")
    parts = [{"path": name, "where": {"hash": share}} for name, share in (("a", [0, 0.5]), ("b", [0.5, 1]))]
    settings = config(tmp_path, "a", sources={"a": parts[0]}, test={"t": parts[1]}, validation=0)
    assert sum(subset.num_samples for subset in (*open_data(settings).train, *open_data(settings).test)) == 30
    with pytest.raises(ConfigError, match="are also in"):
        open_data(config(tmp_path, "a", sources={"a": parts[0]}, test={"t": {"path": "b"}}, validation=0))


def test_a_changed_file_of_hashes_is_refused_and_a_missing_one_is_not(tmp_path):
    folder = built(tmp_path, "a", per_class=5)
    another_build(tmp_path, "b")
    np.save(folder / "train.content.npy", np.zeros(15, np.uint64))
    with pytest.raises(ConfigError, match="not the content hashes that the manifest names"):
        open_content(folder, read_manifest(folder, "train"))
    (folder / "train.content.npy").unlink()
    assert "15 of 15" in faults(tmp_path, "a", "b")[0]


def test_a_manifest_leads_to_no_hashes_elsewhere(tmp_path):
    folder = built(tmp_path, "a", per_class=2)
    path = folder / "train.manifest.json"
    content = json.loads(path.read_text())
    content["content"]["path"] = "../train.content.npy"
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="is not the name of a file beside the manifest"):
        read_manifest(folder, "train")


def test_a_repaired_split_keeps_the_hashes_of_what_stays(tmp_path):
    folder = built(tmp_path, "a", per_class=10)
    before = open_content(folder, read_manifest(folder, "train"))
    assert before is not None
    before = np.array(before)
    damage(folder, 4)
    manifest = repair(inspect(folder, "train", processes=1, statistics=True))
    after = open_content(folder, manifest)
    assert after is not None
    assert after.tolist() == np.delete(before, 4).tolist()


@pytest.mark.parametrize("with_hashes", [True, False])
def test_remote_data_sets(tmp_path, with_hashes):
    built(tmp_path, "a", per_class=5)
    another_build(tmp_path, "b")
    server = FaultyServer()
    try:
        for path in (tmp_path / "shards" / "b").iterdir():
            if path.is_file() and (with_hashes or "content" not in path.name):
                server.files[f"/b/{path.name}"] = path.read_bytes()
        test = {"t": {"path": f"{server.url}/b"}}
        cache = {"folder": str(tmp_path / "cache")}
        with pytest.raises(ConfigError, match=r"15 of 15 samples of .* are also in sources.a .*: row 0, row 1"):
            open_data(config(tmp_path, "a", test=test, validation=0, cache=cache))
        assert server.requests["/b/train.content.npy"] >= 1
        sources = {"t": {"path": f"{server.url}/b"}}
        asked = server.requests["/b/train.content.npy"]
        open_data(config(tmp_path, sources=sources, validation=0, cache=cache))
        assert server.requests["/b/train.content.npy"] == asked, "hashes are fetched for a comparison alone"
    finally:
        server.down()
