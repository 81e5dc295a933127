"""Makes a plan's videos on Ray: starts or joins a cluster, starts the coordinator or attaches to it, follows it."""

import json
import logging
import os
import secrets
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ti2v_dist import views
from ti2v_dist.config import RunConfig
from ti2v_dist.errors import InputError, RunError
from ti2v_dist.planning import Work, prepare

NAMESPACE = "ti2v"
MARKET_TYPE = "ray.io/market-type"
"""Ray's label of a node: where some are on-demand, the coordinator stays on those."""
POLL_S = 0.5
SIGNAL_POLL_S = 0.05
ANSWER_TIMEOUT_S = 60
"""Long enough for a coordinator that is started again on another node."""
WAITING_FOR_WORKERS_S = 10

Listener = Callable[[dict[str, Any]], None]


def run(
    manifest: str,
    output: str,
    config: RunConfig | None = None,
    *,
    address: str | None = None,
    detach: bool = False,
    takeover: bool = False,
    listener: Listener = lambda progress: None,
) -> dict[str, Any]:
    """Make every video of a manifest; the same call again goes on where an interrupted one stopped.

    Starts a local Ray unless `address` or RAY_ADDRESS names a cluster; there, `detach` returns at once and leaves the
    run going, and `takeover` ends a coordinator of this run that does not answer. `listener` gets the progress twice a
    second. Returns the summary that is also written to `summary.json`: its `status` is "finished", "failed_rows",
    "interrupted" or "running"; `signal` is the one that interrupted it.
    """
    address = check_address(address, detach)
    work = prepare(manifest, output, config or RunConfig())
    return make(work, address=address, detach=detach, takeover=takeover, listener=listener)


def check_address(address: str | None, detach: bool) -> str | None:
    """The cluster to join, None for a local one of our own; `ValueError` if that one would have to be left going."""
    address = address or os.environ.get("RAY_ADDRESS")
    if detach and not address:
        raise InputError("--detach needs a cluster that outlives this process: give --address or RAY_ADDRESS")
    return address


def make(
    work: Work,
    *,
    address: str | None = None,
    detach: bool = False,
    takeover: bool = False,
    listener: Listener = lambda progress: None,
) -> dict[str, Any]:
    """Make what is left of a prepared plan, as `run` does."""
    if work.is_done:
        return views.write(work.store, work.plan.lines.keys(), (), {}, report=True)
    # Ray sets a SIGTERM handler of its own when it connects: ours comes after it.
    with _ray(address) as ray, _signals() as received:
        coordinator = _coordinator(ray, work, address is not None, takeover)
        coordinator.ask("report", work.plan.sha256)
        if detach:
            return {"status": "running", "output": work.store.url}
        summary = _follow(ray, coordinator, work.plan.sha256, received, listener)
        return {**summary, **({"signal": received[0]} if received else {})}


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one dies."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def on_signal(number: int, _: Any) -> None:
        received.append(number)
        if len(received) > 1:
            raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """A connection to the cluster, or a local one of our own that ends with this process."""
    if address is None:
        # Nobody but this machine is to reach a port of the local cluster: Ray's own switch for that has an odd name.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Without a token anybody who does can run code in it.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    from ray import _raylet

    if address is None and os.environ["RAY_AUTH_MODE"] == "token":
        # A program that imported Ray before has it without a token: Ray reads its environment once.
        raylet: Any = _raylet
        raylet.Config.initialize(json.dumps({"AUTH_MODE": "token"}))
    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    try:
        ray.init(
            address=address or "local", namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **options
        )
    except Exception as error:
        # A bare Exception is how Ray says that it did not start within its 30 s, as on a very busy machine.
        if type(error) is not Exception:
            raise
        raise RunError(f"Ray did not start; try the same command again: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


class _Coordinator:
    """The coordinator's actor, seen from here: it may be started again between two calls."""

    def __init__(self, ray: Any, name: str, actor: Any):
        self.ray, self.name, self.actor = ray, name, actor

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method returns. Raises `RuntimeError` when the actor is dead for good, or does not answer."""
        from ray.exceptions import GetTimeoutError, RayActorError

        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while True:
            left = deadline - time.monotonic()
            try:
                return self.ray.get(getattr(self.actor, method).remote(*arguments), timeout=max(left, POLL_S))
            except (GetTimeoutError, RayActorError) as error:
                if not self.is_alive:
                    message = f"the coordinator died; the same command goes on from the last frame: {error}"
                    raise RunError(message) from error
                if left <= 0:
                    raise RunError(
                        f"the run's coordinator did not answer for {ANSWER_TIMEOUT_S} s; --takeover ends it and starts "
                        "another, which goes on from the last frame"
                    ) from error
                time.sleep(POLL_S)

    @property
    def is_alive(self) -> bool:
        """True also while it is started again."""
        return {"name": self.name, "namespace": NAMESPACE} in self.ray.util.list_named_actors(all_namespaces=True)

    def kill(self) -> None:
        """End it for good, and wait until its name is free."""
        self.ray.kill(self.actor)
        while self.is_alive:
            time.sleep(POLL_S)


def _coordinator(ray: Any, work: Work, detached: bool, takeover: bool) -> _Coordinator:
    """The run's coordinator: the one that is at work already, with this plan added to its own, or a new one."""
    from ti2v_dist.coordinator import Coordinator

    name = f"ti2v-{work.config.run_id(work.store.url)}"
    if at_work := _at_work(ray, name, work, takeover):
        return at_work
    gpus, workers = _workers(ray, work.config)
    # It remembers nothing that the store does not hold: Ray may start a dead one again, on any node.
    options: dict[str, Any] = {"name": name, "num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
    if detached:
        options["lifetime"] = "detached"
    # An actor without a GPU of its own would otherwise see all of them.
    options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}
    if any(node["Alive"] and node["Labels"].get(MARKET_TYPE) == "on-demand" for node in ray.nodes()):
        options["label_selector"] = {MARKET_TYPE: "on-demand"}
    arguments = (work.config, work.store.url, work.plan.sha256, workers, gpus)
    actor = ray.remote(Coordinator).options(**options).remote(*arguments)
    ray.get(actor.identity.remote())  # it may take its time to find a place
    return _Coordinator(ray, name, actor)


def _at_work(ray: Any, name: str, work: Work, takeover: bool) -> _Coordinator | None:
    """The actor of this name, if it has an end to wait for or to tell; one that left earlier makes room."""
    try:
        found = _Coordinator(ray, name, ray.get_actor(name, NAMESPACE))
    except ValueError:
        return None
    if not takeover:
        identity, expected = found.ask("identity"), work.identity
        if identity != expected:
            raise InputError(f"the actor {name!r} of this cluster belongs to {identity}, not to {expected}")
        knows_plan, status, epoch = found.ask("outcome", work.plan.sha256)
        is_superseded = 0 < epoch < work.store.current_epoch()  # by a verb: it may not have seen that yet
        if not is_superseded and (status is None or (knows_plan and status in ("finished", "failed_rows"))):
            return found
    found.kill()
    return None


def _workers(ray: Any, config: RunConfig) -> tuple[float, int]:
    """GPUs of one worker and the number of workers that the cluster has room for."""
    resources = ray.cluster_resources()
    device = config.model.device
    gpus = 1.0 if device == "cuda" or (device == "auto" and resources.get("GPU", 0) >= 1) else 0.0
    room = resources.get("GPU", 0) if gpus else resources.get("CPU", 1) // config.engine.threads
    return gpus, config.cluster.workers or max(1, int(room))


def _follow(
    ray: Any, coordinator: _Coordinator, plan_sha256: str, received: list[int], listener: Listener
) -> dict[str, Any]:
    """Wait for the end of the run, passing its progress on and a signal to the coordinator."""
    stopping = False
    while True:
        progress, summary = coordinator.ask("report", plan_sha256)
        if not progress["note"] and progress["workers_ready"] == 0 and progress["seconds"] > WAITING_FOR_WORKERS_S:
            have = {name: count for name, count in ray.cluster_resources().items() if name in ("CPU", "GPU")}
            progress["note"] = (
                f"waiting for a worker: the cluster has {have.get('GPU', 0):g} GPUs, {have['CPU']:g} CPUs"
            )
        if progress["metrics_problem"]:
            warnings.warn(progress["metrics_problem"], stacklevel=2)  # which is shown once
        listener(progress)
        if summary:
            coordinator.kill()
            if progress["error"]:
                raise RunError(progress["error"])
            return summary
        if received:
            # Each time: a coordinator that was started again meanwhile has not heard.
            stopping = True
            coordinator.ask("stop")
        next_poll = time.monotonic() + POLL_S
        while time.monotonic() < next_poll and (stopping or not received):
            time.sleep(SIGNAL_POLL_S)
