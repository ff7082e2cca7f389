"""What a job takes of machines that are yet to be started, as manifests of KubeRay and Slurm ask for it.

All machines are alike, and each runs the same number of the job's workers: no rank has less than another.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.config import Job
from cluster.jobs import Order
from shards.settings import ConfigError

LEAST_HOURS = 0.25
LEAST_MEMORY_GIB = 2


@dataclass(frozen=True)
class Needs:
    """`nodes` machines for an order, each with this much. counted_cpus: what Ray counts on it, so that it holds its
    share of the workers and no more; cpus: those and the loader processes, which Ray does not count.
    """

    order: Order
    max_failures: int
    nodes: int
    counted_cpus: int
    cpus: int
    gpus: int
    memory_gib: int
    hours: float


def needs(order: Order, job: Job, nodes: int | None, memory_gib: int, hours: float) -> Needs:
    """nodes: how many machines, None for one a worker; memory_gib: of a worker. Raises ConfigError with every fault."""
    cluster, count = job.cluster, job.cluster.most if nodes is None else nodes
    if faults := list(_faults(cluster.most, count, memory_gib, hours)):
        raise ConfigError(faults)
    share = cluster.most // count
    counted = math.ceil(share * cluster.cpus_per_worker)
    return Needs(
        order=order,
        max_failures=cluster.max_failures,
        nodes=count,
        counted_cpus=counted,
        cpus=counted + share * job.recipe.data.workers,
        gpus=math.ceil(share * cluster.gpus_per_worker),
        memory_gib=share * memory_gib,
        hours=hours,
    )


def _faults(workers: int, nodes: int, memory_gib: int, hours: float) -> Iterator[str]:
    if nodes < 1 or workers % nodes:
        fits = ", ".join(str(count) for count in range(1, workers + 1) if workers % count == 0)
        yield f"--nodes: must share cluster.workers: {workers} evenly, got {nodes}; {fits} would"
    if memory_gib < LEAST_MEMORY_GIB:
        yield f"--memory-gib: must be at least {LEAST_MEMORY_GIB} for a worker, got {memory_gib}"
    if not LEAST_HOURS <= hours < math.inf:
        yield f"--hours: must be at least {LEAST_HOURS:g}, got {hours:g}"
