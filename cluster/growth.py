"""Room that comes while fewer workers train than a job may have is taken: the run saves, ends, and starts with more.

Nothing is lost by it but the time of a start, half a minute or more: the checkpoint is that of the last step, and the
order of samples is the same on any number of ranks. So room counts once it has been there for `STAYS_S`, and only while
the run has more than `WORTH_S` left at the pace it has had so far.
"""

import time
from collections.abc import Callable

from cluster.capacity import free, room
from cluster.config import ClusterConfig

LOOK_S = 5.0
STAYS_S = 30.0
WORTH_S = 180.0


class Growth:
    """Of an attempt with `workers`. step: the last one trained so far; end: that of the run; ask: has it save and
    end.
    """

    def __init__(
        self, config: ClusterConfig, workers: int, step: Callable[[], int], end: int, ask: Callable[[], object]
    ):
        self._config, self._workers = config, workers
        self._step, self._end, self._ask = step, end, ask
        self._looked = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first step of this attempt was seen, and which it was
        self._since: float | None = None  # when there has been room
        self._begun = step()
        self.workers = workers
        """How many there was room for when the run was asked to end; as many as now if it was not."""

    @property
    def is_asked(self) -> bool:
        return self.workers > self._workers

    def check(self) -> None:
        """Looks now and then, and asks once; to be called often."""
        now = time.monotonic()
        if self.is_asked or self._workers >= self._config.most or now - self._looked < LOOK_S:
            return
        self._looked = now
        fits = min(self._config.most, self._workers + room(free(), self._config.resources))
        if fits <= self._workers or not self._is_worth(now):
            self._since = None
            return
        self._since = self._since or now
        if now - self._since >= STAYS_S:
            self.workers = fits
            self._ask()

    def _is_worth(self, now: float) -> bool:
        step = self._step()
        if self._first is None:
            self._first = (now, step) if step > self._begun else None
            return False
        began, first = self._first
        return step > first and (self._end - step) * (now - began) / (step - first) > WORTH_S
