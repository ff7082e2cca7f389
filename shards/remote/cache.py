"""A folder of verified copies of remote files, named by what is in them and shared by every process that uses it.

    <sha256>.tar         a whole, verified copy: it appears by one rename
    <sha256>.tar.part    on its way; as long as the whole file, so that its place is taken from the start
    <sha256>.bad         why the last fetch of it was given up, in words
    .space               locked for the moment in which room is made

Two sources, runs or trials that need the same bytes share one copy, and different bytes never collide. All agreement
between processes is by `flock`, which dies with its holder, so no crash needs a clean-up: whoever reads a copy holds
it LOCK_SH, who writes a part holds it LOCK_EX, and a copy is evicted only by who gets it LOCK_EX. A part that nobody
holds is left from a crash, and removed when room is made. No call here waits for a lock that is held for long.

Loader processes use `cached_path` and `why_missing` alone. Making room costs one scan of the folder: about 3 ms for a
thousand files.
"""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from shards.format.lock import Locks
from shards.format.manifest import File
from shards.format.whole import write_text
from shards.settings import ConfigError

_OURS = re.compile(r"([0-9a-f]{64})(?:\.(?!bad$|part\b)[a-z0-9]{1,8})?(\.part)?")


def cached_path(folder: str, file: File) -> str:
    """Where the copy of `file` is once it is local. The name comes from data and is made of what is checked alone."""
    if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
        raise ConfigError(f"{file.path!r}: its sha256 in the manifest is {file.sha256[:80]!r}: not 64 hex digits")
    suffix = os.path.splitext(file.path)[1]
    name = file.sha256 + suffix
    return os.path.join(folder, name if _OURS.fullmatch(name) and suffix != ".part" else file.sha256)


def why_missing(folder: str, file: File) -> str | None:
    """Why the last fetch of `file` was given up, or None."""
    with suppress(OSError), open(_note_path(folder, file.sha256)) as note:
        return note.read().strip()
    return None


class Future(Protocol):
    """What a process knows about the use it will make of files."""

    def next_use(self, sha256: str) -> float:
        """When a file is used next: any number that rises with time, infinity if that is not known."""
        ...

    def let_go(self, sha256: str, before: float) -> None:
        """Releases this process's own hold on a file that is still used later than `before`: its place is wanted."""
        ...


class UnknownFuture:
    """Nothing is known: the files that were used longest ago make room."""

    def next_use(self, sha256: str) -> float:
        """Infinity."""
        return float("inf")

    def let_go(self, sha256: str, before: float) -> None:
        """Holds nothing."""


class Hold:
    """A local copy that no process evicts until `release`."""

    def __init__(self, path: str, file: File, locks: Locks, descriptor: int):
        self.path, self.file, self._locks, self._descriptor = path, file, locks, descriptor

    def release(self) -> None:
        """The copy stays as long as nobody needs its place."""
        self._locks.drop(self._descriptor)


@dataclass(frozen=True)
class _Entry:
    path: str
    sha256: str
    bytes: int
    used: float
    part: bool


class Cache:
    """The folder, for the threads of one process."""

    def __init__(self, folder: str, limit_bytes: int):
        self.folder, self.limit_bytes = folder, limit_bytes
        self.num_evicted = 0
        self._locks = Locks()
        try:
            os.makedirs(folder, exist_ok=True)
            with self._space():
                self._scan()
        except OSError as error:
            raise ConfigError(f"{folder}: cannot be used as the cache ({error.strerror})") from None

    def hold(self, file: File) -> Hold | None:
        """The copy of `file`, held; None if it is not there."""
        path = cached_path(self.folder, file)
        descriptor = self._locks.take(path, os.O_RDONLY, fcntl.LOCK_SH)
        if descriptor is None:
            return None
        hold = Hold(path, file, self._locks, descriptor)
        if os.fstat(descriptor).st_size == file.bytes:
            with suppress(OSError):
                os.utime(path)  # who knows no future evicts by the time of last use
            return hold
        hold.release()
        self._remove(path)
        return None

    @contextmanager
    def part(self, file: File) -> Iterator["Part | None"]:
        """An empty part of `file`, ours alone; None if another one is writing it. Gone at the end, unless committed."""
        path = cached_path(self.folder, file) + ".part"
        descriptor = self._locks.take(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)
        if descriptor is None:
            yield None
            return
        part = Part(path, file, descriptor)
        try:
            os.ftruncate(descriptor, 0)
            yield part
        finally:
            if not part.committed:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                self._locks.drop(descriptor)

    def reserve(self, part: "Part", future: Future, before: float, must: bool) -> bool:
        """Makes room for all of a part, and takes it. `must`: takes it even if that is over the limit.

        Evicts what is used last, and only what is used later than `before`. Raises OSError.
        """
        with self._space():
            excess = sum(entry.bytes for entry in self._scan()) + part.file.bytes - self.limit_bytes
            fits = self._evict(excess, future, before) >= excess
            if fits or must:
                os.ftruncate(part.descriptor, part.file.bytes)
        return fits or must

    def commit(self, part: "Part") -> Hold | None:
        """Makes a verified part the copy, held. None if it was lost; then it has to be fetched again."""
        os.fsync(part.descriptor)
        # From a lock of writing to one of reading there is a gap, in which another process may take the part for one
        # that a crash left. Under the second lock the path is ours, or it is not and nothing is renamed.
        if not self._locks.convert(part.descriptor, fcntl.LOCK_SH, part.path):
            part.committed = True
            self._locks.drop(part.descriptor)
            return None
        path = cached_path(self.folder, part.file)
        with self._space():  # who counts at this moment could see neither the part nor the copy
            os.rename(part.path, path)
        part.committed = True
        with suppress(OSError):
            os.unlink(_note_path(self.folder, part.file.sha256))
        return Hold(path, part.file, self._locks, part.descriptor)

    def free(self, num_bytes: int, future: Future, before: float) -> int:
        """Evicts at least so many bytes if it can, under the rules of `reserve`; how many it did."""
        with self._space():
            return self._evict(num_bytes, future, before)

    def trim(self, future: Future, before: float) -> None:
        """Brings the folder back under the limit as far as the rules of `reserve` allow."""
        with self._space():
            self._evict(sum(entry.bytes for entry in self._scan()) - self.limit_bytes, future, before)

    def last_news(self, file: File) -> float:
        """When another process last wrote to the part of `file`, in time.time(); 0 if it is not there."""
        with suppress(OSError):
            return os.stat(cached_path(self.folder, file) + ".part").st_mtime
        return 0.0

    def note(self, file: File, reason: str) -> None:
        """Leaves word for people and for other processes why `file` is not here."""
        path = _note_path(self.folder, file.sha256)
        with suppress(OSError):  # a full disk must not hide the reason itself
            write_text(path, reason + "\n")

    def noted_since(self, file: File, moment: float) -> str | None:
        """The reason that another process gave after `moment` (time.time())."""
        with suppress(OSError):
            if os.stat(_note_path(self.folder, file.sha256)).st_mtime >= moment:
                return why_missing(self.folder, file)
        return None

    @contextmanager
    def _space(self) -> Iterator[None]:
        """One at a time in all processes: else two would take the same room."""
        path = os.path.join(self.folder, ".space")
        while (descriptor := self._locks.take(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)) is None:
            time.sleep(0.01)
        try:
            yield
        finally:
            self._locks.drop(descriptor)

    def _scan(self) -> list[_Entry]:
        """All copies and parts. Removes parts that a crash left; leaves files alone that are not named like ours."""
        found = []
        for item in os.scandir(self.folder):
            match = _OURS.fullmatch(item.name)
            if match and not (match[2] and self._remove(item.path)):
                with suppress(FileNotFoundError):
                    status = item.stat(follow_symlinks=False)
                    found.append(_Entry(item.path, match[1], status.st_size, status.st_mtime, bool(match[2])))
        return found

    def _evict(self, num_bytes: int, future: Future, before: float) -> int:
        """Bytes evicted, in Belady's order: what is used furthest from now goes first."""
        freed = 0
        if num_bytes <= 0:
            return freed
        entries = [(future.next_use(entry.sha256), entry) for entry in self._scan() if not entry.part]
        for use, entry in sorted(entries, key=lambda pair: (-pair[0], pair[1].used)):
            if freed >= num_bytes or use <= before:
                break
            future.let_go(entry.sha256, before)
            if self._remove(entry.path):
                freed += entry.bytes
                self.num_evicted += 1
        return freed

    def _remove(self, path: str) -> bool:
        """Removes a file that nobody holds; False if somebody does, or it belongs to another user."""
        with suppress(PermissionError):
            descriptor = self._locks.take(path, os.O_RDWR, fcntl.LOCK_EX)
            if descriptor is not None:
                try:
                    os.unlink(path)
                    return True
                finally:
                    self._locks.drop(descriptor)
        return False


class Part:
    """A file on its way into the cache."""

    def __init__(self, path: str, file: File, descriptor: int):
        self.path, self.file, self.descriptor = path, file, descriptor
        self.committed = False

    def write(self, data: bytes, offset: int) -> None:
        """Raises OSError."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written


def _note_path(folder: str, sha256: str) -> str:
    return os.path.join(folder, f"{sha256}.bad")
