"""What Kubernetes and KubeRay take, as JSON schemas in which nothing unknown is left over.

`kubernetes.json.gz` is Kubernetes' own; its first line says whose and which. Of KubeRay's fields those that are used
are said here by hand, after its documentation and its Go types (ray.io/v1). The whole schema is a megabyte: it is what
`kubectl apply --dry-run=server` asks.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema

KUBERNETES = json.loads(gzip.decompress(Path(__file__).with_name("kubernetes.json.gz").read_bytes()))
CORE = "#/$defs/io.k8s.api.core.v1"
TEXT = {"type": "string"}
TEXTS = {"type": "object", "additionalProperties": TEXT}
NUMBER = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}


def closed(required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


POD = {"$ref": f"{CORE}.PodTemplateSpec"}
HEAD = closed("template", rayStartParams=TEXTS, template=POD)
WORKERS = closed(
    "groupName minReplicas maxReplicas template",
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = closed(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=closed("", mode={"enum": ["disabled", "token"]}),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
SPEC = closed(
    "",
    activeDeadlineSeconds={**NUMBER, "minimum": 1},
    backoffLimit=NUMBER,
    entrypoint=TEXT,
    jobId=TEXT,
    metadata=TEXTS,
    rayClusterSpec=CLUSTER,
    runtimeEnvYAML=TEXT,
    shutdownAfterJobFinishes={"type": "boolean"},
)
RAY_JOB = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name={"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,45}[a-z0-9])?$"}, labels=TEXTS),
    spec=SPEC,
)
KINDS = {"ConfigMap": {"$ref": f"{CORE}.ConfigMap"}, "RayJob": RAY_JOB}


def check(document: dict[str, Any]) -> None:
    """Raises jsonschema.ValidationError."""
    jsonschema.validate(document, {**KUBERNETES, **KINDS[document["kind"]]})
