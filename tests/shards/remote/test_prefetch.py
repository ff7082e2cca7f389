"""Requests come in order, their files are there, the limit is kept, and no failure of the network hides."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.spec import AbstractFileSystem
from torch.utils.data import DataLoader, Dataset

from shards.format.manifest import File
from shards.remote import prefetch as ahead_module
from shards.remote.cache import cached_path
from shards.remote.prefetch import Ahead
from shards.remote.store import Remote, Store
from shards.remote.transport import StoreError
from tests.shards.remote.test_store import put
from tests.shards.server import FaultyServer

SIZE = 1000
Request = tuple[int, ...]


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    server = FaultyServer()
    yield server
    server.down()


def files(server: FaultyServer, count: int) -> list[Remote]:
    return [put(server, f"{i}.tar", SIZE) for i in range(count)]


def new_store(tmp_path: Path, num_files: int, timeout_s: float = 8.0) -> Store:
    """Room for so many files."""
    return Store(str(tmp_path / "cache"), num_files * SIZE, timeout_s)


def look_ahead(requests, remotes: list[Remote], store: Store, **options) -> Ahead[Request]:
    return Ahead(requests, lambda request: [remotes[i] for i in request], store, **options)


def path(store: Store, remote: Remote) -> Path:
    return Path(cached_path(store.folder, remote.file))


def total(store: Store) -> int:
    """Bytes in the cache, parts too."""
    sizes = {}
    for entry in os.scandir(store.folder):
        with suppress(FileNotFoundError):  # a part that is renamed meanwhile may be listed twice, or not at all
            status = entry.stat()
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


def windows(num_files: int, length: int, width: int = 2, seed: int = 0) -> list[Request]:
    """What a training run asks for: a few files at a time, each for some batches, in a new order each epoch."""
    rng, order = random.Random(seed), []
    while len(order) < length:
        epoch = list(range(num_files))
        rng.shuffle(epoch)
        order += epoch
    return [tuple(order[i // 3 : i // 3 + width]) for i in range(length)]


def test_requests_come_in_order_with_their_files_and_under_the_limit(tmp_path, server):
    remotes, requests = files(server, 12), windows(12, 90)
    store, seen = new_store(tmp_path, 5), []
    with look_ahead(requests, remotes, store) as requested:
        for request in requested:
            assert all(path(store, remotes[i]).stat().st_size == SIZE for i in request)
            assert total(store) <= 5 * SIZE
            seen.append(request)
            requested.delivered()
    assert seen == requests
    assert total(store) <= 5 * SIZE
    assert store.stats().evictions > 0


def test_files_of_what_is_not_delivered_stay(tmp_path, server):
    remotes, requests = files(server, 12), windows(12, 60)
    store, in_use = new_store(tmp_path, 7), []
    with look_ahead(requests, remotes, store) as requested:
        for request in requested:
            in_use.append(request)
            assert all(path(store, remotes[i]).exists() for asked in in_use for i in asked)
            if len(in_use) == 4:
                in_use.pop(0)
                requested.delivered()
            time.sleep(0.005)


def lru_fetches(requests: list[Request], room: int) -> int:
    fetches, cache = 0, []
    for i in (i for request in requests for i in request):
        fetches += i not in cache
        cache = [*(c for c in cache if c != i), i][-room:]
    return fetches


def test_what_is_used_furthest_goes_first_which_fetches_less_than_going_by_age(tmp_path, server):
    remotes, requests = files(server, 10), windows(10, 300)
    store = new_store(tmp_path, 6)
    with look_ahead(requests, remotes, store) as requested:
        for _ in requested:
            requested.delivered()
    assert store.stats().fetched_files < 0.8 * lru_fetches(requests, 6)


def test_files_are_fetched_ahead_of_their_use_and_no_further_than_the_horizon(tmp_path, server):
    remotes = files(server, 10)
    store = new_store(tmp_path, 100)
    with look_ahead([(i,) for i in range(10)], remotes, store, horizon=4) as requested:
        next(requested)
        until = time.monotonic() + 5
        while not path(store, remotes[4]).exists() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        assert [path(store, remote).exists() for remote in remotes] == [True] * 5 + [False] * 5


@pytest.mark.filterwarnings("error")
def test_a_cache_smaller_than_a_batch_works_and_says_so_once(tmp_path, server):
    remotes, requests = files(server, 8), [tuple(range(i % 4, i % 4 + 4)) for i in range(20)]
    store = new_store(tmp_path, 2)
    with look_ahead(requests, remotes, store) as requested:
        next(requested)
        requested.delivered()
        with pytest.warns(UserWarning, match=r"may hold 2,000 bytes.*need 4,000 at once"):
            next(requested)
        requested.delivered()
        for request in requested:  # a second warning would be an error
            assert all(path(store, remotes[i]).exists() for i in request)
            requested.delivered()
    assert total(store) <= 2 * SIZE


def test_a_missing_file_is_an_error_in_the_training_process(tmp_path, server):
    remotes = files(server, 3)
    del server.files["/2.tar"]
    with (
        look_ahead([(0,), (1,), (2,)], remotes, new_store(tmp_path, 9)) as requested,
        pytest.raises(FileNotFoundError, match=r"/2\.tar"),
    ):
        list(requested)


def test_an_outage_costs_nothing_while_there_is_work_and_ends_by_itself(tmp_path, server):
    remotes = files(server, 3)
    server.always["/2.tar"] = "503"
    store = new_store(tmp_path, 9, timeout_s=0.3)
    with look_ahead([(0,), (1,), (0,), (2,)], remotes, store) as requested:
        for _ in range(3):
            next(requested)
        time.sleep(0.8)  # the fetch ahead has failed by now
        server.always.clear()
        assert next(requested) == (2,)


def test_a_lasting_outage_ends_in_an_error_when_training_waits(tmp_path, server):
    remotes = files(server, 2)
    server.always["/1.tar"] = "hang"
    began = time.monotonic()
    with look_ahead([(0,), (1,)], remotes, new_store(tmp_path, 9, timeout_s=0.6)) as requested:
        next(requested)
        with pytest.raises(StoreError, match=r"/1\.tar: tried \d+ times, nothing came"):
            next(requested)
    assert time.monotonic() - began < 5


class Stuck(AbstractFileSystem):
    """A store whose library never returns."""

    protocol = "stuck"
    ends = threading.Event()

    def cat_file(self, *_: object, **__: object) -> bytes:
        self.ends.wait(30)
        return b""


def test_a_library_that_hangs_does_not_hang_training(tmp_path, monkeypatch, capfd):
    fsspec.register_implementation("stuck", Stuck, clobber=True)
    monkeypatch.setattr(ahead_module, "NOTE_EVERY_S", 0.5)
    monkeypatch.setattr(ahead_module, "_TICK_S", 0.1)
    remote = Remote("stuck://bucket/a.tar?s3cret", File("a.tar", SIZE, 1, "0" * 64))
    with (
        look_ahead([(0,)], [remote], new_store(tmp_path, 9, timeout_s=0.2)) as requested,
        pytest.raises(StoreError, match=r"stuck://bucket/a\.tar, \d+ s .*nothing came") as error,
    ):
        next(requested)
    Stuck.ends.set()
    said = capfd.readouterr().err
    assert "waiting for stuck://bucket/a.tar, 1 s" in said
    assert "s3cret" not in said + str(error.value)


def test_requests_for_a_file_that_was_given_up_come_all_the_same(tmp_path, server):
    remotes = files(server, 3)
    server.always["/1.tar"] = "wrong"
    store = new_store(tmp_path, 9)
    requests: list[Request] = [(0, 1), (1, 2), (2,), (1,)] * 3
    with look_ahead(requests, remotes, store) as requested:
        for request in requested:
            missing = {i for i in request if not path(store, remotes[i]).exists()}
            assert missing == {1} & set(request)
            requested.delivered()
    assert list(store.quarantined) == [remotes[1].file.sha256]
    assert server.requests["/1.tar"] == 2


def test_an_error_in_making_requests_reaches_the_training_process(tmp_path, server):
    remotes = files(server, 1)

    def requests() -> Iterator[Request]:
        yield (0,)
        raise RuntimeError("no more order")

    with (
        look_ahead(requests(), remotes, new_store(tmp_path, 9)) as requested,
        pytest.raises(RuntimeError, match="no more order"),
    ):
        list(requested)


def test_closing_stops_the_threads_at_once_and_lets_everything_go(tmp_path, server):
    remotes = files(server, 4)
    server.always["/3.tar"] = "hang"
    store = new_store(tmp_path, 9)
    before = set(threading.enumerate())
    requested = look_ahead([(0, 1), (2,), (3,)], remotes, store)
    next(requested)
    while not server.requests["/3.tar"]:
        time.sleep(0.01)
    began = time.monotonic()
    requested.close()
    assert time.monotonic() - began < 1
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("fetch-")]
    with pytest.raises(ValueError, match="closed"):
        next(requested)
    small = Store(store.folder, 0)
    small.keep(put(server, "new.tar", SIZE))
    assert not any(path(store, remote).exists() for remote in remotes)


class Contents(Dataset):
    """What loader processes do: open copies by their names."""

    def __init__(self, folder: str, files: list[File]):
        self.folder, self.files = folder, files

    def __getitems__(self, request: Request) -> list[bytes]:
        return [Path(cached_path(self.folder, self.files[i])).read_bytes() for i in request]


@pytest.mark.slow
def test_loader_processes_find_every_file_and_keep_none(tmp_path, server):
    remotes, requests = files(server, 12), windows(12, 120)
    store = new_store(tmp_path, 9)
    contents = Contents(store.folder, [remote.file for remote in remotes])
    server.delay_s = 0.005
    with look_ahead(requests, remotes, store) as requested:
        loader = DataLoader(
            contents,
            batch_sampler=requested,  # pyright: ignore[reportArgumentType]
            num_workers=2,
            collate_fn=list,
            generator=torch.Generator(),
        )
        for request, batch in zip(requests, loader, strict=True):
            assert batch == [server.files[f"/{i}.tar"] for i in request]
            requested.delivered()
            assert total(store) <= 10 * SIZE
    assert store.stats().evictions > 0


def test_two_look_aheads_share_one_cache(tmp_path, server):
    remotes, requests = files(server, 6), windows(6, 40)
    stores = [new_store(tmp_path, 12) for _ in range(2)]

    def run(store: Store) -> None:
        with look_ahead(requests, remotes, store) as requested:
            for _ in requested:
                requested.delivered()

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(store.stats().fetched_files for store in stores) == 6


def test_a_killed_training_process_leaves_a_cache_that_the_next_one_uses(tmp_path, server):
    remotes, requests = files(server, 8), windows(8, 200)
    child = os.fork()
    if not child:
        requested = look_ahead(requests, remotes, new_store(tmp_path, 4))
        for _ in requested:
            requested.delivered()
            time.sleep(0.005)
        os._exit(0)
    time.sleep(random.Random(0).uniform(0.2, 0.5))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    store = new_store(tmp_path, 4)
    with look_ahead(requests, remotes, store) as requested:
        for request in requested:
            assert all(path(store, remotes[i]).read_bytes() == server.files[f"/{i}.tar"] for i in request)
            assert total(store) <= 5 * SIZE, "what is waited for is fetched before another has gone"
            requested.delivered()
