"""Locks that die with their holder, so no crash needs a clean-up: `flock`, one for a whole build, many for a cache."""

import fcntl
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.settings import ConfigError


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Holds `path` (made for the time, removed after). Raises ConfigError with `refusal` if somebody else does."""
    descriptor = _acquire(path, refusal)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, refusal: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The file locked may be one that its last holder has just removed: then the lock protects nothing.
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigError(refusal) from None
        except FileNotFoundError:
            pass
        os.close(descriptor)


class Locks:
    """Open, locked files of one process, for all its threads; no call waits for a lock.

    A lock belongs to the open file, which a forked child shares: the locks of a dead process would live on in its
    children. They therefore close their descriptors in the moment of the fork.
    """

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._guard = threading.Lock()  # held while a descriptor exists that `_open` does not list
        mine = weakref.ref(self)
        os.register_at_fork(
            before=lambda: (locks := mine()) and locks._guard.acquire(),
            after_in_parent=lambda: (locks := mine()) and locks._guard.release(),
            after_in_child=lambda: (locks := mine()) and locks._forget(),
        )

    def take(self, path: str, flags: int, operation: int) -> int | None:
        """A locked descriptor of the file that `path` names now; None if there is none or another one has it.

        Raises OSError.
        """
        with self._guard:
            try:
                descriptor = os.open(path, flags, 0o644)
            except FileNotFoundError:
                if flags & os.O_CREAT:
                    raise
                return None
            self._open.add(descriptor)
        if self.convert(descriptor, operation, path):
            return descriptor
        self.drop(descriptor)
        return None

    def convert(self, descriptor: int, operation: int, path: str) -> bool:
        """Locks anew, without waiting. False if another one has the lock, or `path` names another file by now."""
        try:
            fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
            return os.path.samestat(os.stat(path), os.fstat(descriptor))
        except (BlockingIOError, FileNotFoundError):
            return False

    def drop(self, descriptor: int) -> None:
        """Unlocks and closes; a second time, or in a forked child, does nothing."""
        with self._guard:
            if descriptor in self._open:
                self._open.remove(descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def _forget(self) -> None:
        self._guard = threading.Lock()
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()
