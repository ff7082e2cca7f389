"""A cluster file for `ray up`: what Ray takes, and what it makes it do."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from cluster.manifest.vm import manifest
from cluster.session import set_environment
from shards.settings import ConfigError

set_environment()  # before Ray is imported


@pytest.fixture
def content(order):
    return yaml.safe_load(manifest(order, ["h1", "10.0.0.2", "h3"], "me", "~/.ssh/key", "/opt/my env/bin/python"))


def test_ray_takes_it(content):
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    jsonschema.validate(content, schema)
    prepared = prepare_config(content)
    validate_config(prepared)
    assert prepared["available_node_types"]["local.cluster.node"]["min_workers"] == 2
    with pytest.raises(jsonschema.ValidationError, match="worker_ip"):
        jsonschema.validate({**content, "worker_ip": "h2"}, schema)


def test_the_first_host_is_the_head(content):
    assert content["provider"] == {"type": "local", "head_ip": "h1", "worker_ips": ["10.0.0.2", "h3"]}
    assert content["auth"] == {"ssh_user": "me", "ssh_private_key": "~/.ssh/key"}
    assert content["max_workers"] == 2


def test_every_host_asks_for_the_token_of_this_machine(content):
    assert content["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for side in ("head", "worker"):
        (start,) = [line for line in content[f"{side}_start_ray_commands"] if " start " in line]
        assert start.startswith("export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0;")
        assert "'/opt/my env/bin/python' -m ray.scripts.scripts start" in start
    assert "--dashboard-host=127.0.0.1" in content["head_start_ray_commands"][1]


def test_hosts_that_are_none_are_told_at_once(order):
    with pytest.raises(ConfigError) as caught:
        manifest(order, ["h1", "", "h1", "a b", "-x", "fd00::2"], "me", None, "python")
    assert [fault.split(": ")[1].split()[0] for fault in caught.value.faults] == ["''", "'a", "'-x'", "h1"]
