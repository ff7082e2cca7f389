"""Training from remote shards: the same batches as from a folder, through outages, with a cache of any size."""

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.format.manifest import read_manifest
from shards.loading.batch import Slot
from shards.loading.damage import DamagedDataError
from shards.loading.evaluate import eval_stream
from shards.loading.open import open_data
from shards.loading.train import train_stream
from shards.remote.cache import Cache
from shards.settings import ConfigError
from tests.shards.images import built, config
from tests.shards.loading.test_stream import rows
from tests.shards.server import FaultyServer


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    server = FaultyServer()
    yield server
    server.down()


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Sources a (60 samples in 12 shards) and b (30 in 6)."""
    tmp = tmp_path_factory.mktemp("local")
    built(tmp, "a", 20, 0, shard_mb=0.012)
    built(tmp, "b", 10, 1, shard_mb=0.012)
    return tmp


def publish(server: FaultyServer, tmp: Path) -> None:
    for path in (tmp / "shards").rglob("*"):
        if path.is_file():
            server.files["/" + str(path.relative_to(tmp / "shards"))] = path.read_bytes()


def remote(server: FaultyServer, folder: Path, *names: str, **values):
    cached = {"folder": str(folder), "timeout_s": 20, **values.pop("cache", {})}
    return config(Path("/"), *names, **{"root": server.url, "cache": cached, "validation": 0, **values})


def take(settings, count, slot=None) -> dict[int, tuple]:
    with train_stream(open_data(settings).train, settings, slot or Slot()) as stream:
        found = rows(itertools.islice(stream, count))
        assert not stream.damaged
        return found


@pytest.mark.parametrize("workers", [0, 2])
def test_remote_shards_give_the_same_batches(local, server, tmp_path, workers):
    publish(server, local)
    expected = take(config(local, "a", "b", validation=0), 12)
    assert take(remote(server, tmp_path, "a", "b", workers=workers), 12) == expected
    shards = [path for path in server.requests if path.endswith(".tar")]
    assert {server.requests[path] for path in shards} == {1}, "each shard comes once"


def test_a_cache_smaller_than_the_data(local, server, tmp_path):
    publish(server, local)
    manifest = read_manifest(local / "shards" / "a", "train")
    limit = 8 * max(shard.bytes for shard in manifest.shards) + manifest.index.bytes
    settings = remote(server, tmp_path, "a", cache={"gb": limit / 1e9}, batch_size=4, lanes=1, window=4, workers=1)
    expected = take(config(local, "a", validation=0, batch_size=4, lanes=1, window=4), 40)
    assert take(settings, 40) == expected
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit


def test_an_outage_costs_time_and_no_sample(local, server, tmp_path):
    publish(server, local)
    settings = remote(server, tmp_path, "a", "b", workers=1)
    data = open_data(settings)
    server.down()
    threading.Timer(2.0, server.up).start()
    with train_stream(data.train, settings, Slot()) as stream:
        found = rows(itertools.islice(stream, 6))
        assert not stream.damaged
    assert found == take(config(local, "a", "b", validation=0), 6)


def test_a_shard_that_is_wrong_for_good_is_replaced_and_named(local, server, tmp_path):
    publish(server, local)
    server.always["/a/train-000003.tar"] = "wrong"
    whole = take(config(local, "a", validation=0), 5)
    runs = []
    for cache, workers in (("one", 0), ("two", 2)):
        settings = remote(server, tmp_path / cache, "a", workers=workers)
        with train_stream(open_data(settings).train, settings, Slot()) as stream:
            found = rows(itertools.islice(stream, 5))
            assert {loss.shard for loss in stream.damaged} == {"train-000003.tar"}
            assert all("sha256" in loss.reason for loss in stream.damaged)
            lost = len(stream.damaged)
        assert sum(found[position] != whole[position] for position in whole) == lost > 0
        runs.append(found)
    assert runs[0] == runs[1], "each replay replaces by the same samples"


def test_evaluation_names_what_it_does_without(local, server, tmp_path, monkeypatch):
    write = Cache.note  # on a slow disk: the reason has to be there before the batch goes on without the shard
    monkeypatch.setattr(Cache, "note", lambda *args: (time.sleep(0.3), write(*args)))
    publish(server, local)
    settings = remote(server, tmp_path, "a", workers=1)
    subsets = open_data(settings).train
    delivered = rows(eval_stream(subsets, settings, Slot()))
    assert sorted(position for position in delivered if position >= 0) == list(range(60))
    server.always["/b/train-000001.tar"] = "wrong"
    settings = remote(server, tmp_path, "b")
    stream = eval_stream(open_data(settings).train, settings, Slot())
    counted = sum(int(batch.valid.sum()) for batch in stream)
    assert stream.damaged
    assert counted + len(stream.damaged) == stream.num_samples
    assert all("fetched twice" in sample.reason for sample in stream.damaged)
    strict = remote(server, tmp_path, "b", strict=True)
    with pytest.raises(DamagedDataError, match="fetched twice"):
        list(eval_stream(open_data(strict).train, strict, Slot()))


def test_ranks_of_a_machine_share_the_cache(local, server, tmp_path):
    publish(server, local)
    settings = remote(server, tmp_path, "a", "b")
    together = {**take(settings, 6, Slot(0, 2)), **take(settings, 6, Slot(1, 2))}
    assert together == take(config(local, "a", "b", validation=0), 6)
    assert max(count for path, count in server.requests.items() if path.endswith(".tar")) == 1


def test_what_is_not_there_is_said_before_training(local, server, tmp_path):
    publish(server, local)
    with pytest.raises(ConfigError, match=r"data.sources.c: http://127.0.0.1:\d+/c/train.manifest.json: no such file"):
        open_data(remote(server, tmp_path, "a", "c"))


def test_s3(local, tmp_path, monkeypatch):
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "passw0rd")
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.mkdir("zoo")
        bucket.put(os.fspath(local / "shards") + "/", "zoo/", recursive=True)
        sources = {"a": {"path": "s3://zoo/a"}, "b": {"path": str(local / "shards" / "b")}}
        settings = config(local, sources=sources, cache={"folder": str(tmp_path)}, workers=1, validation=0)
        assert take(settings, 8) == take(config(local, "a", "b", validation=0), 8)
    finally:
        server.stop()
