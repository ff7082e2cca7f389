"""Other tools read what we build: GNU tar, webdataset with its decoders, and NVIDIA Energon's indexer."""

import re
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import webdataset
import yaml
from PIL import Image

from shards.format.fields import Roles
from shards.format.manifest import open_index, read_manifest
from shards.format.tar import sample_key
from shards.ingest.build import build
from shards.ingest.index import index
from shards.inspect.verify import verify
from tests.shards.images import built, encoded, image_folder


def energon_index(path: Path) -> list[int]:
    """What Energon 7.4 writes to `.tar.idx`: where each sample begins, by its rules for names, and the end."""
    starts, last = [], None
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            name = re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", member.name)
            if not member.isreg() or re.match(r"__[^/]*__($|/)", member.name) or not name:
                continue
            if name.group(1) != last:
                starts.append(member.offset)
                last = name.group(1)
        return [*starts, tar.offset]


def odd_names(root: Path) -> Path:
    """Names that need care in tars: dots, long ones (pax headers), `__`, accents."""
    for folder in ("one", "__two__"):
        for n, name in enumerate(["a.b.c", "ü ñ 漢", "x" * 130, "__meta__", "50%"]):
            (root / folder / "deep.er").mkdir(parents=True, exist_ok=True)
            (root / folder / "deep.er" / f"{name}.jpg").write_bytes(encoded(n))
    return root


def test_energons_indexer_finds_our_samples_where_our_index_says(tmp_path):
    build(odd_names(tmp_path / "raw"), tmp_path / "out", shard_mb=0.01, processes=1)
    manifest = read_manifest(tmp_path / "out", "train")
    rows, first = open_index(tmp_path / "out", manifest), 0
    assert len(manifest.shards) > 1
    for shard in manifest.shards:
        own = rows[first : first + shard.samples]
        first += shard.samples
        ends = own["offset"] + own["length"]
        assert energon_index(tmp_path / "out" / shard.path) == [*own["offset"].tolist(), int(ends[-1])]


def test_webdataset_decodes_our_samples_from_a_brace_pattern(tmp_path):
    folder = built(tmp_path, "zoo", per_class=6, shard_mb=0.01)
    last = len(read_manifest(folder, "train").shards) - 1
    url = f"{folder}/train-{{000000..{last:06d}}}.tar"
    data = webdataset.WebDataset(url, shardshuffle=False).decode("pil").to_tuple("jpg", "cls", "__key__")  # pyright: ignore[reportAttributeAccessIssue]
    seen = {sample_key(key): (np.asarray(image), label) for image, label, key in data}
    assert len(seen) == 18
    for key, (pixels, label) in seen.items():
        assert ("cat", "dog", "owl")[label] == key.split("/")[0]
        assert np.array_equal(pixels, np.asarray(Image.open(tmp_path / "raw" / "zoo" / f"{key}.jpg").convert("RGB")))


def test_gnu_tar_unpacks_our_shards_and_what_it_packs_can_be_indexed(tmp_path):
    image_folder(tmp_path / "raw", per_class=4)
    build(tmp_path / "raw", tmp_path / "out", processes=1)
    (tmp_path / "loose").mkdir()
    subprocess.run(["tar", "xf", tmp_path / "out" / "train-000000.tar", "-C", tmp_path / "loose"], check=True)
    assert len(list((tmp_path / "loose").iterdir())) == 24
    for number, form in enumerate(["gnu", "ustar", "pax", "posix"]):
        folder = tmp_path / form
        folder.mkdir()
        command = ["tar", "cf", folder / "x.tar", f"--format={form}", "--sort=name", "-C", tmp_path, "loose"]
        subprocess.run(command, check=True)
        report = index(folder, classes=("cat", "dog", "owl"))
        assert report.manifest.num_samples == 12, number
        assert report.manifest.stats.class_counts == (4, 4, 4)
        verify(folder)


def test_what_energon_prepares_from_our_shards_can_be_indexed_again(tmp_path):
    """`energon prepare` adds files of its own beside our shards; they disturb neither us nor it."""
    folder = built(tmp_path, "zoo", per_class=6, shard_mb=0.01)
    manifest = read_manifest(folder, "train")
    (folder / ".nv-meta").mkdir()
    parts = {"train": [shard.path for shard in manifest.shards]}
    (folder / ".nv-meta" / "split.yaml").write_text(yaml.safe_dump({"split_parts": parts, "exclude": []}))
    for shard in manifest.shards:
        (folder / f"{shard.path}.idx").write_bytes(np.array(energon_index(folder / shard.path), "<u8").tobytes())
    assert verify(folder) == manifest
    again = index(folder, given=Roles(label="cls"), classes=manifest.classes, overwrite=True).manifest
    assert (again.index, again.shards, again.stats) == (manifest.index, manifest.shards, manifest.stats)
