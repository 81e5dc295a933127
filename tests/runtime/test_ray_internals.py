"""The contract with Ray: what `ray_internals` assumes of what Ray does not promise, on the Ray that is installed."""

# Ray's compiled and generated modules show the type checker no names.
# pyright: reportAttributeAccessIssue=false

import asyncio
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import _raylet
from ray._private import parameter, services, utils
from ray._private.authentication import authentication_utils

from tests.support.ray_runs import processes
from ti2v_dist.runtime import ray_internals
from ti2v_dist.runtime.ray_internals import Unreachable, check_reachable, kept_environment, lean_start


def auth() -> tuple[str, dict[str, str]]:
    mode = authentication_utils.get_authentication_mode_name(_raylet.get_authentication_mode())
    return mode, _raylet.AuthenticationTokenLoader.instance().get_token_for_http_header()


@pytest.fixture
def clean() -> Iterator[None]:
    """No cluster and no token, neither in the environment nor in what Ray has read of it before."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_AUTH") or name == "RAY_ADDRESS"]:
            patch.delenv(name)
        ray_internals._read_environment()
        yield
    ray_internals._read_environment()


@pytest.fixture(scope="module")
def local() -> Iterator[str]:
    """The address of a local Ray as a run starts it: closed, with a token."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="t", dir="/tmp", ignore_cleanup_errors=True) as folder,
    ):
        for name in [name for name in os.environ if name.startswith("RAY_AUTH") or name == "RAY_ADDRESS"]:
            patch.delenv(name)
        with kept_environment(is_local=True):
            options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "_temp_dir": folder}
            with lean_start():
                found = ray.init(address="local", num_cpus=1, object_store_memory=80 * 2**20, **options)
            try:
                yield found.address_info["gcs_address"]
            finally:
                ray.shutdown()


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_rays_settings_are_as_before_whatever_happens(clean: None, error: type[BaseException] | None) -> None:
    before, was_open = dict(os.environ), ray_internals.constants.ENABLE_RAY_CLUSTER
    at_first = auth()
    seen: list[Any] = []
    with pytest.raises(error) if error else pytest.MonkeyPatch.context(), kept_environment(is_local=True):
        seen = [*auth(), ray_internals.constants.ENABLE_RAY_CLUSTER]
        os.environ["RAY_SOMETHING"] = "x"
        if error:
            raise error
    assert seen[0] == "token"
    assert seen[1]["authorization"].startswith("Bearer ")
    assert seen[2] is False
    assert dict(os.environ) == before
    assert auth() == at_first
    assert was_open == ray_internals.constants.ENABLE_RAY_CLUSTER


def test_two_local_clusters_have_two_tokens_and_a_users_own_is_kept(
    clean: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = []
    for _ in range(2):
        with kept_environment(is_local=True):
            tokens.append(auth()[1]["authorization"])
    assert len(set(tokens)) == 2
    own = secrets.token_hex(32)
    monkeypatch.setenv("RAY_AUTH_TOKEN", own)
    with kept_environment(is_local=True):
        assert auth() == ("token", {"authorization": f"Bearer {own}"})
    assert os.environ["RAY_AUTH_TOKEN"] == own


def test_a_local_ray_starts_what_it_needs_and_no_more(local: str) -> None:
    started = processes("RAY_AUTH_TOKEN", os.environ["RAY_AUTH_TOKEN"]).values()
    for name in ("gcs_server", "raylet/raylet ", "runtime_env/agent/main.py"):
        assert [command for command in started if name in command], name
    for name in ("dashboard/dashboard.py", "log_monitor.py", "autoscaler/_private/monitor.py"):
        assert not [command for command in started if name in command], name


def test_ray_is_as_it_was_once_it_has_started() -> None:
    def parts() -> list[Any]:
        return [
            services.start_api_server,
            services.get_node,
            parameter.RayParams,
            utils.get_dashboard_dependency_error,
        ]

    before = parts()
    with lean_start():
        within = parts()
    assert not [one for one, other in zip(before, within, strict=True) if one is other]
    assert parts() == before


def test_an_actor_without_a_gpu_sees_none(local: str) -> None:
    @ray.remote(num_cpus=0)
    class Actor:
        def sees(self) -> tuple[str | None, str | None]:
            before = os.environ.get("CUDA_VISIBLE_DEVICES")
            ray_internals.hide_gpus()
            return before, os.environ.get("CUDA_VISIBLE_DEVICES")

    actor: Any = Actor.remote()
    assert ray.get(actor.sees.remote()) == (os.environ.get("CUDA_VISIBLE_DEVICES"), "")
    ray.kill(actor)


def test_a_process_that_is_no_actors_keeps_its_gpus(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    ray_internals.hide_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"


def test_a_living_cluster_answers_and_another_token_is_refused(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_reachable(local)
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with kept_environment(is_local=False), pytest.raises(Unreachable, match="the token of RAY_AUTH_TOKEN"):
        check_reachable(local)
    monkeypatch.undo()
    ray_internals._read_environment()
    check_reachable(local)


def test_an_actor_has_a_state_and_a_node(local: str) -> None:
    @ray.remote(num_cpus=0)
    class Actor:
        def where(self) -> str:
            return ray.get_runtime_context().get_node_id()

    actor: Any = Actor.remote()
    here = ray.get(actor.where.remote())
    entry = asyncio.run(ray_internals.actor_entry(actor))
    assert (entry["State"], entry["Address"]["NodeID"]) == ("ALIVE", here)
    assert entry["Address"]["IPAddress"]
    ray.kill(actor)
    deadline = time.monotonic() + 30
    while (entry := asyncio.run(ray_internals.actor_entry(actor)))["State"] != "DEAD":
        assert time.monotonic() < deadline
    assert ray_internals.reason_of(entry["DeathCause"]) == "died"


def test_a_worker_keeps_off_the_nodes_that_it_is_to_avoid(local: str) -> None:
    (node,) = ray_internals.nodes()
    assert node["Labels"]["ray.io/node-id"] == node["NodeID"]
    assert node["Resources"]["CPU"] == 1
    assert "GPU" not in node["Resources"], "what a node has none of is not named"
    others = ",".join(["0" * 56, "1" * 56])

    @ray.remote(num_cpus=0)
    def ping() -> str:
        return "pong"

    assert ray.get(ping.options(label_selector={"ray.io/node-id": f"!in({others})"}).remote(), timeout=60) == "pong"
    waits = ping.options(label_selector={"ray.io/node-id": f"!in({others},{node['NodeID']})"}).remote()
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(waits, timeout=2)
    ray.cancel(waits)


def test_nodes_are_listed_and_drained(local: str) -> None:
    (node,) = ray_internals.nodes()
    assert ray_internals.addresses_of_nodes(local) == {node["NodeID"]: node["NodeManagerAddress"]}
    assert asyncio.run(ray_internals.draining_nodes()) == set()
    accepted, why_not = ray_internals.drain(local, "0" * 56, "spot", round(time.time() * 1000) + 60_000)
    assert accepted or why_not, "a node that is gone is no error"
    assert ray_internals.most_resources() == {}
