"""A RayJob of KubeRay: a cluster that is made for one job and ends with it, in one file with the job itself.

The token is KubeRay's: it makes a Secret and hands it to its pods, so none is in the file. Probes of the pods are
KubeRay's too. A job that fails is begun again in a new cluster, and goes on from its newest whole checkpoint.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

import yaml

from cluster.jobs import STOP_ENVIRONMENT
from cluster.manifest.needs import Needs
from shards.settings import ConfigError

HEAD_CPUS = 2  # of the command itself, which takes none of what Ray counts
GROUP = 1000  # of cluster/Dockerfile; claims are made writable for it
DOCUMENT = PurePosixPath("/etc/xfer/job.yaml")
TAKEN = ("/dev/shm", str(DOCUMENT.parent))
LONGEST_NAME = 47  # KubeRay adds to it, and what comes out names a service
CLAIM = re.compile(r"(?P<name>[a-z0-9]([a-z0-9.-]*[a-z0-9])?):(?P<path>/[^:/][^:]*)")
IMAGE = f"xfer:{version('xfer')}"


def manifest(needs: Needs, image: str, claims: Sequence[str], secret: str | None) -> str:
    """YAML for `kubectl apply -f`. claims: `NAME:/path`, PersistentVolumeClaims and where they are mounted; secret: the
    name of a Secret whose keys become environment variables.

    Raises ConfigError with every fault: of the claims, and paths of the job that lie on none.
    """
    name, mounts = _name(needs.order.name), _mounts(claims)
    faults = [*_name_faults(needs.order.name, name), *_claim_faults(claims), *_path_faults(needs.order.paths, mounts)]
    if faults:
        raise ConfigError(faults)
    pods = _Pods(image, mounts, secret)
    metadata = {"name": name, "labels": {"app.kubernetes.io/name": "xfer", "app.kubernetes.io/instance": name}}
    files = {DOCUMENT.name: needs.order.document}
    documents = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files},
        {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": _spec(needs, name, pods)},
    ]
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120)


def _spec(needs: Needs, name: str, pods: "_Pods") -> dict[str, Any]:
    order = needs.order
    counted = {"num-cpus": str(needs.counted_cpus), **({"num-gpus": str(needs.gpus)} if needs.gpus else {})}
    words = ["python", "-m", "cluster.driver", name, order.verb, str(DOCUMENT), str(order.folder)]
    return {
        "jobId": name,
        "entrypoint": f"exec {shlex.join(words)}",
        "runtimeEnvYAML": yaml.safe_dump({"env_vars": STOP_ENVIRONMENT}),
        "metadata": {"verb": order.verb, "name": order.name, "folder": str(order.folder)},
        "activeDeadlineSeconds": round(needs.hours * 3600),
        "backoffLimit": needs.max_failures,
        "shutdownAfterJobFinishes": True,
        "rayClusterSpec": {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token"},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0"},
                "template": pods.template("ray-head", HEAD_CPUS, 0, needs.memory_gib, name),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas"), needs.nodes),
                    "rayStartParams": counted,
                    "template": pods.template("ray-worker", needs.cpus, needs.gpus, needs.memory_gib),
                }
            ],
        },
    }


@dataclass(frozen=True)
class _Pods:
    """What all pods of a cluster have in common. mounts: PersistentVolumeClaims by path."""

    image: str
    mounts: Mapping[str, str]
    secret: str | None

    def template(self, name: str, cpus: int, gpus: int, memory_gib: int, job: str | None = None) -> dict[str, Any]:
        """A pod of one container. job: the ConfigMap with the job's file, for the pod that runs it."""
        amounts = {"cpu": cpus, "memory": f"{memory_gib}Gi", **({"nvidia.com/gpu": gpus} if gpus else {})}
        volumes: list[dict[str, Any]] = [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{memory_gib // 2}Gi"}}
        ]
        mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
        for number, (path, claim) in enumerate(self.mounts.items()):
            volumes.append({"name": f"storage-{number}", "persistentVolumeClaim": {"claimName": claim}})
            mounts.append({"name": f"storage-{number}", "mountPath": path})
        if job:
            volumes.append({"name": "job", "configMap": {"name": job}})
            mounts.append({"name": "job", "mountPath": str(DOCUMENT.parent)})
        container = {
            "name": name,
            "image": self.image,
            "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
            **({"envFrom": [{"secretRef": {"name": self.secret}}]} if self.secret else {}),
            "resources": {"requests": amounts, "limits": amounts},
            "volumeMounts": mounts,
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
        context = {"runAsNonRoot": True, "fsGroup": GROUP}
        return {"spec": {"securityContext": context, "containers": [container], "volumes": volumes}}


def _name(name: str) -> str:
    return name.lower().replace("_", "-").rstrip("-")


def _name_faults(given: str, name: str) -> Iterator[str]:
    if not name[:1].isalpha() or len(name) > LONGEST_NAME:
        yield f"name: must begin with a letter and have at most {LONGEST_NAME} for Kubernetes, got {given}"


def _mounts(claims: Sequence[str]) -> dict[str, str]:
    """Claims by where they are mounted."""
    found = (CLAIM.fullmatch(claim) for claim in claims)
    return {one["path"].rstrip("/"): one["name"] for one in found if one}


def _claim_faults(claims: Sequence[str]) -> Iterator[str]:
    mounted: list[str] = []
    for claim in claims:
        path = next(iter(_mounts([claim])), None)
        if path is None:
            yield f"--claim: must be NAME:/path, got {claim}"
        elif path in TAKEN or path in mounted:
            yield f"--claim: {path} has something else mounted on it, got {claim}"
        mounted += [path] if path else []


def _path_faults(paths: Mapping[str, str], mounts: Mapping[str, str]) -> Iterator[str]:
    for where, path in paths.items():
        if not any(PurePosixPath(path).is_relative_to(mount) for mount in mounts):
            given = ", ".join(mounts) or "there is none"
            yield (
                f"{where}: {path} is on no claim ({given}); mount one with --claim NAME:/path and name a path below it"
                + ("" if where == "output" else ", or an object store")
            )


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as such, and what is meant twice, twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
