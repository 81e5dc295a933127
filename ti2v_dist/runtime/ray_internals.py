"""Everything that we use of Ray without Ray's promise to keep it: private modules, compiled ones, raw messages.

Nobody else touches those. `tests/runtime/test_ray_internals.py` is the contract: it asserts on the installed Ray
whatever is assumed here.
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import ray
from ray import _raylet
from ray._private import parameter, ray_constants, services, utils
from ray._private import state as ray_state
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import autoscaler_pb2, gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import RayError, RpcError

from ti2v_dist.runtime.threads import control

LOCAL_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch, with an odd name, for a cluster whose ports only this machine can reach: "0"."""
AUTH_MODE, AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
GCS_TIMEOUT_S = 10.0
HIDDEN_GPUS = "CUDA_VISIBLE_DEVICES"
NODE_POLL_S = 0.05

# Compiled and generated modules show the type checker no names.
raylet: Any = _raylet
autoscaler: Any = autoscaler_pb2
gcs_messages: Any = gcs_service_pb2
constants: Any = ray_constants


class Unreachable(Exception):
    """Nobody answers as a Ray cluster does, or not to us; the text says which."""


@contextmanager
def kept_environment(is_local: bool) -> Iterator[None]:
    """Ray's settings of this process: as they should be inside the context, and as they were before once it ends.

    Those of a local cluster of our own: closed to other machines, and with a token, since anybody who reaches a port
    of a cluster without one can run code in it. Ray reads its environment once, at import, hence the other settings.
    """
    before = {name: value for name, value in os.environ.items() if _is_rays(name)}
    was_open = constants.ENABLE_RAY_CLUSTER
    try:
        if is_local:
            os.environ.setdefault(LOCAL_ONLY, "0")
            constants.ENABLE_RAY_CLUSTER = os.environ[LOCAL_ONLY].lower() in ("1", "true")
            os.environ.setdefault(AUTH_MODE, "token")
            os.environ.setdefault(AUTH_TOKEN, secrets.token_hex(32))
        _read_environment()
        yield
    finally:
        for name in [name for name in os.environ if _is_rays(name) and name not in before]:
            del os.environ[name]
        os.environ.update(before)
        constants.ENABLE_RAY_CLUSTER = was_open
        _read_environment()


def _is_rays(name: str) -> bool:
    return name.startswith("RAY_") or name == "PYTHONBREAKPOINT"  # which Ray sets as it starts


def _read_environment() -> None:
    """Let Ray's compiled part read its configuration and its token anew."""
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def lean_start() -> Iterator[None]:
    """Inside, Ray starts a cluster without what nobody asks of a local one of ours, half of its start and of its end:

    an API server that serves nothing, a monitor that scales no nodes, a reader of logs for a driver that wants none,
    and a metrics server beside ours. Nor does it look only once a second whether its node is there.
    """
    node, parameters = services.get_node, cast(Any, parameter.RayParams)
    changed: list[tuple[Any, str, Any]] = [
        (services, "start_api_server", lambda *_, **__: ("", None)),
        (services, "get_node", lambda address, node_id: _node_at_once(node, address, node_id)),
        (parameter, "RayParams", partial(parameters, include_log_monitor=False, no_monitor=True)),
        (utils, "get_dashboard_dependency_error", lambda: ImportError("ray without its extras is enough")),
    ]
    before = [getattr(module, name) for module, name, _ in changed]
    try:
        for module, name, ours in changed:
            setattr(module, name, ours)
        yield
    finally:
        for (module, name, _), rays in zip(changed, before, strict=True):
            setattr(module, name, rays)


def _node_at_once(get_node: Any, address: str, node_id: str) -> Any:
    """Ray's entry of a node, once it has one: its own wait is a second long, whenever the node comes."""
    client, deadline = _gcs(address), time.monotonic() + GCS_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(RpcError):  # on a busy machine the store is slow at first
            if node_id in {key.hex() for key in client.get_all_node_info(timeout=GCS_TIMEOUT_S)}:
                break
        time.sleep(NODE_POLL_S)
    return get_node(address, node_id)


def hide_gpus() -> None:
    """Let the process of an actor see no GPU unless that has one of its own: Ray would show it all of them.

    Said here and not in a `runtime_env`, for which Ray would start another process than those that it has ready.
    """
    here = ray.get_runtime_context() if ray.is_initialized() else None
    if here and here.get_actor_id() and not here.get_accelerator_ids().get("GPU"):
        os.environ[HIDDEN_GPUS] = ""


async def is_restarted() -> bool:
    """Whether Ray has begun this actor anew after it died; False where it does not say."""
    try:
        entry = await control(ray_state.actors, ray.get_runtime_context().get_actor_id()) or {}
    except RayError:
        return False
    return int(entry.get("NumRestarts", 0)) > 0


def check_reachable(address: str, timeout_s: float = GCS_TIMEOUT_S) -> None:
    """Raise `Unreachable` unless the control store (GCS) of a cluster answers at `address`, `host:port` or `auto`.

    Ray's own client of it waits for minutes, and some of its failures end the process.
    """
    import grpc

    if address.startswith("ray://"):
        return _check_client_server(address.removeprefix("ray://"), timeout_s)
    if "://" in address:
        return  # of a plug-in of Ray, which alone knows what it is
    try:
        found = services.canonicalize_bootstrap_address(address)
    except Exception as error:
        raise Unreachable(str(error)) from error
    if found is None:
        raise Unreachable("no Ray runs on this machine")
    # As Ray's own clients: a proxy of this environment does not lead to a cluster.
    channel: Any = init_grpc_channel(found, options=[("grpc.enable_http_proxy", 0)])
    try:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        stub.CheckAlive(gcs_messages.CheckAliveRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
        told: Any = error
        if told.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise Unreachable(f"it does not take the token of {AUTH_TOKEN} or ~/.ray/auth_token") from error
        if told.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
            raise Unreachable(f"no answer within {timeout_s:g} s") from error
        raise Unreachable(told.details().rpartition("last error: ")[2]) from error
    finally:
        channel.close()


def _check_client_server(address: str, timeout_s: float) -> None:
    import grpc

    channel: Any = init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout=timeout_s)
    except grpc.FutureTimeoutError as error:
        raise Unreachable(f"no answer within {timeout_s:g} s") from error
    finally:
        channel.close()


def most_resources() -> dict[str, float]:
    """What an autoscaler may bring the cluster to; {} where there is none, or no bound."""
    found = ray_state.state.get_max_resources_from_cluster_config() or {}
    return {name: count for name, count in found.items() if count}


def id_of(actor: Any) -> str:
    """The id of a handle's actor: another actor may have its name later."""
    return actor._actor_id.hex()


async def actor_entry(actor: Any) -> dict[str, Any]:
    """What Ray's control store knows of an actor: State, Address (IPAddress, NodeID), DeathCause; {} for nothing."""
    return await control(ray_state.actors, id_of(actor)) or {}


async def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to be taken away; none while the control store is silent."""
    try:
        return set(await control(ray_state.state.get_draining_nodes))
    except RpcError:
        return set()


def nodes() -> list[dict[str, Any]]:
    """The living nodes: NodeID, NodeManagerAddress, Resources and Labels, each with a value."""
    empty = {"NodeID": "", "NodeManagerAddress": "", "Resources": {}, "Labels": {}}
    return [{**empty, **{k: v for k, v in node.items() if v}} for node in ray.nodes() if node.get("Alive")]


def reason_of(cause: Any) -> str:
    """Ray's own record of an actor's death, an `ActorDeathCause`, as a key of `losses.LOSSES`."""
    if cause.HasField("oom_context"):
        return "host_oom"
    context = cause.actor_died_error_context
    if context.node_death_info.reason == context.node_death_info.AUTOSCALER_DRAIN_PREEMPTED:
        return "preempted"
    return "node_died" if context.reason == context.NODE_DIED else "died"


def addresses_of_nodes(address: str) -> dict[str, str]:
    """The IP address of each living node of the cluster at `address`, by the node's id."""
    found = _gcs(address).get_all_node_info(timeout=GCS_TIMEOUT_S)
    return {key.hex(): node.node_manager_address for key, node in found.items() if node.state == node.ALIVE}


def drain(address: str, node_id: str, message: str, deadline_ms: int) -> tuple[bool, str]:
    """What `ray drain-node` does for a preemption: a notice, which ends nothing. Returns whether Ray took it, or why
    not. `deadline_ms` is in Unix milliseconds."""
    return _gcs(address).drain_node(node_id, autoscaler.DRAIN_NODE_REASON_PREEMPTION, message, deadline_ms)


def _gcs(address: str) -> Any:
    return raylet.GcsClient(address=address)
