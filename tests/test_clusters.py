"""Cluster files: Ray's own schema takes them, none holds a secret, and the coordinator's machine is one that stays."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError
from ray._private.label_utils import parse_node_labels_string, validate_node_label_syntax
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.support.places import ROOT
from ti2v_dist.runtime.spot import CLOUDS

FILES = sorted((ROOT / "clusters").glob("*.yaml"))
MARKET = "ray.io/market-type"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / "clusters" / name).read_text())


def commands(config: dict[str, Any]) -> list[str]:
    return [line for key, lines in config.items() if key.endswith("_commands") for line in lines]


def market_of(start_commands: list[str]) -> str:
    """The market type that the one `ray start` line of a node gives it."""
    (start,) = [line for line in start_commands if "ray start" in line]
    labels = re.search(r"--labels=(\S+)", start)
    assert labels, start
    return parse_node_labels_string(labels[1])[MARKET]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_accepts_the_file(path: Path) -> None:
    validate_config(prepare_config(yaml.safe_load(path.read_text())))


def test_ray_refuses_a_misspelt_key() -> None:
    config = load("aws-spot.yaml")
    config["max_worker"] = config.pop("max_workers")
    with pytest.raises(ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_node_starts_with_a_token(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    in_containers = "--env RAY_AUTH_MODE=token" in config.get("docker", {}).get("run_options", [])
    starts = [line for line in commands(config) if "ray start" in line]
    assert len(starts) == 2
    assert in_containers or all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert "~/.ray/auth_token" in config["file_mounts"].values()
    assert all("--dashboard-host=127.0.0.1" in line for line in starts if "--head" in line)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_setup_installs_this_checkout_and_names_no_host(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    (target,) = [remote for remote, local in config["file_mounts"].items() if local == "."]
    assert any(f"cd {target} && " in line and "-c constraints.txt -e '.[s3]'" in line for line in commands(config))
    for line in commands(config):
        assert "://" not in line
        assert not re.search(r"--(index-url|extra-index-url|find-links|trusted-host)", line)
    assert {".git", ".venv", "runs"} <= set(config["rsync_exclude"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_secret_in_the_file(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|(secret|password|RAY_AUTH_TOKEN)\s*[:=]", text)
    assert os.path.expanduser("~/") not in text


def test_spot_workers_are_labelled_and_the_head_stays() -> None:
    config = load("aws-spot.yaml")
    types = config["available_node_types"]
    for name, node in types.items():
        validate_node_label_syntax(node["labels"])
        is_spot = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        assert node["labels"][MARKET] == ("spot" if is_spot else "on-demand"), name
        assert node["node_config"]["IamInstanceProfile"], f"{name} reaches no bucket"
    head = types[config["head_node_type"]]
    assert head["labels"][MARKET] == "on-demand"
    assert "GPU" not in head["resources"]
    workers = [node for node in types.values() if node["labels"][MARKET] == "spot"]
    assert workers
    for node in workers:
        assert node["resources"]["GPU"] >= 1
        assert 0 <= node["min_workers"] <= node["max_workers"] <= config["max_workers"]


def test_spot_workers_watch_for_the_end_of_their_machine() -> None:
    starts = load("aws-spot.yaml")["worker_start_ray_commands"]
    (watch,) = [line for line in starts if "spot-watch" in line]
    assert f"ti2v spot-watch {load('aws-spot.yaml')['provider']['type']} --address=$RAY_HEAD_IP:6379" in watch
    assert starts.index(watch) > max(number for number, line in enumerate(starts) if "ray start" in line)
    assert load("aws-spot.yaml")["provider"]["type"] in CLOUDS


def test_local_machines_are_on_demand() -> None:
    config = load("local.yaml")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert market_of(config[key]) == "on-demand"


def test_the_image_has_the_pinned_ray() -> None:
    (pinned,) = re.findall(r"(?m)^ray==(\S+)$", (ROOT / "constraints.txt").read_text())
    docker = load("aws-spot.yaml")["docker"]
    for image in (docker["head_image"], docker["worker_image"]):
        assert image.startswith(f"rayproject/ray:{pinned}-py311")
