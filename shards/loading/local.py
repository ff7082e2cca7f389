"""Requests made local: loader processes see only files of this machine, whatever store the shards come from.

The process that trains fetches ahead (`ahead.py`); loader processes neither wait nor know. A sample of a shard that was
given up (wrong bytes, twice) is replaced here and not by a loader, because its replacement's shard may have to be
fetched: another sample of the source, chosen by hash of (seed, position), so each replay chooses the same.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from shards.format.hashing import key
from shards.loading.damage import DamagedSample
from shards.loading.request import Request
from shards.loading.subset import Subset
from shards.remote.cache import Hold
from shards.remote.prefetch import Ahead
from shards.remote.store import Fetch, Remote, Store
from shards.remote.transport import Errand, StoreError

_ATTEMPTS = 64
_HORIZON = 1 << 16  # samples: some 65 shards of a thousand, for half a second of planning at the start


class LocalRequests:
    """`requests`, each when its shards are here; they stay until it is `delivered`. Close it to stop its threads."""

    def __init__(self, requests: Iterable[Request], subsets: Sequence[Subset], store: Store, seed: int | None):
        """`seed` chooses replacements; None: samples of shards that were given up stay as they are."""
        self._subsets, self._store, self._seed = subsets, store, seed
        self._ahead = Ahead(requests, self._needs, store, horizon=_HORIZON)
        self._extra: deque[list[Hold]] = deque()

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        request, holds = next(self._ahead), []
        if self._store.quarantined and self._seed is not None:
            request = self._replaced(request, holds)
        self._extra.append(holds)
        return request

    def delivered(self) -> None:
        """The oldest request has been answered: its shards may make room."""
        self._ahead.delivered()
        for hold in self._extra.popleft():
            hold.release()

    def close(self) -> None:
        """Stops the threads."""
        self._ahead.close()

    def _needs(self, request: Request) -> list[Remote]:
        pairs = sorted(set(zip(request.source.tolist(), request.shard.tolist(), strict=True)))
        return [self._subsets[source].remote(shard) for source, shard in pairs if self._subsets[source].cache]

    def _replaced(self, request: Request, holds: list[Hold]) -> Request:
        """The request with samples of shards that were given up replaced; `holds` gets what the replacements need."""
        shard, row, damaged = request.shard.copy(), request.row.copy(), list(request.damaged)
        for at, (source, number) in enumerate(zip(request.source.tolist(), request.shard.tolist(), strict=True)):
            subset = self._subsets[source]
            reason = self._store.quarantined.get(subset.manifest.shards[number].sha256)
            if reason is None or not subset.cache:
                continue
            damaged.append(DamagedSample(source, subset.manifest.shards[number].path, f"row {int(row[at])}", reason))
            shard[at], row[at] = self._other(subset, int(request.positions[at]), holds)
        return replace(request, shard=shard, row=row, damaged=tuple(damaged))

    def _other(self, subset: Subset, position: int, holds: list[Hold]) -> tuple[int, int]:
        assert self._seed is not None
        for attempt in range(_ATTEMPTS):
            shard, row = subset.locate(key(self._seed, 4, position, attempt) % subset.num_samples)
            remote = subset.remote(shard)
            if remote.file.sha256 in self._store.quarantined:
                continue
            hold = self._store.fetch(Fetch(remote, Errand(remote.url, aloud=True)))
            if hold:
                holds.append(hold)
                return shard, row
        raise StoreError(f"{subset.folder}: {_ATTEMPTS} replacements for position {position} are all in damaged shards")
