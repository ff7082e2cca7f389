"""A cluster of `ray up` on machines that are there already and answer SSH: the first of them is the head.

The machines are taken whole: each of them ends what Ray runs there for the same user before it starts. The token is the
one of the machine that types `ray up`, copied to all of them by SSH, so the file holds none.
"""

import ipaddress
import re
import shlex
from collections.abc import Sequence

import yaml

from cluster.jobs import Order
from cluster.session import TOKEN_FILE
from shards.settings import ConfigError

HEAD_PORT = 6379
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
ENVIRONMENT = "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0"


def manifest(order: Order, hosts: Sequence[str], ssh_user: str, ssh_key: str | None, python: str) -> str:
    """YAML for `ray up`. hosts: names or addresses, the head first; ssh_key: the private key for all of them, which Ray
    copies to the head; python: the interpreter there that has this project.

    Raises ConfigError with every fault.
    """
    if faults := _faults(hosts):
        raise ConfigError(faults)
    python = shlex.quote(python)
    ray = f"{python} -m ray.scripts.scripts"
    content = {
        "cluster_name": order.name,
        "provider": {"type": "local", "head_ip": hosts[0], "worker_ips": list(hosts[1:])},
        "auth": {"ssh_user": ssh_user, **({"ssh_private_key": ssh_key} if ssh_key else {})},
        "max_workers": len(hosts) - 1,
        "file_mounts": {TOKEN_FILE: TOKEN_FILE},
        "setup_commands": [f"{python} -c 'import cluster, ray'"],
        "head_start_ray_commands": [
            f"{ray} stop",
            f"{ENVIRONMENT}; ulimit -n 65536; {ray} start --head --port={HEAD_PORT} --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            f"{ray} stop",
            f"{ENVIRONMENT}; ulimit -n 65536; {ray} start --address=$RAY_HEAD_IP:{HEAD_PORT}",
        ],
    }
    return yaml.safe_dump(content, sort_keys=False, width=200)


def _faults(hosts: Sequence[str]) -> list[str]:
    faults = [f"--hosts: {host!r} is no host name or address" for host in hosts if not _is_host(host)]
    twice = sorted({host for host in hosts if hosts.count(host) > 1})
    return [*faults, *(f"--hosts: {host} is given twice" for host in twice)]


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return HOST.fullmatch(host) is not None
    return True
