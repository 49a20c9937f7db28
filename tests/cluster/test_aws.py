"""aws.yaml by Ray's own checks, and against what EC2 says of the instance types (as moto knows it)."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.commands import CLUSTER

pytest.importorskip("ray")
pytest.importorskip("moto")

from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start


@pytest.fixture
def config() -> dict[str, Any]:
    prepared: dict[str, Any] = prepare_config(yaml.safe_load((CLUSTER / "aws.yaml").read_text()))
    return prepared


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import boto3
    from moto import mock_aws

    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    with mock_aws():
        yield boto3.client("ec2", region_name="us-west-2")


def test_ray_takes_it(config: dict[str, Any]) -> None:
    validate_config(config)
    assert config["head_node_type"] == "head"
    assert config["available_node_types"]["head"]["max_workers"] == 0


def test_workers_are_spot_start_at_none_and_fit_into_the_limit(config: dict[str, Any]) -> None:
    workers = {name: node for name, node in config["available_node_types"].items() if name != config["head_node_type"]}
    assert any(node["resources"].get("GPU") for node in workers.values())
    assert sum(node["max_workers"] for node in workers.values()) <= config["max_workers"]
    for node in workers.values():
        assert node["min_workers"] == 0
        assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in config["available_node_types"]["head"]["node_config"]


def test_resources_are_those_of_the_instance_types(config: dict[str, Any], ec2: Any) -> None:
    for name, node in config["available_node_types"].items():
        wanted = node["node_config"]["InstanceType"]
        (kind,) = ec2.describe_instance_types(InstanceTypes=[wanted])["InstanceTypes"]
        cpus = kind["VCpuInfo"]["DefaultVCpus"]
        gpus = sum(card["Count"] for card in kind.get("GpuInfo", {}).get("Gpus", []))
        assert node["resources"].get("GPU", 0) == gpus, wanted
        assert node["resources"]["CPU"] == (cpus // 2 if name == "head" else cpus), wanted
        commands = config["head_start_ray_commands" if name == "head" else "worker_start_ray_commands"]
        assert _start_options(commands)["object_store_memory"] < 0.3 * kind["MemoryInfo"]["SizeInMiB"] * 2**20


def test_ray_finds_network_keys_and_profiles(
    config: dict[str, Any], ec2: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ray.autoscaler._private.aws.config import bootstrap_aws

    monkeypatch.setenv("HOME", str(tmp_path))
    ready = bootstrap_aws(config)
    for node in ready["available_node_types"].values():
        assert node["node_config"]["SubnetIds"] and node["node_config"]["SecurityGroupIds"]
        assert node["node_config"]["IamInstanceProfile"]["Name"].startswith("spatialavatar-")
    group = ready["available_node_types"]["gpu"]["node_config"]["SecurityGroupIds"]
    rules = ec2.describe_security_groups(GroupIds=group)["SecurityGroups"][0]["IpPermissions"]
    assert {rule.get("FromPort") for rule in rules if rule["IpRanges"]} == {22}  # what the file says of it


def test_the_image_is_left_as_it_is(config: dict[str, Any]) -> None:
    assert "docker" in config
    for commands in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert config[commands] == []


def test_start_commands(config: dict[str, Any]) -> None:
    head, worker = (_start_options(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert head["head"] and head["autoscaling_config"] and head["dashboard_host"] == "127.0.0.1"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"


def _start_options(commands: list[str]) -> dict[str, Any]:
    """Of the command that starts Ray; click refuses what ``ray start`` has not."""
    (command,) = [words for words in map(shlex.split, commands) if words[:2] == ["ray", "start"]]
    with start.make_context("start", command[2:]) as context:
        return dict(context.params)
