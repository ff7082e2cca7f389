"""Requests whose files are local: fetched before they are needed, as far as there is room.

    requests -> planned (files on their way) -> yielded (files held) -> delivered (files let go)

The order of samples is known for as long as one likes to compute it, so nothing is guessed here. Threads fetch the
files of planned requests, the first needed first. When there is no room, the file whose next use is furthest goes
(Belady 1966, the best that is possible), and nothing goes for a file that is needed later than itself. A request is
yielded when all of its files are local, and they stay until it is delivered.

A failed fetch of a file that nobody waits for yet is tried again later: an outage costs nothing until training has
used up what is here. Once the training process waits, the failure is raised in it, and so is a silence of `timeout_s`
for any other reason. Costs a few µs a request and file; what is planned is at most `horizon` samples.
"""

import heapq
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Generic

from shards.remote.cache import Hold
from shards.remote.schedule import NEVER, Planned, R, Schedule
from shards.remote.store import Fetch, Remote, Store
from shards.remote.transport import NOTE_EVERY_S, Errand, StoreError, shown

_AT_ONCE = 16  # requests that are planned under one lock, so that training never waits long for it
_FILES = 256  # files held ahead of use: each costs an open descriptor
_TICK_S = 1.0
_FULL_S = 0.1  # between two looks for room
_GRACE_S = 1.0  # a fetch that gives up says more than the watch for silence, so it may speak first


class Ahead(Generic[R]):
    """An iterator of requests, each yielded when its files are local. Close it (or use `with`) to stop its threads.

    Files in `store.quarantined` are not local and not waited for. Threads start with the first `next`, so after a
    DataLoader has started its processes.
    """

    def __init__(
        self,
        requests: Iterable[R],
        needs: Callable[[R], Iterable[Remote]],
        store: Store,
        threads: int = 4,
        horizon: int = 1 << 18,
    ):
        """`needs`: the remote files of a request, asked once for each, in order. `horizon`: samples planned ahead."""
        self._store = store
        self._threads = [threading.Thread(target=self._work, name=f"fetch-{i}", daemon=True) for i in range(threads)]
        self._stop = threading.Event()
        self._change = threading.Condition()  # guards all below
        self._schedule: Schedule[R] = Schedule(requests, needs, horizon)
        self._wanted: list[tuple[float, str]] = []  # a heap of next use and sha256
        self._fetching: dict[str, Fetch] = {}
        self._held: dict[str, Hold] = {}
        self._failure: Exception | None = None
        self._waiting = self._delivered = self._warned = False
        self._full_until = 0.0
        self._news = 0.0  # when a fetch ended last

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        for thread in self._threads:
            if not thread.ident and not self._stop.is_set():
                thread.start()
        with self._change:
            while self._schedule.front() is None and self._plan():
                pass
            front = self._schedule.front()
            if front is None:
                raise StopIteration
            self._wait_for(front)
            request = self._schedule.take()
            self._warn_if_too_small()
            self._change.notify_all()
            return request

    def __enter__(self) -> "Ahead[R]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def delivered(self) -> None:
        """The oldest request that was yielded has been read: its files may make room for others."""
        with self._change:
            for sha256 in self._schedule.deliver():
                self._release(sha256)
            self._delivered = True
            self._full_until = min(self._full_until, time.monotonic() + _FULL_S)
            self._change.notify_all()

    def close(self) -> None:
        """Stops the threads and lets go of all files; the copies stay, as far as the limit allows."""
        self._stop.set()
        with self._change:
            for fetch in self._fetching.values():
                fetch.errand.stop.set()
            self._change.notify_all()
        for thread in self._threads:
            if thread.ident:
                thread.join(timeout=2.0)
        with self._change:
            for sha256 in list(self._held):
                self._release(sha256)
        with suppress(OSError):  # the folder may be gone by now
            self._store.cache.trim(self, before=-1.0)

    # What the store asks when it makes room, in a thread.

    def next_use(self, sha256: str) -> float:
        """Place of the first request that needs a file and is not delivered; infinity if none is known."""
        with self._change:
            return self._schedule.next_use(sha256)

    def let_go(self, sha256: str, before: float) -> None:
        """Gives up a file that was fetched ahead and is needed later than `before`; it is fetched again in time."""
        with self._change:
            if self._schedule.next_use(sha256) > max(before, self._schedule.current):
                self._give_back(sha256)

    # Under the lock.

    def _plan(self) -> bool:
        """Whether there was a request to plan."""
        new = self._schedule.plan()
        for sha256 in new or ():
            self._want(sha256)
        return new is not None

    def _want(self, sha256: str) -> None:
        if self._schedule.next_use(sha256) < NEVER and sha256 not in self._store.quarantined:
            heapq.heappush(self._wanted, (self._schedule.next_use(sha256), sha256))

    def _release(self, sha256: str) -> bool:
        hold = self._held.pop(sha256, None)
        if hold:
            hold.release()
        return hold is not None

    def _give_back(self, sha256: str) -> None:
        if self._release(sha256):
            self._want(sha256)

    # In the training process.

    def _wait_for(self, plan: Planned[R]) -> None:
        """Returns when the files of a request are held, under the lock."""
        began = said = time.monotonic()
        self._waiting = True
        try:
            while True:
                if self._failure:
                    raise self._failure
                if self._stop.is_set():
                    raise ValueError("this look-ahead was closed")
                missing = [s for s in plan.files if s not in self._held and s not in self._store.quarantined]
                if not missing:
                    return
                for sha256 in missing:
                    if sha256 in self._fetching:
                        self._fetching[sha256].must = True
                said = self._watch(missing, began, said)
                self._change.notify_all()
                self._change.wait(_TICK_S)
        finally:
            self._waiting = False
            self._store.waited_s += time.monotonic() - began

    def _watch(self, missing: Sequence[str], began: float, said: float) -> float:
        """Raises StoreError if nothing comes any more. Says now and then what is waited for; returns when it did."""
        now = time.monotonic()
        for sha256 in missing:
            fetch = self._fetching.get(sha256)
            last = max(began, fetch.errand.news if fetch else self._news)
            if now - last > self._store.timeout_s + _GRACE_S:
                raise StoreError(f"{self._line(sha256, now - last)}: nothing came")
        if now - said > NOTE_EVERY_S:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            print(f"waiting for {self._line(missing[0], now - began)}{more}", file=sys.stderr, flush=True)
            return now
        return said

    def _line(self, sha256: str, seconds: float) -> str:
        remote, fetch = self._schedule.remotes[sha256], self._fetching.get(sha256)
        state = fetch.errand.state if fetch else "no thread is free for it"
        return f"{shown(remote.url)}, {seconds:.0f} s ({state})"

    def _warn_if_too_small(self) -> None:
        """Once, and not before the loader has asked for as much as it asks for at a time."""
        if self._warned or not self._delivered:
            return
        needed = self._schedule.in_use_bytes() + self._store.kept_bytes
        limit = self._store.cache.limit_bytes
        if needed > limit:
            self._warned = True
            what = f"{self._store.folder}: may hold {limit:,} bytes, and the batches in use need {needed:,} at once"
            warnings.warn(
                f"{what}: the limit is exceeded; twice the need would let files be fetched ahead", stacklevel=3
            )

    # In the threads.

    def _work(self) -> None:
        try:
            while (fetch := self._take()) is not None:
                self._put(fetch, *self._fetched(fetch))
        except Exception as error:  # of `requests` or `needs`, or our own: it has to reach the training process
            with self._change:
                self._failure = self._failure or error
                self._change.notify_all()

    def _take(self) -> Fetch | None:
        """The next file to fetch, as soon as there is one; None: stop."""
        while not self._stop.is_set():
            with self._change:
                planned = [self._plan() for _ in range(_AT_ONCE)]
                if self._wanted and (fetch := self._next_fetch()):
                    return fetch
                if not planned[0]:
                    self._change.wait(_FULL_S if self._wanted else _TICK_S)
        return None

    def _next_fetch(self) -> Fetch | None:
        """The file that is needed first, if it may be fetched now."""
        at, sha256 = self._wanted[0]
        must = self._waiting and at <= self._schedule.current
        known = self._schedule.next_use(sha256) < NEVER  # if not: quarantined, and delivered without it
        if known and not must and not self._may_fetch_ahead(at):
            return None
        heapq.heappop(self._wanted)
        if not known:
            return None
        remote = self._schedule.remotes[sha256]
        self._fetching[sha256] = Fetch(remote, Errand(remote.url), self, at, must)
        return self._fetching[sha256]

    def _may_fetch_ahead(self, at: float) -> bool:
        if time.monotonic() < self._full_until:
            return False
        if len(self._held) + len(self._fetching) < _FILES:
            return True
        furthest = max(self._held, key=self._schedule.next_use)
        if self._schedule.next_use(furthest) <= max(at, self._schedule.current):
            return False
        self._give_back(furthest)
        return True

    def _fetched(self, fetch: Fetch) -> tuple[Hold | None, Exception | None]:
        try:
            return self._store.fetch(fetch), None
        except Exception as error:
            return None, error

    def _put(self, fetch: Fetch, hold: Hold | None, error: Exception | None) -> None:
        sha256 = fetch.remote.file.sha256
        with self._change:
            del self._fetching[sha256]
            self._news = time.monotonic()
            needed = self._schedule.next_use(sha256) < NEVER and not self._stop.is_set()
            if hold and needed:
                self._held[sha256] = hold
            elif hold:
                hold.release()
            elif needed and sha256 not in self._store.quarantined:
                self._want(sha256)
                self._full_until = time.monotonic() + _TICK_S
                if error and (fetch.must or not isinstance(error, StoreError)):
                    self._failure = self._failure or error
            self._change.notify_all()
