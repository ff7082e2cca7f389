"""Waits until a cluster that is being started has its nodes: `python -m cluster.nodes HOST:PORT COUNT SECONDS`.

A job is refused at once if it can never fit the nodes that are there (capacity.py). A batch script starts all of them
at the same time, and the head is not the last to be ready.
"""

import sys
import time
from contextlib import ExitStack, suppress

from cluster.session import connect
from shards.settings import ConfigError

POLL_S = 1.0
WORD_S = 30.0  # between words while nothing happens


def gather(address: str, count: int, limit_s: float) -> None:
    """Returns when `count` nodes are alive in the cluster at `address`. Raises ConfigError after `limit_s` seconds."""
    started = time.monotonic()
    next_word = started + WORD_S
    with ExitStack() as session:
        joined = False
        while True:
            if not joined:
                with suppress(ConfigError):  # nothing listens there yet
                    session.enter_context(connect(address))
                    joined = True
            there = _alive() if joined else 0
            left = limit_s - (time.monotonic() - started)
            if there >= count:
                return
            if left <= 0:
                raise ConfigError(f"{there} of {count} nodes started Ray within {limit_s:g} s; see what the others say")
            if time.monotonic() > next_word:
                print(f"waiting for nodes, {left:.0f} s at most: {there} of {count} are there", file=sys.stderr)
                next_word = time.monotonic() + WORD_S
            time.sleep(POLL_S)


def _alive() -> int:
    import ray

    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    try:
        gather(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
    except ConfigError as error:
        sys.exit(f"xfer: {error}")
