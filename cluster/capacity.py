"""What a cluster has against what a job needs: refused with numbers, before Ray would wait for ever."""

import sys
import time
from collections.abc import Iterable, Mapping

import ray
from ray._private.state import available_resources_per_node

from cluster.config import ClusterConfig
from shards.settings import ConfigError

POLL_S = 2.0
WORD_S = 30.0  # between words while nothing happens


def check_capacity(config: ClusterConfig, batch_size: int) -> None:
    """Returns when all workers have room on the nodes that are there, waiting for others to end if need be.

    Raises ConfigError if they can never all run, at once, or if the room is still taken after `config.wait_s`.
    """
    faults = []
    if config.workers > batch_size:
        faults.append(
            f"cluster.workers: {config.workers} workers cannot share data.batch_size: {batch_size}; "
            f"give at most {batch_size}"
        )
    if room(total(), config.resources) < config.workers:
        faults.append(f"cluster.workers: {_numbers(config)}")
    if faults:
        raise ConfigError(faults)
    _wait(config, may_return=False)


def await_return(config: ClusterConfig) -> str:
    """Waits until all workers have room again, be it that a lost host comes back first. Returns why they have not after
    `config.wait_s`; empty if they have.
    """
    try:
        _wait(config, may_return=True)
    except ConfigError as error:
        left = room(total(), config.resources)
        return f"{error}; cluster.workers={left} goes on with what is left" if 0 < left < config.workers else str(error)
    return ""


def _wait(config: ClusterConfig, may_return: bool) -> None:
    """Says what it waits for, soon and every half minute: what has just ended takes a moment to leave."""
    started = time.monotonic()
    next_word = started + POLL_S / 2
    while room(free(), config.resources) < config.workers:
        if not may_return and room(total(), config.resources) < config.workers:  # a node has gone
            raise ConfigError(f"cluster.workers: {_numbers(config)}")
        left = config.wait_s - (time.monotonic() - started)
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
        f"{config.workers} workers of {need} each do not fit; the cluster has {have(everything)} on "
        f"{len(everything)} node(s), of which {have(unused)} are free now"
    )
