"""The workers' process group, listening at one address: that by which Ray knows the node, which is loopback here.

Left to themselves, torch's store listens on all addresses of rank 0's machine, without asking for a token, and gloo on
whatever the host's name resolves to.
"""

import errno
import fcntl
import socket
import struct
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
from ray.train._internal.utils import get_address_and_port
from ray.train.torch.config import TorchConfig, _set_torch_distributed_env_vars, _TorchBackend
from torch.distributed import TCPStore, init_process_group  # pyright: ignore[reportPrivateImportUsage]

from cluster.session import set_gloo_interface

SIOCGIFADDR = 0x8915  # of Linux: the address of an interface


@dataclass
class NodeAddressConfig(TorchConfig):
    """Ray Train's TorchConfig, at the node's address only. `backend`: none takes nccl for GPUs, gloo otherwise."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _NodeAddressBackend


class _NodeAddressBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        backend = backend_config.backend or ("nccl" if gpus else "gloo")
        host, port = worker_group.execute_single(0, get_address_and_port)
        worker_group.execute(_set_torch_distributed_env_vars)  # DeepSpeed reads LOCAL_RANK
        size = len(worker_group)
        given = (size, backend, host, port, backend_config.timeout_s)
        joining: Any = [worker_group.execute_single_async(rank, _join, rank, *given) for rank in range(size)]
        ray.get(joining)


def _join(rank: int, size: int, backend: str, host: str, port: int, timeout_s: int) -> None:
    """Called on each worker. Rank 0 serves the store."""
    interface = interface_of(ray.util.get_node_ip_address())
    if interface:
        set_gloo_interface(interface)
    timeout = timedelta(seconds=timeout_s)
    listening = _listen(host, port) if rank == 0 else None
    store = TCPStore(host, port, size, rank == 0, timeout, multi_tenant=True, master_listen_fd=listening)
    init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _listen(host: str, port: int) -> int:
    """A listening socket, as the file descriptor of which the store takes charge."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family).detach()
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
    return socket.create_server(("", port), family=family).detach()  # the node is known by an address it has not: NAT


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address; None: no one has."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None
