"""A cluster that does not answer any more is found within seconds. Ray's own calls would wait for it, and Ray would end
this process after a minute without a cause.
"""

import socket
import time

import ray

SILENCE_S = 20.0
ASK_S = 2.0  # between two looks whether the cluster answers
GOES_ON = "what was saved is kept, and the same command goes on"
GONE = f"the Ray cluster has not answered for {SILENCE_S:g} s; {GOES_ON}"


class ClusterGoneError(RuntimeError):
    """The cluster does not answer, or has no worker left."""


class Watch:
    """Of the head of the cluster that this process is in."""

    def __init__(self):
        self._asked = self._heard = time.monotonic()

    def check(self) -> None:
        """Asks now and then; to be called often. Raises ClusterGoneError after `SILENCE_S` without an answer."""
        if time.monotonic() - self._asked < ASK_S:
            return
        if answers():
            self._heard = time.monotonic()
        self._asked = time.monotonic()
        if self._asked - self._heard > SILENCE_S:
            raise ClusterGoneError(GONE)


def await_answer() -> None:
    """Returns once the head takes connections. Raises ClusterGoneError after `SILENCE_S` without."""
    since = time.monotonic()
    while not answers():
        if time.monotonic() - since > SILENCE_S:
            raise ClusterGoneError(GONE)
        time.sleep(0.5)


def answers() -> bool:
    """Whether the head takes connections."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True
