"""Which file is needed when: requests in order, each planned, then yielded, then delivered.

Not safe for threads by itself; `ahead.py` asks it under one lock. A file's next use is the place of the first
request that needs it and is not delivered: so what is in use comes before `current`, and everything else after.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from shards.remote.store import Remote

NEVER = float("inf")
_REQUESTS = 2048  # at most, however few samples they have: each costs some 100 us to plan


class Sized(Protocol):
    """A request: its length is its number of samples."""

    def __len__(self) -> int: ...


R = TypeVar("R", bound=Sized)


@dataclass(frozen=True)
class Planned(Generic[R]):
    """The request at a place in the order, and the sha256 of the files it needs."""

    at: int
    request: R
    files: tuple[str, ...]


class Schedule(Generic[R]):
    """The requests between what is delivered and the horizon."""

    def __init__(self, requests: Iterable[R], needs: Callable[[R], Iterable[Remote]], horizon: int):
        self.remotes: dict[str, Remote] = {}
        """By sha256: all files that a request between here and the horizon needs."""
        self._requests, self._needs, self._horizon = iter(requests), needs, horizon
        self._planned: deque[Planned[R]] = deque()
        self._yielded: deque[Planned[R]] = deque()
        self._uses: dict[str, deque[int]] = {}
        self._num_planned = self._num_samples = 0
        self._exhausted = False

    @property
    def current(self) -> int:
        """Place of the request that is yielded next: uses before it are going on."""
        return self._planned[0].at if self._planned else self._num_planned

    def next_use(self, sha256: str) -> float:
        """Place of the first request that needs a file and is not delivered; NEVER if none is known."""
        uses = self._uses.get(sha256)
        return uses[0] if uses else NEVER

    def front(self) -> Planned[R] | None:
        """The request that is yielded next; None at the end. It has to be planned."""
        return self._planned[0] if self._planned else None

    def plan(self) -> list[str] | None:
        """Plans one more request: the files that no request before needs. None beyond the horizon and at the end."""
        far = self._num_samples >= self._horizon or len(self._planned) >= _REQUESTS
        if self._exhausted or (self._planned and far):
            return None
        try:
            request = next(self._requests)
        except StopIteration:
            self._exhausted = True
            return None
        files = {remote.file.sha256: remote for remote in self._needs(request)}
        new = [sha256 for sha256 in files if sha256 not in self._uses]
        for sha256, remote in files.items():
            self.remotes.setdefault(sha256, remote)
            self._uses.setdefault(sha256, deque()).append(self._num_planned)
        self._planned.append(Planned(self._num_planned, request, tuple(files)))
        self._num_planned += 1
        self._num_samples += len(request)
        return new

    def take(self) -> R:
        """Yields the front request."""
        plan = self._planned.popleft()
        self._num_samples -= len(plan.request)
        self._yielded.append(plan)
        return plan.request

    def deliver(self) -> list[str]:
        """The oldest yielded request is over: the files that no other known request needs."""
        over = []
        for sha256 in self._yielded.popleft().files:
            self._uses[sha256].popleft()
            if not self._uses[sha256]:
                del self._uses[sha256], self.remotes[sha256]
                over.append(sha256)
        return over

    def in_use_bytes(self) -> int:
        """Size of all files that yielded requests need."""
        files = {sha256 for plan in self._yielded for sha256 in plan.files}
        return sum(self.remotes[sha256].file.bytes for sha256 in files)
