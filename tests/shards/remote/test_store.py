"""Remote files arrive whole or not at all, whatever the network, the disk and other processes do."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.format.manifest import File
from shards.remote.cache import cached_path, why_missing
from shards.remote.store import Remote, Store
from shards.remote.transport import StoreError, join
from shards.settings import ConfigError
from tests.shards.server import FAILS, FaultyServer

RANGE = 1000


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    server = FaultyServer()
    yield server
    server.down()


def put(server: FaultyServer, name: str, size: int = 3500, seed: int = 0) -> Remote:
    """A new file on the server."""
    data = np.random.default_rng([seed, *name.encode()]).bytes(size)
    server.files[f"/{name}"] = data
    return Remote(f"{server.url}/{name}", File(name, size, 1, hashlib.sha256(data).hexdigest()))


def content(server: FaultyServer, remote: Remote) -> bytes:
    return server.files[f"/{remote.file.path}"]


def new_store(folder: Path, limit: int = 1 << 20, timeout_s: float = 8.0) -> Store:
    return Store(str(folder), limit, timeout_s, range_bytes=RANGE)


def copies(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if name != ".space"}


def in_another_process(code: str, *arguments: str) -> subprocess.Popen:
    """Python code, with what these tests use; prints a line when it is where it should be."""
    head = """
        import os, sys, time, hashlib
        from shards.format.manifest import File
        from shards.remote.store import Remote, Store
        folder, url, name, size, sha256 = sys.argv[1:6]
        remote = Remote(url, File(name, int(size), 1, sha256))
        store = Store(folder, 1 << 20, 8.0, range_bytes=1000)
    """
    program = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True)


def arguments(folder: Path, remote: Remote) -> list[str]:
    return [str(folder), remote.url, remote.file.path, str(remote.file.bytes), remote.file.sha256]


# The network.


@pytest.mark.parametrize("fault", [*FAILS, "short", "wrong", "hang", "drip"])
def test_one_fault_of_any_kind_is_got_over(tmp_path, server, fault):
    remote = put(server, "a.tar")
    server.faults.extend(["", fault])
    store = new_store(tmp_path, timeout_s=2.0)
    assert Path(store.keep(remote)).read_bytes() == content(server, remote)
    assert copies(tmp_path) == {f"{remote.file.sha256}.tar"}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=st.lists(st.sampled_from(["", *FAILS, "short", "wrong"]), max_size=8), ranges=st.booleans())
def test_any_sequence_of_faults_and_then_health_gives_the_right_bytes(tmp_path, server, faults, ranges):
    folder = tmp_path / "cache"
    remote = put(server, "a.tar")
    server.faults.extend(faults)
    server.ranges = ranges
    store = new_store(folder)
    try:
        assert Path(store.keep(remote)).read_bytes() == content(server, remote)
    except StoreError:
        # Wrong bytes twice are given up; nothing wrong is left behind.
        assert faults.count("wrong") + (0 if ranges else faults.count("short")) > 1
        assert copies(folder) == {f"{remote.file.sha256}.bad"}
    finally:
        store.close()
        server.faults.clear()
        shutil.rmtree(folder)


def test_a_cut_connection_costs_one_range_and_not_the_file(tmp_path, server):
    remote = put(server, "a.tar", size=20 * RANGE)
    server.faults.extend(["", "cut"] * 10)
    store = new_store(tmp_path)
    store.keep(remote)
    assert server.requests["/a.tar"] == 30
    assert store.stats().fetched_bytes == 20 * RANGE
    assert store.stats().retries == 10


def test_a_server_that_is_down_for_a_while_is_waited_for(tmp_path, server):
    remote = put(server, "a.tar")
    server.down()
    timer = threading.Timer(0.7, server.up)
    timer.start()
    assert Path(new_store(tmp_path).keep(remote)).read_bytes() == content(server, remote)


def test_a_server_that_stays_away_ends_in_an_error_that_says_what_was_tried(tmp_path, server):
    remote = put(server, "a.tar")
    server.always["/a.tar"] = "503"
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"/a\.tar: tried \d+ times, nothing came for 1 s; last error: .*503") as error:
        new_store(tmp_path, timeout_s=1.0).keep(remote)
    assert time.monotonic() - began < 3
    assert server.url in str(error.value)
    assert copies(tmp_path) == set()


def test_time_is_up_when_nothing_comes_and_not_when_much_comes(tmp_path, server):
    remote = put(server, "a.tar", size=12 * RANGE)
    server.delay_s = 0.15
    new_store(tmp_path, timeout_s=1.0).keep(remote)  # takes 1.8 s


@pytest.mark.parametrize(
    ("fault", "kind"), [("404", FileNotFoundError), ("401", PermissionError), ("403", PermissionError)]
)
def test_what_no_retry_can_mend_raises_at_once(tmp_path, server, fault, kind):
    remote = put(server, "a.tar")
    server.always["/a.tar"] = fault
    store = new_store(tmp_path)
    for ask in (lambda: store.keep(remote), lambda: store.read_bytes(remote.url)):
        with pytest.raises(kind, match=r"/a\.tar"):
            ask()
    assert server.requests["/a.tar"] == 2


@pytest.mark.parametrize("fault", ["403", "404", "500", "cut", "hang", "refuse", "wrong"])
def test_no_message_tells_what_a_url_says_about_access(tmp_path, server, fault, capfd):
    remote = put(server, "a.tar")
    server.always["/a.tar"] = fault
    url = remote.url.replace("http://", "http://user:passw0rd@") + "?X-Amz-Signature=s3cret&x=%2Fs3cret"
    with pytest.raises((StoreError, OSError)) as error:
        new_store(tmp_path, timeout_s=0.5).keep(Remote(url, remote.file))
    assert "s3cret" in server.queries[0]
    said = "".join(traceback.format_exception(error.value)) + capfd.readouterr().err
    said += why_missing(str(tmp_path), remote.file) or ""
    assert "/a.tar" in said
    assert "s3cret" not in said
    assert "passw0rd" not in said


def test_a_query_stays_behind_the_name_of_the_file():
    assert join("s3://bucket/photos/", "train-000000.tar") == "s3://bucket/photos/train-000000.tar"
    assert join("https://host/photos?sig=1%2F2", "a.tar") == "https://host/photos/a.tar?sig=1%2F2"


def test_s3_takes_its_endpoint_and_credentials_from_the_environment(tmp_path, monkeypatch):
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
        bucket.mkdir("photos")
        data = np.random.default_rng(0).bytes(3500)
        bucket.pipe_file("photos/train-000000.tar", data)
        store = new_store(tmp_path, timeout_s=20)
        file = File("train-000000.tar", len(data), 1, hashlib.sha256(data).hexdigest())
        url = "s3://photos/train-000000.tar"
        assert store.read_bytes(url) == data
        assert Path(store.keep(Remote(url, file))).read_bytes() == data
        with pytest.raises(FileNotFoundError, match="s3://photos/none"):
            store.read_bytes("s3://photos/none")
        longer = File("train-000000.tar", len(data) + 500, 1, "0" * 64)
        with pytest.raises(StoreError, match="ended after 3,500 of 4,000 bytes"):
            store.keep(Remote(url, longer))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(PermissionError, match="credentials"):
            new_store(tmp_path).read_bytes(url)
    finally:
        server.stop()


def test_a_store_that_is_not_known_is_refused_as_a_wrong_input(tmp_path):
    with pytest.raises(ConfigError, match="nosuch://bucket/a: cannot be read"):
        new_store(tmp_path).read_bytes("nosuch://bucket/a?secret")


# What is in the cache.


def test_equal_bytes_are_fetched_once_and_shared(tmp_path, server):
    first, second = put(server, "a.tar"), put(server, "b.tar")
    server.files["/b.tar"] = content(server, first)
    store = new_store(tmp_path)
    shared = Remote(second.url, File("b.tar", first.file.bytes, 1, first.file.sha256))
    assert store.keep(first) == store.keep(shared) == cached_path(str(tmp_path), first.file)
    assert server.requests["/b.tar"] == 0
    new_store(tmp_path).keep(shared)
    assert server.requests["/b.tar"] == 0


def test_wrong_bytes_are_fetched_once_more_and_then_given_up_until_the_next_start(tmp_path, server):
    remote = put(server, "a.tar")
    server.always["/a.tar"] = "wrong"
    store, older = new_store(tmp_path), new_store(tmp_path)
    for _ in range(2):
        with pytest.raises(StoreError, match=f"/a.tar: fetched twice.*{remote.file.sha256}"):
            store.keep(remote)
    assert server.requests["/a.tar"] == 8
    assert list(store.quarantined) == [remote.file.sha256]
    assert why_missing(str(tmp_path), remote.file) == store.quarantined[remote.file.sha256]
    with pytest.raises(StoreError, match="fetched twice"):
        older.keep(remote)  # takes the other's word
    assert server.requests["/a.tar"] == 8
    server.always.clear()
    time.sleep(0.02)  # file times are coarse
    assert Path(new_store(tmp_path).keep(remote)).read_bytes() == content(server, remote)
    assert why_missing(str(tmp_path), remote.file) is None


def test_a_copy_that_was_cut_is_fetched_again(tmp_path, server):
    remote = put(server, "a.tar")
    store = new_store(tmp_path)
    path = Path(store.keep(remote))
    store.close()
    os.truncate(path, 100)
    assert Path(store.keep(remote)).read_bytes() == content(server, remote)


@pytest.mark.parametrize("sha256", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_manifest_cannot_name_a_place_outside_the_cache(tmp_path, sha256):
    with pytest.raises(ConfigError, match="not 64 hex digits"):
        cached_path(str(tmp_path), File("a.tar", 1, 1, sha256))


@pytest.mark.parametrize("name", ["a.bad", "a.part", "a.tar.part", "a./../x", "a.\n", "a", ".tar"])
def test_a_strange_name_becomes_a_plain_one(tmp_path, name):
    assert cached_path(str(tmp_path), File(name, 1, 1, "0" * 64)) == str(tmp_path / ("0" * 64))


def test_the_oldest_copies_make_room_and_held_ones_and_other_files_stay(tmp_path, server):
    (tmp_path / "notes.txt").write_text("x" * 5000)
    keeper, store = new_store(tmp_path, limit=12_000), new_store(tmp_path, limit=12_000)
    held = keeper.keep(put(server, "held.tar"))
    paths = []
    for i in range(6):
        paths.append(store.keep(put(server, f"{i}.tar")))
        store.close()
        os.utime(paths[-1], (i, i))
        assert sum((tmp_path / name).stat().st_size for name in copies(tmp_path) - {"notes.txt"}) <= 12_000
    assert {Path(path).exists() for path in paths[-2:]} == {True}
    assert {Path(path).exists() for path in paths[:-2]} == {False}
    assert Path(held).exists()
    assert (tmp_path / "notes.txt").exists()
    assert store.stats().evictions == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which needs root")
def test_a_full_disk_evicts_and_says_so_when_nothing_is_left_to_evict(tmp_path, server):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        store = new_store(folder)
        first, second = put(server, "a.tar", 40_000), put(server, "b.tar", 41_000)
        store.keep(first)
        with pytest.raises(StoreError, match=r"no place for b\.tar of 41,000 bytes: No space left.*bytes free"):
            store.keep(second)
        assert copies(folder) == {f"{first.file.sha256}.tar"}
        store.close()
        assert Path(store.keep(second)).read_bytes() == content(server, second)
        assert copies(folder) == {f"{second.file.sha256}.tar"}
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used as the cache"):
        new_store(tmp_path / "file" / "cache")


# Other processes.


def test_processes_that_want_the_same_file_fetch_it_once(tmp_path, server):
    remote = put(server, "a.tar", size=10 * RANGE)
    server.delay_s = 0.05
    code = "print(hashlib.sha256(open(store.keep(remote), 'rb').read()).hexdigest())"
    processes = [in_another_process(code, *arguments(tmp_path, remote)) for _ in range(3)]
    assert {process.communicate(timeout=60)[0].strip() for process in processes} == {remote.file.sha256}
    assert server.requests["/a.tar"] == 10


def test_a_killed_fetcher_leaves_nothing_that_matters(tmp_path, server):
    remote, other = put(server, "a.tar", size=10 * RANGE), put(server, "b.tar")
    server.faults.extend(["", "", "", "hang"])
    process = in_another_process("store.keep(remote)", *arguments(tmp_path, remote))
    while server.requests["/a.tar"] < 4:
        time.sleep(0.01)
    assert copies(tmp_path) == {f"{remote.file.sha256}.tar.part"}
    process.send_signal(signal.SIGKILL)
    process.wait()
    store = new_store(tmp_path)
    store.keep(other)
    assert copies(tmp_path) == {f"{other.file.sha256}.tar"}
    assert Path(store.keep(remote)).read_bytes() == content(server, remote)


def test_the_next_fetcher_takes_over_from_a_killed_one(tmp_path, server):
    remote = put(server, "a.tar", size=4 * RANGE)
    server.faults.extend(["", "hang"])
    process = in_another_process("store.keep(remote)", *arguments(tmp_path, remote))
    while server.requests["/a.tar"] < 2:
        time.sleep(0.01)
    killer = threading.Timer(0.3, process.kill)
    killer.start()
    assert Path(new_store(tmp_path).keep(remote)).read_bytes() == content(server, remote)
    process.wait()


def test_a_copy_is_free_when_its_holder_is_killed_even_if_a_child_of_it_lives(tmp_path, server):
    remote = put(server, "a.tar")
    code = """
        store.keep(remote)
        child = os.fork()
        if not child:
            time.sleep(60)
        print(child, flush=True)
        time.sleep(60)
    """
    process = in_another_process(code, *arguments(tmp_path, remote))
    assert process.stdout is not None
    child = int(process.stdout.readline())
    store = new_store(tmp_path)
    try:
        store.cache.limit_bytes = 0
        store.keep(put(server, "b.tar"))
        assert f"{remote.file.sha256}.tar" in copies(tmp_path)  # held
        process.kill()
        process.wait()
        store.keep(put(server, "c.tar"))
        assert f"{remote.file.sha256}.tar" not in copies(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_released_copy_is_free_though_a_forked_child_lives(tmp_path, server):
    remote = put(server, "a.tar")
    store = new_store(tmp_path)
    store.keep(remote)
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
    try:
        store.close()
        store.cache.limit_bytes = 0
        store.keep(put(server, "b.tar"))
        assert f"{remote.file.sha256}.tar" not in copies(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
