"""Bytes of remote files, with patience: ranges, time limits, retries.

Files are read in ranges of 8 MiB: a connection cut after 7 of 8 ranges costs one range and not eight, and a reader can
stop between any two. Whatever the scheme, an answer is waited for at most a quarter of `timeout_s`; then the request is
cancelled and made anew, after exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", 2015).
`timeout_s` without one new range ends the reading. What no retry can fix (no such file, no access) raises at once.
Costs one request a range, and one range of memory a thread; a server that knows no ranges sends whole files, and then
it is one file.

Endpoint, region, proxy and credentials come from where each scheme's own library looks for them. No message holds what
a URL says about access: user, password and query are cut off.

fsspec must not be used in forked children; only the process that trains comes here.
"""

import asyncio
import errno
import random
import re
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import wait
from dataclasses import dataclass, field
from typing import Any

import fsspec.core

from shards.settings import ConfigError
from shards.text import counted

RANGE_BYTES = 8 << 20
NOTE_EVERY_S = 10.0
_TICK_S = 0.1
# As fractions of the time limit, which is how long a user can wait: 0.3 s and 20 s of 300 s.
_ANSWER, _BACKOFF, _BACKOFF_LIMIT = 1 / 4, 1 / 1000, 1 / 15

# One policy for retries, ours; bytes as they are stored; proxies and .netrc as curl takes them.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}},
    "http": {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"trust_env": True}},
}


class StoreError(Exception):
    """A remote file cannot be had, or there is no place for it; says which, and how long it was tried."""


@dataclass
class Errand:
    """One file on its way, as those see it who wait for it. `news`: when the last byte came, time.monotonic()."""

    url: str
    stop: threading.Event = field(default_factory=threading.Event)
    aloud: bool = False
    state: str = "has not begun"
    news: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def arrived(self, state: str) -> None:
        """There was progress."""
        self.state, self.news = state, time.monotonic()

    def quiet_s(self) -> float:
        """Seconds without progress."""
        return time.monotonic() - self.news

    def speak(self) -> None:
        """Says on stderr, every 10 seconds, what is waited for; if `aloud`."""
        if self.aloud and time.monotonic() - max(self._said, self.news) > NOTE_EVERY_S:
            self._said = time.monotonic()
            print(f"waiting for {shown(self.url)}, {self.quiet_s():.0f} s: {self.state}", file=sys.stderr, flush=True)


class Transport:
    """Reads ranges of files of any store that fsspec knows, from any thread."""

    def __init__(self, timeout_s: float, options: Mapping[str, Mapping[str, Any]] | None = None):
        """`options`: by scheme, what fsspec takes beyond the environment, such as `{"s3": {"anon": True}}`."""
        self.timeout_s = timeout_s
        self.num_bytes = self.num_retries = 0
        self._options = options or {}
        self._filesystems: dict[str, Any] = {}
        self._guard = threading.Lock()
        self._random = random.Random()

    def read(self, errand: Errand, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes `start` to `end`, or the whole file. What ends earlier gives less, down to nothing.

        Raises FileNotFoundError, PermissionError; StoreError after `timeout_s` without progress; ConfigError if no
        library for the scheme is installed.
        """
        filesystem, path = self._filesystem(errand.url)
        failures = 0
        while True:
            try:
                data = self._ask(filesystem, path, errand, start, end)
            except Exception as error:  # each store has its own kinds, and some raise anything on a cut connection
                failures += 1
                if _past_the_end(error):
                    return b""
                self._consider(error, errand, failures)
            else:
                self._count(len(data), 0)
                errand.arrived(f"{end or len(data):,} bytes are here")
                return data

    def _ask(self, filesystem: Any, path: str, errand: Errand, start: int | None, end: int | None) -> bytes:
        if not filesystem.async_impl:
            return filesystem.cat_file(path, start=start, end=end)
        request = filesystem._cat_file(path, start=start, end=end)
        answer = asyncio.run_coroutine_threadsafe(request, filesystem.loop)
        limit_s = self.timeout_s * _ANSWER
        until = time.monotonic() + limit_s
        while not wait([answer], timeout=_TICK_S).done:
            errand.speak()
            if errand.stop.is_set() or time.monotonic() > until:
                answer.cancel()
                raise TimeoutError(f"no whole answer within {limit_s:.3g} s")
        return answer.result()

    def _consider(self, error: Exception, errand: Errand, failures: int) -> None:
        """Returns when it is time to try again, or raises."""
        refusal = _refusal(error, errand.url)
        if refusal:
            raise refusal from None
        reason = _reason(error, errand.url)
        left_s = self.timeout_s - errand.quiet_s()
        if left_s <= 0:
            tried = f"tried {counted(failures, 'time')}, nothing came for {errand.quiet_s():.0f} s"
            raise StoreError(f"{shown(errand.url)}: {tried}; last error: {reason}") from None
        errand.state = f"failed {counted(failures, 'time')}, will try again; last error: {reason}"
        errand.speak()
        longest_s = min(left_s, self.timeout_s * min(_BACKOFF_LIMIT, _BACKOFF * 2 ** min(failures, 16)))
        if errand.stop.wait(self._random.uniform(0, longest_s)):
            raise StoreError(f"{shown(errand.url)}: not waited for any longer") from None
        self._count(0, 1)

    def _count(self, num_bytes: int, num_retries: int) -> None:
        with self._guard:
            self.num_bytes += num_bytes
            self.num_retries += num_retries

    def _filesystem(self, url: str) -> tuple[Any, str]:
        """Whoever serves `url`. Asynchronous ones serve all threads; others may not, and fsspec keeps one a thread."""
        place = "/".join(url.split("/", 3)[:3])
        with self._guard:
            known = self._filesystems.get(place)
            if known is None:
                known = self._connect(url)
                if known.async_impl:
                    self._filesystems[place] = known
        return known, known._strip_protocol(url)

    def _connect(self, url: str) -> Any:
        scheme = url.partition("://")[0]
        family = {"https": "http", "s3a": "s3"}.get(scheme, scheme)
        try:
            return fsspec.core.url_to_fs(url, **{**_OPTIONS.get(family, {}), **self._options.get(scheme, {})})[0]
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{shown(url)}: cannot be read: {_reason(error, url)}") from None


def join(location: str, name: str) -> str:
    """The URL of a file in a remote folder; a query (some stores carry access in it) stays at the end."""
    folder, question, query = location.partition("?")
    return f"{folder.rstrip('/')}/{name}{question}{query}"


def shown(url: str) -> str:
    """A URL without user, password, query and fragment: what may be printed."""
    scheme, separator, rest = re.split(r"[?#]", url, maxsplit=1)[0].partition("://")
    host, slash, path = rest.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path


def _reason(error: BaseException, url: str) -> str:
    """An error in words, without what `url` or any other URL in it says about access."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    rest = url.partition("://")[2]
    for secret in (rest.partition("?")[2], rest.partition("/")[0].rpartition("@")[0]):
        text = text.replace(secret, "...") if secret else text
    text = re.sub(r"(\w+://)(?:[^/@\s'\"]*@)?([^\s?#'\"]*)(?:[?#][^\s'\")>]*)?", r"\1\2", text)
    return " ".join(text.split())[:400]


def _refusal(error: Exception, url: str) -> OSError | None:
    """The error to raise if no retry can help."""
    status, kind = _status(error), type(error).__name__
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "No such file in the store", shown(url))
    if isinstance(error, PermissionError) or status in (401, 403) or kind in ("NoCredentialsError", "ProfileNotFound"):
        return PermissionError(errno.EACCES, f"The store gives no access ({_reason(error, url)})", shown(url))
    return None


def _past_the_end(error: Exception) -> bool:
    """Whether the range that was asked for begins after the end of the file."""
    answer = getattr(error.__cause__, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return _status(error) == 416 or code == "InvalidRange"


def _status(error: Exception) -> Any:
    """The HTTP status behind an error, if it tells."""
    return error.status if hasattr(error, "status") else getattr(error, "code", None)  # pyright: ignore
