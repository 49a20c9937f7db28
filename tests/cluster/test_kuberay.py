"""The Kubernetes manifests: read by Ray's own autoscaler, and consistent with the image and with themselves."""

import re
import shlex
from typing import Any

import pytest
import yaml

from tests.cluster.dockerfile import arguments, working_directory
from tests.docs.commands import CLUSTER, ROOT, check

pytest.importorskip("ray")

UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CLUSTER / "kuberay" / name).read_text())
    return loaded


JOB = manifest("rayjob.yaml")
CLUSTERS = {"raycluster.yaml": manifest("raycluster.yaml")["spec"], "rayjob.yaml": JOB["spec"]["rayClusterSpec"]}
GROUPS = [
    pytest.param(group, id=f"{file}-{group.get('groupName', 'head')}")
    for file, spec in CLUSTERS.items()
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
]


@pytest.mark.parametrize(("file", "kind"), [("raycluster.yaml", "RayCluster"), ("rayjob.yaml", "RayJob")])
def test_kind(file: str, kind: str) -> None:
    assert (manifest(file)["apiVersion"], manifest(file)["kind"]) == ("ray.io/v1", kind)
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", manifest(file)["metadata"]["name"])


@pytest.mark.parametrize("spec", CLUSTERS.values(), ids=CLUSTERS.keys())
def test_ray_reads_the_groups(spec: dict[str, Any]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.util import validate_config

    assert spec["enableInTreeAutoscaling"] is True
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "default"}, "spec": spec})
    validate_config(config)
    nodes = config["available_node_types"]
    assert nodes["headgroup"]["resources"]["CPU"] == 0
    assert nodes["gpu"]["resources"]["GPU"] == 1
    assert nodes["gpu"]["resources"]["CPU"] > 1  # a training worker, and its batches
    assert nodes["gpu"]["min_workers"] == 0 < nodes["gpu"]["max_workers"]


@pytest.mark.parametrize("group", GROUPS)
def test_pod(group: dict[str, Any]) -> None:
    pod = group["template"]["spec"]
    (container,) = pod["containers"]
    assert container["name"] == ("ray-worker" if "groupName" in group else "ray-head")
    assert pod["restartPolicy"] == "Never"
    assert pod["serviceAccountName"] == "spatialavatar"
    assert container["resources"]["requests"] == container["resources"]["limits"]
    has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
    assert has_gpu == (group.get("groupName") == "gpu")
    assert has_gpu == (
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod.get("tolerations", [])
    )
    assert all(isinstance(value, str) for value in group["rayStartParams"].values())  # Kubernetes takes nothing else
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("group", GROUPS)
def test_objects_fit_into_shared_memory_and_that_into_the_limit(group: dict[str, Any]) -> None:
    pod = group["template"]["spec"]
    (shm,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm"]
    assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    assert shm["medium"] == "Memory"
    limit = _bytes(pod["containers"][0]["resources"]["limits"]["memory"])
    assert int(group["rayStartParams"]["object-store-memory"]) < _bytes(shm["sizeLimit"]) < limit / 2


def test_job() -> None:
    spec = JOB["spec"]
    words = shlex.split(spec["entrypoint"])
    values = check(words)
    assert words[2] == "ray_jobs.train" and str(values["out"]).startswith("s3://")
    assert spec["shutdownAfterJobFinishes"] is True and spec["ttlSecondsAfterFinished"] > 0
    (gpu,) = [group for group in spec["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu"]
    assert values["workers"] == gpu["replicas"] <= gpu["maxReplicas"]


def test_jobs_settings_lie_where_it_looks_for_them() -> None:
    config = ROOT / shlex.split(JOB["spec"]["entrypoint"])[4]
    head = CLUSTERS["rayjob.yaml"]["headGroupSpec"]["template"]["spec"]
    assert {"name": "configs", "configMap": {"name": "spatialavatar-configs"}} in head["volumes"]
    mount = {"name": "configs", "mountPath": f"{working_directory()}/configs"}
    assert mount in head["containers"][0]["volumeMounts"]
    assert config.parent == ROOT / "configs"  # a ConfigMap of a folder holds the files right in it


def test_one_image_everywhere() -> None:
    used = re.findall(r"REGISTRY/[\w.:-]+", "".join(p.read_text() for p in CLUSTER.rglob("*") if p.is_file()))
    assert len(used) > 5 and len(set(used)) == 1
    for spec in CLUSTERS.values():
        assert spec["rayVersion"] == arguments()["RAY_VERSION"]


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]
