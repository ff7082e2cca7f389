"""A lock that dies with its holder, so no crash needs a clean-up."""

import fcntl
import os
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
