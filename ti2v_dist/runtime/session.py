"""A command's side of a cluster: the connection to Ray, and the handle of a run's coordinator, old or new."""

import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from ti2v_dist.config import RunConfig
from ti2v_dist.errors import InputError, RunError, UserError
from ti2v_dist.runtime.work import Work
from ti2v_dist.telemetry.log import LOG_FORMAT, log_format

NAMESPACE = "ti2v"
MARKET_TYPE = "ray.io/market-type"
"""Ray's label of a node: where some are on-demand, the coordinator stays on those."""
POLL_S = 0.5
START_TRIES = 10
MAKE_ROOM_S = 2.0
"""Before a coordinator that has ended makes room for the next one."""
ANSWER_TIMEOUT_S = 60
"""Long enough for a coordinator that is started again on another node."""


class CoordinatorDied(RunError):
    """It is gone for good."""


def is_connected() -> bool:
    """Whether this process is connected to a Ray already: nothing starts one only to ask."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """A connection to the cluster, or a local one of our own that ends with this process; Ray's settings come back.

    One that this process has already is used, and left as it is.
    """
    import ray

    from ti2v_dist.runtime import ray_internals

    if is_connected():
        yield ray
        return

    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    with ray_internals.kept_environment(is_local=address is None):
        if address:
            _check_cluster(address)
        try:
            with nullcontext() if address else ray_internals.lean_start():
                ray.init(
                    address=address or "local",
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **options,
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


def _check_cluster(address: str) -> None:
    """Raise `UserError` for a cluster that is not there: Ray itself would look for it for many minutes."""
    from ti2v_dist.runtime import ray_internals

    given = "RAY_ADDRESS" if address == os.environ.get("RAY_ADDRESS") else "--address"
    without = "unset RAY_ADDRESS" if given == "RAY_ADDRESS" else "leave --address out"
    try:
        ray_internals.check_reachable(address)
    except ray_internals.Unreachable as error:
        raise UserError(
            f"no Ray cluster can be used at {given}={address}: {error}; {without} to run on this machine alone"
        ) from error


class Handle:
    """The coordinator's actor, seen from here: it may be started again between two calls."""

    def __init__(self, ray: Any, name: str, actor: Any) -> None:
        self.ray, self.name, self.actor = ray, name, actor

    def ask(self, method: str, *arguments: Any, patience_s: float | None = None) -> Any:
        """What a method returns. Raises `RunError` when the actor is dead for good, or does not answer.

        `patience_s` is `ANSWER_TIMEOUT_S` unless given.
        """
        from ray.exceptions import GetTimeoutError, RayActorError

        began = time.monotonic()
        while True:
            left = began + (ANSWER_TIMEOUT_S if patience_s is None else patience_s) - time.monotonic()
            try:
                limit_s = min(max(left, POLL_S), ANSWER_TIMEOUT_S)
                return self.ray.get(getattr(self.actor, method).remote(*arguments), timeout=limit_s)
            except (GetTimeoutError, RayActorError) as error:
                if not self.is_alive:
                    message = f"the coordinator died; the same command goes on from the last frame: {error}"
                    raise CoordinatorDied(message) from error
                # One that dies again and again may be waited for no longer than one that is silent.
                is_dying = isinstance(error, RayActorError) and time.monotonic() - began > ANSWER_TIMEOUT_S
                if left <= 0 or is_dying:
                    raise RunError(
                        f"the run's coordinator did not answer for {ANSWER_TIMEOUT_S} s; --takeover ends it and starts "
                        "another, which goes on from the last frame"
                    ) from error
                time.sleep(POLL_S)

    @property
    def is_alive(self) -> bool:
        """True also while it is started again."""
        from ti2v_dist.runtime.ray_internals import id_of

        try:
            return id_of(self.ray.get_actor(self.name, NAMESPACE)) == id_of(self.actor)
        except ValueError:
            return False

    def kill(self) -> None:
        """End it for good, and wait until its name is free, or somebody else's."""
        self.ray.kill(self.actor)
        while self.is_alive:
            time.sleep(POLL_S)


def coordinator(ray: Any, work: Work, order: int, detached: bool, takeover: bool) -> Handle:
    """The run's coordinator: the one that is at work already, or a new one."""
    name = _name(work)
    for tries_left in reversed(range(START_TRIES)):
        if at_work := _at_work(ray, work, order, takeover):
            return at_work
        try:
            return _begin(ray, name, work, detached)
        except ValueError:  # the name is taken: another command was a moment faster
            if not tries_left:
                raise
            takeover = False
            time.sleep(POLL_S)
    raise AssertionError("the last try returns or raises")


def _begin(ray: Any, name: str, work: Work, detached: bool) -> Handle:
    """Start the run's coordinator. Raises `ValueError` where its name is taken."""
    from ti2v_dist.runtime import ray_internals
    from ti2v_dist.runtime.coordinator import Coordinator

    gpus, workers = _workers(ray, work.config)
    # It remembers nothing that the store does not hold: Ray may start a dead one again, on any node.
    options: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "num_cpus": 0}
    options |= {"max_restarts": -1, "max_task_retries": 0}
    if detached:  # in a cluster that does not have this process's environment
        options |= {"lifetime": "detached", "runtime_env": {"env_vars": {LOG_FORMAT: log_format()}}}
    if any(node["Labels"].get(MARKET_TYPE) == "on-demand" for node in ray_internals.nodes()):
        options["label_selector"] = {MARKET_TYPE: "on-demand"}
    arguments = (work.config, work.store.url, workers, gpus, work.run_id)
    actor = ray.remote(Coordinator).options(**options).remote(*arguments)
    begun = Handle(ray, name, actor)
    begun.ask("identity", patience_s=math.inf)  # it may take its time to find a place
    return begun


def is_at_work(ray: Any, work: Work, takeover: bool) -> bool:
    """Whether the run has a coordinator here; `InputError` where that is another run's, or of another version."""
    from ti2v_dist.runtime.coordinator import PROTOCOL

    if takeover or not (found := _found(ray, work)):
        return False
    identity = found.ask("identity")
    protocol, expected = identity.pop("protocol", 1), work.identity
    if identity != expected:
        raise InputError(f"the actor {found.name!r} of this cluster belongs to {identity}, not to {expected}")
    if protocol != PROTOCOL:
        raise InputError(
            f"another version of ti2v_dist is at work on {work.store.url} in this cluster; wait for its end, let "
            "`ti2v stop` end it, or end it at once by --takeover"
        )
    return True


def _name(work: Work) -> str:
    return f"ti2v-{work.run_id}"


def _found(ray: Any, work: Work) -> Handle | None:
    try:
        return Handle(ray, _name(work), ray.get_actor(_name(work), NAMESPACE))
    except ValueError:
        return None


def _at_work(ray: Any, work: Work, order: int, takeover: bool) -> Handle | None:
    """The run's coordinator, if it has an end to wait for or to tell; one that left earlier makes room."""
    if (found := _found(ray, work)) is None:
        return None
    if not takeover:
        knows_order, status, epoch = found.ask("outcome", order)
        is_superseded = 0 < epoch < work.store.current_epoch()  # by a verb: it may not have seen that yet
        if not is_superseded and (status is None or (knows_order and status in ("finished", "failed_rows"))):
            return found
        time.sleep(MAKE_ROOM_S if status else 0.0)
    found.kill()
    return None


def _workers(ray: Any, config: RunConfig) -> tuple[float, int]:
    """GPUs of one worker and the number of workers that the cluster has room for."""
    resources = ray.cluster_resources()
    device = config.model.device
    gpus = 1.0 if device == "cuda" or (device == "auto" and resources.get("GPU", 0) >= 1) else 0.0
    room = resources.get("GPU", 0) if gpus else resources.get("CPU", 0) // config.engine.threads
    return gpus, config.cluster.workers or max(1, int(room))


def waiting_for(ray: Any, config: RunConfig) -> str:
    """What a worker wants of the cluster, against what there is and what is free."""
    from ti2v_dist.runtime import ray_internals
    from ti2v_dist.runtime.places import worker_resources

    have, free, most = ray.cluster_resources(), ray.available_resources(), ray_internals.most_resources()
    gpus, _ = _workers(ray, config)
    wants = {name: count for name, count in worker_resources(config, gpus).items() if count}
    found = []
    for name, count in wants.items():
        grows = f", can grow to {most[name]:g}" if most.get(name, 0) > have.get(name, 0) else ""
        found.append(f"{count:g} {name} (the cluster has {have.get(name, 0):g}, {free.get(name, 0):g} free{grows})")
    return f"waiting for a worker, which wants {' and '.join(found) or 'no resources'}"
