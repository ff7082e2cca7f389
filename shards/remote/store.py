"""Remote files made local: fetched once, verified, and held while they are in use.

A file is what its manifest says it is, by size and sha256, or it is not used: wrong bytes are discarded and fetched
once more, and if they are wrong again the file is quarantined for as long as this process lives, with the reason in
`quarantined` and in a note in the cache. Processes that want the same file fetch it once: one does, the others wait.
"""

import errno
import hashlib
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from shards.format.manifest import File
from shards.remote.cache import Cache, Future, Hold, Part, UnknownFuture
from shards.remote.transport import RANGE_BYTES, Errand, StoreError, Transport, shown

_POLL_S = 0.05


@dataclass(frozen=True)
class Remote:
    """A file of a data set and where it is."""

    url: str
    file: File


@dataclass
class Fetch:
    """A wish for a file. It may evict what is used later than `before`; if it must, it may exceed the limit."""

    remote: Remote
    errand: Errand
    future: Future = field(default_factory=UnknownFuture)
    before: float = -1.0
    must: bool = True


@dataclass(frozen=True)
class StoreStats:
    """What a store did: bytes that came over the network (download volume), whole files, repeated requests, files
    that made room, files given up, and seconds that training waited.
    """

    fetched_bytes: int
    fetched_files: int
    retries: int
    evictions: int
    quarantined: int
    waited_s: float


class _NoRoomError(Exception):
    """The disk is full, and the file is not needed yet."""


class Store:
    """Verified local copies of remote files, for one process and all its threads."""

    def __init__(
        self,
        folder: str,
        limit_bytes: int,
        timeout_s: float = 300.0,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        range_bytes: int = RANGE_BYTES,
    ):
        """Copies go to `folder`, which processes share; all of them together stay under `limit_bytes`.

        Raises ConfigError if the folder cannot be used.
        """
        self.folder, self.timeout_s, self._range_bytes = folder, timeout_s, range_bytes
        self.quarantined: dict[str, str] = {}
        """sha256 of what was given up -> reason."""
        self.waited_s = 0.0
        self.cache = Cache(folder, limit_bytes)
        self._transport = Transport(timeout_s, options)
        self._kept: dict[str, Hold] = {}
        self._num_files = 0
        self._born = time.time()
        self._guard = threading.Lock()

    def read_bytes(self, url: str) -> bytes:
        """The content of a small file. Raises FileNotFoundError, PermissionError, StoreError, ConfigError."""
        return self._transport.read(Errand(url, aloud=True))

    def keep(self, remote: Remote) -> str:
        """The path of a local copy, held until `close`: for the files that are needed all the time.

        Raises as `read_bytes`; StoreError if the bytes are wrong.
        """
        sha256 = remote.file.sha256
        if sha256 not in self._kept:
            hold = self.fetch(Fetch(remote, Errand(remote.url, aloud=True)))
            if hold is None:
                raise StoreError(self.quarantined[sha256])
            self._kept[sha256] = hold
        return self._kept[sha256].path

    def fetch(self, fetch: Fetch) -> Hold | None:
        """A hold on the local copy. None if there is no room for it yet, it was stopped, or it is quarantined.

        Raises as `read_bytes`.
        """
        file, errand = fetch.remote.file, fetch.errand
        while not errand.stop.is_set():
            with self._disk(file):
                hold = self.cache.hold(file)
                if hold or self._is_given_up(file):
                    return hold
                with self.cache.part(file) as part:
                    if part is not None:  # it may have been finished just before
                        return self.cache.hold(file) or self._fill(fetch, part)
            self._wait_for_another(fetch)
        return None

    @property
    def kept_bytes(self) -> int:
        """Bytes of the copies that are held until `close`."""
        return sum(hold.file.bytes for hold in self._kept.values())

    def stats(self) -> StoreStats:
        """Counted since the start of this store, in this process."""
        transport = self._transport
        return StoreStats(
            transport.num_bytes,
            self._num_files,
            transport.num_retries,
            self.cache.num_evicted,
            len(self.quarantined),
            round(self.waited_s, 3),
        )

    def close(self) -> None:
        """Lets go of what was kept; the copies stay."""
        for hold in self._kept.values():
            hold.release()
        self._kept.clear()

    def _fill(self, fetch: Fetch, part: Part) -> Hold | None:
        """Fetches into an empty part and makes it the copy."""
        if not self.cache.reserve(part, fetch.future, fetch.before, fetch.must):
            return None
        wrong = ""
        for _ in range(2):
            try:
                wrong = self._download(fetch, part)
            except _NoRoomError:
                return None
            if not wrong:
                with self._guard:
                    self._num_files += 1
                return self.cache.commit(part) or self.fetch(fetch)
        self._give_up(fetch.remote, f"{shown(fetch.remote.url)}: fetched twice, and twice {wrong}")
        return None

    def _download(self, fetch: Fetch, part: Part) -> str:
        """Fills a part. What is wrong with the bytes that came, or nothing."""
        file, digest, offset = fetch.remote.file, hashlib.sha256(), 0
        while offset < file.bytes:
            end = min(offset + self._range_bytes, file.bytes)
            data = self._transport.read(fetch.errand, offset, end)
            if len(data) == file.bytes:
                data = data[offset:]  # a server that knows no ranges sends everything
            elif len(data) > end - offset:
                return f"it answered {end - offset:,} bytes with {len(data):,}"
            if not data:
                return f"it ended after {offset:,} of {file.bytes:,} bytes"
            digest.update(data)
            self._write(fetch, part, data, offset)
            offset += len(data)
        found = digest.hexdigest()
        return "" if found == file.sha256 else f"its sha256 was {found}, and the manifest says {file.sha256}"

    def _write(self, fetch: Fetch, part: Part, data: bytes, offset: int) -> None:
        while True:
            try:
                return part.write(data, offset)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not self.cache.free(fetch.remote.file.bytes - offset, fetch.future, fetch.before):
                    if fetch.must:
                        raise
                    raise _NoRoomError from None

    def _wait_for_another(self, fetch: Fetch) -> None:
        """Waits a little for the process that is fetching the same file."""
        errand = fetch.errand
        last = time.monotonic() - (time.time() - self.cache.last_news(fetch.remote.file))
        if last > errand.news:
            errand.news = min(last, time.monotonic())
        errand.state = "another process is fetching it"
        if errand.quiet_s() > self.timeout_s:
            what = f"waited {errand.quiet_s():.0f} s for the process that is fetching it, and nothing came"
            raise StoreError(f"{shown(errand.url)}: {what}")
        errand.speak()
        errand.stop.wait(_POLL_S)

    def _is_given_up(self, file: File) -> bool:
        """Whether the file is quarantined, by this process or by another one since this one started."""
        reason = self.quarantined.get(file.sha256) or self.cache.noted_since(file, self._born)
        if reason:
            self.quarantined[file.sha256] = reason
        return reason is not None

    def _give_up(self, remote: Remote, reason: str) -> None:
        self.cache.note(remote.file, reason)  # first: who sees the file quarantined goes on, and reads the note
        self.quarantined[remote.file.sha256] = reason

    @contextmanager
    def _disk(self, file: File) -> Iterator[None]:
        """What fails on this side, with what would help."""
        try:
            yield
        except (FileNotFoundError, PermissionError):
            raise  # from the store; ours are checked at the start
        except OSError as error:
            what = f"{self.folder}: no place for {file.path} of {file.bytes:,} bytes: {error.strerror}"
            raise StoreError(f"{what} ({shutil.disk_usage(self.folder).free:,} bytes free)") from None
