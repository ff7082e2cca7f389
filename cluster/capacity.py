"""What a cluster has against what a job needs: refused with numbers, before Ray would wait for ever."""

import ray

from cluster.config import ClusterConfig
from shards.settings import ConfigError


def check_capacity(config: ClusterConfig, batch_size: int) -> None:
    """Raises ConfigError if the workers can never all run on the nodes that are there."""
    faults = []
    if config.workers > batch_size:
        faults.append(
            f"cluster.workers: {config.workers} workers cannot share data.batch_size: {batch_size}; "
            f"give at most {batch_size}"
        )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = sum(_workers_on(node, config) for node in nodes)
    if fit < config.workers:
        cpus, gpus = sum(n.get("CPU", 0) for n in nodes), sum(n.get("GPU", 0) for n in nodes)
        need = f"{config.cpus_per_worker:g} CPU" + (
            f" and {config.gpus_per_worker:g} GPU" if config.gpus_per_worker else ""
        )
        faults.append(
            f"cluster.workers: {config.workers} workers of {need} each do not fit; the cluster has {cpus:g} CPU "
            f"and {gpus:g} GPU on {len(nodes)} node(s), room for {fit}"
        )
    if faults:
        raise ConfigError(faults)


def _workers_on(node: dict[str, float], config: ClusterConfig) -> int:
    fit = int(node.get("CPU", 0) / config.cpus_per_worker + 1e-6)
    if config.gpus_per_worker:
        fit = min(fit, int(node.get("GPU", 0) / config.gpus_per_worker + 1e-6))
    return fit
