"""Ray's launcher files: Ray's own schema takes them, AWS's own client makes their machines of them, the head stays."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.client import BaseClient
from jsonschema import ValidationError
from moto import mock_aws
from ray._private.label_utils import parse_node_labels_string, validate_node_label_syntax
from ray.autoscaler._private.aws import config as aws_config
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.commands import ray_start_options, ti2v_options
from tests.support.places import ROOT
from ti2v_dist.runtime.spot import CLOUDS

FILES = [ROOT / "clusters" / name for name in ("local.yaml", "aws-spot.yaml", "gcp-spot.yaml")]
SPOT = {"aws": "aws-spot.yaml", "gce": "gcp-spot.yaml"}
"""The file of each cloud that gives notice of a machine's end, by the cloud's name for `ti2v spot-watch`."""
MARKET = "ray.io/market-type"
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
each_cloud = pytest.mark.parametrize("cloud", CLOUDS)


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "clusters" / name).read_text())


def commands(config: dict[str, Any]) -> list[str]:
    return [line for key, lines in config.items() if key.endswith("_commands") for line in lines]


def starts(config: dict[str, Any]) -> list[str]:
    """The `ray start` lines of a head and of a worker."""
    return [line for line in commands(config) if "ray start" in line]


def is_spot(node: dict[str, Any]) -> bool:
    """Whether the cloud, not we, calls a node's machine one that may vanish."""
    config = node["node_config"]
    options = (config.get("InstanceMarketOptions", {}).get("MarketType"), config.get("scheduling", {}))
    return options[0] == "spot" or options[1].get("provisioningModel") == "SPOT"


@each_file
def test_ray_accepts_the_file(path: Path) -> None:
    validate_config(prepare_config(yaml.safe_load(path.read_text())))


def test_ray_refuses_a_misspelt_key() -> None:
    config = load("aws-spot.yaml")
    config["max_worker"] = config.pop("max_workers")
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


@each_file
def test_every_node_starts_with_a_token(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    in_containers = "--env RAY_AUTH_MODE=token" in config.get("docker", {}).get("run_options", [])
    assert len(starts(config)) == 2
    assert in_containers or all(line.startswith("RAY_AUTH_MODE=token ") for line in starts(config))
    assert "~/.ray/auth_token" in config["file_mounts"].values()


@each_file
def test_ray_takes_the_options_of_its_starts(path: Path) -> None:
    head, worker = (ray_start_options(line) for line in starts(yaml.safe_load(path.read_text())))
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1"
    assert not worker["head"]
    assert worker["address"] == "$RAY_HEAD_IP:6379"


@each_file
def test_setup_installs_this_checkout_and_names_no_host(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    (target,) = [remote for remote, local in config["file_mounts"].items() if local == "."]
    client = {"aws": "s3", "gcp": "gcs", "local": "s3"}[config["provider"]["type"]]
    assert any(
        f"cd {target} && " in line and f"-c constraints.txt -e '.[{client}]'" in line for line in commands(config)
    )
    for line in commands(config):
        assert "://" not in line
        assert not re.search(r"--(index-url|extra-index-url|find-links|trusted-host)", line)
    assert {".git", ".venv", "runs"} <= set(config["rsync_exclude"])


@each_cloud
def test_spot_workers_are_labelled_and_the_head_stays(cloud: str) -> None:
    config = load(SPOT[cloud])
    types = config["available_node_types"]
    for name, node in types.items():
        validate_node_label_syntax(node["labels"])
        assert node["labels"][MARKET] == ("spot" if is_spot(node) else "on-demand"), name
    head = types[config["head_node_type"]]
    assert head["labels"][MARKET] == "on-demand"
    assert "GPU" not in head["resources"]
    workers = [node for node in types.values() if is_spot(node)]
    assert len(workers) == len(types) - 1
    assert (
        len({node["node_config"].get("InstanceType", node["node_config"].get("machineType")) for node in workers}) > 1
    )
    assert sum(node["max_workers"] for node in workers) <= config["max_workers"]
    for node in workers:
        assert node["resources"]["GPU"] >= 1
        assert node["min_workers"] >= 1, "a class of workers that dies out leaves its videos waiting"


@each_cloud
def test_spot_workers_watch_for_the_end_of_their_machine(cloud: str) -> None:
    lines = load(SPOT[cloud])["worker_start_ray_commands"]
    (watch,) = [line for line in lines if "spot-watch" in line]
    assert lines.index(watch) > max(number for number, line in enumerate(lines) if "ray start" in line)
    told = ti2v_options(re.sub(r" > .*", "", watch.partition("nohup ")[2]))
    assert told == {"verb": "spot-watch", "cloud": cloud, "address": "$RAY_HEAD_IP:6379"}


@each_cloud
def test_a_machine_fetches_weights_once(cloud: str) -> None:
    """The hub's cache lies on the machine and belongs to the container's user before Docker mounts it."""
    config = load(SPOT[cloud])
    options = " ".join(config["docker"]["run_options"])
    cache, mount = re.findall(r"--env HF_HOME=(\S+)", options), re.findall(r"-v ([^:\s]+):(\S+)", options)
    assert [inside for _, inside in mount] == cache
    (line,) = config["initialization_commands"]
    assert line.endswith(mount[0][0])


def test_local_machines_are_on_demand() -> None:
    for line in starts(load("local.yaml")):
        assert parse_node_labels_string(ray_start_options(line)["labels"])[MARKET] == "on-demand"


@each_cloud
def test_head_and_workers_have_roles_of_their_own_and_no_keys(cloud: str) -> None:
    config = load(SPOT[cloud])
    role = {
        name: node["node_config"].get("IamInstanceProfile") or node["node_config"]["serviceAccounts"]
        for name, node in config["available_node_types"].items()
    }
    head = role.pop(config["head_node_type"])
    assert {json.dumps(of_worker) for of_worker in role.values()} == {json.dumps(next(iter(role.values())))}
    assert "ti2v-head" in json.dumps(head)
    assert "ti2v-worker" in json.dumps(role)
    assert "cloud-platform" not in json.dumps([head, role]), "the scope of everything"
    assert "auth/compute" not in json.dumps(role), "a worker starts no machines"


# AWS, with its own client and Ray's own provider on a stand-in of the cloud


class Calls(list[str]):
    """Names of the calls that are made of AWS, as its policies write them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        original: Any = BaseClient._make_api_call  # pyright: ignore[reportAttributeAccessIssue]

        def make(client: Any, operation: str, arguments: Any) -> Any:
            self.append(f"{client.meta.service_model.service_name}:{operation}")
            return original(client, operation, arguments)

        patch.setattr(BaseClient, "_make_api_call", make)


@contextmanager
def aws() -> Iterator[None]:
    """A simulated AWS in this process; the buckets of the server that lives here too stay."""
    simulated = mock_aws()
    simulated.start(reset=False)
    try:
        yield
    finally:
        simulated.stop(remove_data=False)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Calls]]:
    """The machine of each type of node as AWS describes it, and what a head asks of AWS."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    with pytest.MonkeyPatch.context() as patch, aws():
        keys = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}
        for name, value in {**keys, "HOME": str(home), "MOTO_EC2_LOAD_DEFAULT_AMIS": "false"}.items():
            patch.setenv(name, value)
        iam = boto3.client("iam", "us-west-2")
        for name in ("ti2v-head", "ti2v-worker"):
            iam.create_instance_profile(InstanceProfileName=name)
        config = aws_config.bootstrap_aws(prepare_config(load("aws-spot.yaml")))
        patch.setattr(node_provider, "TAG_BATCH_DELAY", 0.0)
        calls = Calls(patch)
        provider = node_provider.AWSNodeProvider(config["provider"], config["cluster_name"])
        made = {}
        for name, node in config["available_node_types"].items():
            (started,) = provider.create_node(node["node_config"], {"ray-node-name": name}, 1).values()
            made[name] = provider._get_node(started.id).meta.data
        provider.set_node_tags(made["l4-spot"]["InstanceId"], {"ray-node-status": "up-to-date"})
        provider.terminate_nodes(provider.non_terminated_nodes({}))
        yield made, calls


def test_aws_starts_what_the_file_says(launched: tuple[dict[str, Any], Calls]) -> None:
    made, _ = launched
    for name, node in load("aws-spot.yaml")["available_node_types"].items():
        assert made[name]["InstanceType"] == node["node_config"]["InstanceType"]
        assert made[name].get("InstanceLifecycle", "on-demand") == node["labels"][MARKET]
        assert made[name]["IamInstanceProfile"]["Arn"].endswith(node["node_config"]["IamInstanceProfile"]["Name"])


def statements(name: str) -> list[dict[str, Any]]:
    found = json.loads((ROOT / "clusters" / name).read_text())["Statement"]
    return [{**one, "Action": [one["Action"]] if isinstance(one["Action"], str) else one["Action"]} for one in found]


def test_the_heads_policy_allows_what_rays_autoscaler_asks_for(launched: tuple[dict[str, Any], Calls]) -> None:
    _, calls = launched
    allowed = {action for statement in statements("aws-head-policy.json") for action in statement["Action"]}
    assert set(calls) == allowed - {"iam:PassRole"}  # which is asked for by RunInstances


@pytest.mark.parametrize("name", ["aws-head-policy.json", "aws-bucket-policy.json"])
def test_a_policy_allows_no_more_than_it_says(name: str) -> None:
    for statement in statements(name):
        assert statement["Effect"] == "Allow"
        assert not [action for action in statement["Action"] if "*" in action]
        looks = all(action.startswith("ec2:Describe") for action in statement["Action"])
        assert statement["Resource"] != "*" or looks or statement["Condition"], statement["Sid"]


def test_the_buckets_policy_deletes_no_record() -> None:
    (delete,) = [one for one in statements("aws-bucket-policy.json") if "s3:DeleteObject" in one["Action"]]
    folders = [re.fullmatch(r"arn:aws:s3:::BUCKET/\*/(?:\.ti2v/)?(\w+)/\*", place) for place in delete["Resource"]]
    assert {found[1] for found in folders if found} == {"probe", "progress", "usage", "report"}
    assert len(folders) == 4
