"""A RayJob for a job: what Kubernetes and KubeRay take, and what it makes them do."""

import re
from dataclasses import replace

import jsonschema
import pytest
import yaml

from cluster.config import Job
from cluster.manifest.kuberay import manifest
from shards.settings import ConfigError, load
from tests.cluster.manifest.schema import check


@pytest.fixture
def claims(job, tmp_path) -> list[str]:
    return [f"runs:{tmp_path}/", f"data:{job.recipe.data.root}"]


@pytest.fixture
def documents(sized, claims):
    return list(yaml.safe_load_all(manifest(sized, "registry/xfer:1", claims, "store")))


def test_kubernetes_and_kuberay_take_it(documents):
    assert [one["kind"] for one in documents] == ["ConfigMap", "RayJob"]
    for one in documents:
        check(one)


@pytest.mark.parametrize("where", ["spec", "spec.rayClusterSpec", "spec.rayClusterSpec.headGroupSpec.template.spec"])
def test_the_check_of_it_finds_what_they_do_not_know(documents, where):
    inside = documents[1]
    for name in where.split("."):
        inside = inside[name]
    inside["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        check(documents[1])


def test_it_is_sized_by_the_job_and_ends(documents, sized):
    spec = documents[1]["spec"]
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert [workers[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [2, 2, 2]
    assert workers["rayStartParams"] == {"num-cpus": "3", "num-gpus": "1"}
    (container,) = workers["template"]["spec"]["containers"]
    amounts = {"cpu": 9, "memory": "12Gi", "nvidia.com/gpu": 1}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert container["image"] == "registry/xfer:1"
    assert container["envFrom"] == [{"secretRef": {"name": "store"}}]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "6Gi"}} in workers["template"]["spec"][
        "volumes"
    ]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"], spec["shutdownAfterJobFinishes"]) == (5400, 3, True)
    head = spec["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"] == {"num-cpus": "0"}
    without = yaml.safe_load_all(
        manifest(replace(sized, gpus=0), "i", ["all:/" + sized.order.paths["output"][1:4]], None)
    )
    assert "gpu" not in str(list(without)[1])


def test_storage_is_mounted_in_all_pods_at_the_path_of_the_job(documents, tmp_path, job):
    cluster = documents[1]["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        claim = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["volumes"]
            if "persistentVolumeClaim" in volume
        }
        mounted = {one["mountPath"]: claim.get(one["name"]) for one in pod["containers"][0]["volumeMounts"]}
        assert mounted[str(tmp_path)] == "runs"
        assert mounted[job.recipe.data.root] == "data"


def test_the_job_in_it_is_the_job_and_is_run_by_the_head(documents, sized, job, tmp_path):
    config, ray_job = documents
    (tmp_path / "sent.yaml").write_text(config["data"]["job.yaml"])
    assert load(tmp_path / "sent.yaml", Job) == job
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "job", "configMap": {"name": config["metadata"]["name"]}} in head["volumes"]
    words = ray_job["spec"]["entrypoint"].split()
    assert words == f"exec python -m cluster.driver tiny train /etc/xfer/job.yaml {sized.order.folder}".split()
    assert {"name": "job", "mountPath": "/etc/xfer"} in head["containers"][0]["volumeMounts"]
    assert yaml.safe_load(ray_job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGTERM"


def test_a_token_is_asked_for_and_none_is_in_the_file(sized, claims, documents):
    assert documents[1]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    text = manifest(sized, "i", claims, "store").replace(sized.order.document, "")
    assert not re.search(r"[0-9a-f]{32}|TOKEN|password", text)
    assert "RAY_USAGE_STATS_ENABLED" in text


def test_paths_that_no_claim_holds_are_told_with_all_other_faults(sized):
    order = replace(sized.order, name="7_up", paths={"output": "/shared2/runs", "data.root": "/shared/a/b"})
    with pytest.raises(ConfigError) as caught:
        manifest(replace(sized, order=order), "i", ["a:/shared", "b:/shared/", "C:/x", "d:/dev/shm"], None)
    name, *claims, output = caught.value.faults
    assert "name: must begin with a letter" in name
    assert [claim.rpartition(" ")[2] for claim in claims] == ["b:/shared/", "C:/x", "d:/dev/shm"]
    assert output.startswith("output: /shared2/runs is on no claim (/shared, /dev/shm)")
    assert len(caught.value.faults) == 5


def test_names_are_as_kubernetes_has_them(sized, claims):
    order = replace(sized.order, name="Wide_2_")
    config, ray_job = yaml.safe_load_all(manifest(replace(sized, order=order), "i", claims, None))
    check(ray_job)
    assert ray_job["metadata"]["name"] == config["metadata"]["name"] == "wide-2"
    assert ray_job["spec"]["metadata"]["name"] == "Wide_2_"
