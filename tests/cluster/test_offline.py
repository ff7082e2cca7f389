"""A split as a Ray Dataset: every sample once, each read by the checking reader, damage named."""

import os

import pytest

from cluster.offline import to_ray
from cluster.session import connect
from shards.format.fields import Roles
from shards.format.manifest import read_manifest
from shards.ingest.index import index
from shards.loading.damage import DamagedDataError
from shards.loading.open import open_subset
from shards.loading.subset import OfClasses
from shards.settings import ConfigError
from tests.shards.foreign import webdataset_tars
from tests.shards.images import built

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_every_sample_of_a_split_as_rows(tmp_path):
    folder = built(tmp_path, "zoo", per_class=10, shard_mb=0.01)
    captions = webdataset_tars(tmp_path / "captions", "jpg+caption", 7, maxcount=4)
    index(captions, given=Roles(side="txt"))
    with connect():
        data = to_ray(folder)
        assert data.count() == 30
        rows = sorted(data.take_all(), key=lambda row: row["key"])
        files = sorted((tmp_path / "raw" / "zoo").rglob("*.jpg"))
        assert [row["image"] for row in rows] == [path.read_bytes() for path in files]
        assert {(row["label"], row["class"], row["extension"]) for row in rows} == {
            (0, "cat", "jpg"),
            (1, "dog", "jpg"),
            (2, "owl", "jpg"),
        }

        dogs = to_ray(open_subset(folder).where(OfClasses((1,)))).take_all()
        assert {(row["label"], row["class"]) for row in dogs} == {(0, "dog")}
        assert len(dogs) == 10

        texts = to_ray(captions).map(lambda row: {"text": row["side"].decode(), "label": row["label"]}).take_all()
        assert {row["label"] for row in texts} == {-1}
        assert sorted(row["text"] for row in texts)[0] == "the 0th picture, of a cat"

        shard = folder / read_manifest(folder, "train").shards[1].path
        with open(shard, "r+b") as file:
            file.seek(1030)
            file.write(bytes(8))
        with pytest.raises(Exception, match=rf"{shard.name}, .*crc32 does not match") as caught:
            to_ray(folder).count()
        assert isinstance(caught.value, DamagedDataError) or "DamagedDataError" in str(caught.value)
        os.unlink(shard)
        with pytest.raises(ConfigError, match="1 shards are missing"):
            to_ray(folder)
