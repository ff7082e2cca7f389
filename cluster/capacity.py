"""What a cluster has against what a job needs: refused with numbers, before Ray would wait for ever.

Where a job says at least and at most how many workers (`cluster.workers: {min, max}`), it starts with those that have
room: with the least of them only after `SETTLE_S`, for what has just ended takes a moment to leave.
"""

import sys
import time
from collections.abc import Iterable, Mapping

import ray
from ray._private.state import available_resources_per_node

from cluster.config import ClusterConfig
from shards.settings import ConfigError

POLL_S = 2.0
WORD_S = 30.0  # between words while nothing happens
SETTLE_S = 15.0  # for all that the cluster has room for, before fewer are started


def check_capacity(config: ClusterConfig, batch_size: int) -> int:
    """Returns how many workers have room on the nodes that are there, waiting for others to end if need be.

    Raises ConfigError if they can never all run, at once, or if the room is still taken after `config.wait_s`.
    """
    faults = []
    if config.most > batch_size:
        faults.append(
            f"cluster.workers: {config.most} workers cannot share data.batch_size: {batch_size}; "
            f"give at most {batch_size}"
        )
    if room(total(), config.resources) < config.least:
        faults.append(f"cluster.workers: {_numbers(config)}")
    if faults:
        raise ConfigError(faults)
    return _wait(config, may_return=False)


def await_return(config: ClusterConfig) -> int:
    """Waits until workers have room again, be it that a lost host comes back first. Returns how many have. Raises
    NoRoomError with why there is none after `config.wait_s`.
    """
    try:
        return _wait(config, may_return=True)
    except ConfigError as error:
        left = room(total(), config.resources)
        goes_on = f"; cluster.workers={left} goes on with what is left" if 0 < left < config.least else ""
        raise NoRoomError(f"{error}{goes_on}") from None


class NoRoomError(RuntimeError):
    """Workers that were lost have no room any more."""


def _wait(config: ClusterConfig, may_return: bool) -> int:
    """Says what it waits for, soon and every half minute: what has just ended takes a moment to leave."""
    started = time.monotonic()
    next_word = started + POLL_S / 2
    while True:
        there = room(total(), config.resources)
        fits = min(room(free(), config.resources), config.most)
        waited = time.monotonic() - started
        if fits >= config.least and (fits >= min(there, config.most) or waited > min(SETTLE_S, config.wait_s)):
            return fits
        if not may_return and there < config.least:  # a node has gone
            raise ConfigError(f"cluster.workers: {_numbers(config)}")
        left = config.wait_s - waited
        if left <= 0:
            raise ConfigError(
                f"cluster.workers: {_numbers(config)}; waited {config.wait_s:g} s for room (cluster.wait_s)"
            )
        if time.monotonic() > next_word:
            print(f"waiting for room, {left:.0f} s at most: {_numbers(config)}", file=sys.stderr)
            next_word = time.monotonic() + WORD_S
        time.sleep(min(POLL_S, left))


def total() -> list[Mapping[str, float]]:
    """What each node that is alive has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free() -> list[Mapping[str, float]]:
    """What of it nobody has taken yet."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return [left for node, left in available_resources_per_node().items() if node in alive]


def room(nodes: Iterable[Mapping[str, float]], resources: Mapping[str, float]) -> int:
    """How many workers that take `resources` each fit on `nodes`."""
    return sum(
        min(int(node.get(name, 0) / amount + 1e-6) for name, amount in resources.items() if amount) for node in nodes
    )


def _numbers(config: ClusterConfig) -> str:
    everything, unused = total(), free()
    need = " and ".join(f"{amount:g} {name}" for name, amount in config.resources.items())

    def have(nodes: list[Mapping[str, float]]) -> str:
        cpus, gpus = (sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU"))
        return f"{cpus:g} CPU and {gpus:g} GPU (room for {room(nodes, config.resources)})"

    return (
        f"{config.least} workers of {need} each do not fit; the cluster has {have(everything)} on "
        f"{len(everything)} node(s), of which {have(unused)} are free now"
    )
