"""Makes a plan's videos on Ray: starts or joins a cluster, starts the coordinator or attaches to it, follows it."""

import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ti2v_dist import dataset, views
from ti2v_dist.config import RunConfig
from ti2v_dist.errors import InputError, RunBug, RunError, UserError, begun
from ti2v_dist.log import LOG_FORMAT, log_format
from ti2v_dist.planning import Work, prepare
from ti2v_dist.tally import counted

NAMESPACE = "ti2v"
MARKET_TYPE = "ray.io/market-type"
"""Ray's label of a node: where some are on-demand, the coordinator stays on those."""
POLL_S = 0.5
SIGNAL_POLL_S = 0.05
START_TRIES = 10
MAKE_ROOM_S = 2.0
"""Before a coordinator that has ended makes room for the next one."""
ANSWER_TIMEOUT_S = 60
"""Long enough for a coordinator that is started again on another node."""
WAITING_FOR_WORKERS_S = 10
ENDING = ("stopping", "writing")
"""How the phases begin in which a run waits for no worker."""

Listener = Callable[[dict[str, Any]], None]


def run(
    manifest: str,
    output: str,
    config: RunConfig | None = None,
    *,
    address: str | None = None,
    detach: bool = False,
    takeover: bool = False,
    allow_inexact: bool = False,
    listener: Listener = lambda progress: None,
) -> dict[str, Any]:
    """Make every video of a manifest; the same call again goes on where an interrupted one stopped.

    Starts a local Ray unless `address` or RAY_ADDRESS names a cluster; there, `detach` returns at once and leaves the
    run going, and `takeover` ends a coordinator of this run that does not answer. With `allow_inexact`, videos go on
    with workers of another class where none of their own is left; that is recorded. `listener` gets the progress twice
    a second. Returns the summary that is also written to `summary.json`: its `status` is "finished", "failed_rows",
    "interrupted" or "running"; `signal` is the one that interrupted it.
    """
    log_format()
    address = check_address(address, detach)
    work = prepare(manifest, output, config or RunConfig(), allow_inexact)
    return make(work, address=address, detach=detach, takeover=takeover, listener=listener)


def check_address(address: str | None, detach: bool) -> str | None:
    """The cluster to join, None for a local one of our own; `ValueError` if that one would have to be left going."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address == "local":
        address = None
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
        with begun():
            return _refresh(work, listener)
    # Ray sets a SIGTERM handler of its own when it connects: ours comes after it.
    with _ray(address) as ray, _signals() as received:
        summary: dict[str, Any] | None = None
        while summary is None:  # else that coordinator took no more plans in: the next one has it from the start
            coordinator = _coordinator(ray, work, address is not None, takeover)
            takeover = False
            with begun():
                if detach and _reported(coordinator, work)[2]:
                    return {"status": "running", "output": work.store.url}
                summary = _follow(ray, coordinator, work, received, listener)
        return {**summary, **({"signal": received[0]} if received else {})}


def _refresh(work: Work, listener: Listener) -> dict[str, Any]:
    """The end of a run of which nothing is left to make: what people read of it, where that has changed."""
    failed = {row["id"] for row in work.plan.refused} | work.final & set(work.store.failed_ids())
    tally = counted(work.plan.requests, work.final, failed)

    def tell(phase: str) -> None:
        counts = {"finished": tally.finished, "failed": tally.failed, "frames": tally.done, "frames_left": tally.left}
        listener({**counts, "frames_per_second": 0.0, "phase": phase, "note": None})

    summary = dataset.read_summary(work.store.url)
    if not (work.plan.requests or work.plan.refused) and summary.get("status") == "finished":
        return summary  # nothing was asked for, and nothing is to be told
    final = {request.id: request.generation for request in work.plan.requests if request.id in work.final}
    return views.refresh(work.store, work.plan.lines.keys(), final, tell)


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
    """A connection to the cluster, or a local one of our own that ends with this process; Ray's settings come back."""
    import ray

    from ti2v_dist import ray_internals

    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    with ray_internals.kept_environment(is_local=address is None):
        if address:
            _check_cluster(address)
        try:
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
    from ti2v_dist import ray_internals

    given = "RAY_ADDRESS" if address == os.environ.get("RAY_ADDRESS") else "--address"
    without = "unset RAY_ADDRESS" if given == "RAY_ADDRESS" else "leave --address out"
    try:
        ray_internals.check_reachable(address)
    except ray_internals.Unreachable as error:
        raise UserError(
            f"no Ray cluster can be used at {given}={address}: {error}; {without} to run on this machine alone"
        ) from error


class _Coordinator:
    """The coordinator's actor, seen from here: it may be started again between two calls."""

    def __init__(self, ray: Any, name: str, actor: Any):
        self.ray, self.name, self.actor = ray, name, actor

    def ask(self, method: str, *arguments: Any, patience_s: float = ANSWER_TIMEOUT_S) -> Any:
        """What a method returns. Raises `RunError` when the actor is dead for good, or does not answer."""
        from ray.exceptions import GetTimeoutError, RayActorError

        began = time.monotonic()
        while True:
            left = began + patience_s - time.monotonic()
            try:
                limit_s = min(max(left, POLL_S), ANSWER_TIMEOUT_S)
                return self.ray.get(getattr(self.actor, method).remote(*arguments), timeout=limit_s)
            except (GetTimeoutError, RayActorError) as error:
                if not self.is_alive:
                    message = f"the coordinator died; the same command goes on from the last frame: {error}"
                    raise RunError(message) from error
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
        from ti2v_dist.ray_internals import id_of

        try:
            return id_of(self.ray.get_actor(self.name, NAMESPACE)) == id_of(self.actor)
        except ValueError:
            return False

    def kill(self) -> None:
        """End it for good, and wait until its name is free, or somebody else's."""
        self.ray.kill(self.actor)
        while self.is_alive:
            time.sleep(POLL_S)


def _coordinator(ray: Any, work: Work, detached: bool, takeover: bool) -> _Coordinator:
    """The run's coordinator: the one that is at work already, or a new one."""
    name = f"ti2v-{work.run_id}"
    for tries_left in reversed(range(START_TRIES)):
        if at_work := _at_work(ray, name, work, takeover):
            return at_work
        try:
            return _begin(ray, name, work, detached)
        except ValueError:  # the name is taken: another command was a moment faster
            if not tries_left:
                raise
            takeover = False
            time.sleep(POLL_S)
    raise AssertionError("the last try returns or raises")


def _begin(ray: Any, name: str, work: Work, detached: bool) -> _Coordinator:
    """Start the run's coordinator. Raises `ValueError` where its name is taken."""
    from ti2v_dist import ray_internals
    from ti2v_dist.coordinator import Coordinator

    gpus, workers = _workers(ray, work.config)
    # It remembers nothing that the store does not hold: Ray may start a dead one again, on any node.
    options: dict[str, Any] = {"name": name, "num_cpus": 0, "max_restarts": -1, "max_task_retries": 0}
    if detached:
        options["lifetime"] = "detached"
    # An actor without a GPU of its own would otherwise see all of them.
    options["runtime_env"] = {"env_vars": {"CUDA_VISIBLE_DEVICES": "", LOG_FORMAT: log_format()}}
    if any(node["Labels"].get(MARKET_TYPE) == "on-demand" for node in ray_internals.nodes()):
        options["label_selector"] = {MARKET_TYPE: "on-demand"}
    arguments = (work.config, work.store.url, work.plan.sha256, workers, gpus, work.run_id)
    actor = ray.remote(Coordinator).options(**options).remote(*arguments)
    begun = _Coordinator(ray, name, actor)
    begun.ask("identity", patience_s=math.inf)  # it may take its time to find a place
    return begun


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


def _waiting_for(ray: Any, config: RunConfig) -> str:
    """What a worker wants of the cluster, against what there is and what is free."""
    from ti2v_dist import ray_internals
    from ti2v_dist.places import worker_resources

    have, free, most = ray.cluster_resources(), ray.available_resources(), ray_internals.most_resources()
    gpus, _ = _workers(ray, config)
    wants = {name: count for name, count in worker_resources(config, gpus).items() if count}
    found = []
    for name, count in wants.items():
        grows = f", can grow to {most[name]:g}" if most.get(name, 0) > have.get(name, 0) else ""
        found.append(f"{count:g} {name} (the cluster has {have.get(name, 0):g}, {free.get(name, 0):g} free{grows})")
    return f"waiting for a worker, which wants {' and '.join(found) or 'no resources'}"


def _reported(coordinator: _Coordinator, work: Work) -> tuple[dict[str, Any], dict[str, Any] | None, bool]:
    """The progress, the summary once there is one, and whether both are of this plan, which is handed over."""
    progress, summary, *covers = coordinator.ask("report", work.plan.sha256)
    return progress, summary, covers[0] if covers else True  # an older version takes in every plan


def _follow(
    ray: Any, coordinator: _Coordinator, work: Work, received: list[int], listener: Listener
) -> dict[str, Any] | None:
    """Wait for the end of the run, passing its progress on and a signal to the coordinator.

    None where the run has ended without this plan, which it took in no more: the coordinator then makes room.
    """
    stopping, shown = False, set[str]()
    # What `prepare` met itself is told already. An actor of an older version may lack what is asked for by `get`.
    kinds = ("metrics", "report") if work.store.store.tidy_problem else ("metrics", "report", "tidy")
    while True:
        progress, summary, covers = _reported(coordinator, work)
        has_time = progress["seconds"] <= WAITING_FOR_WORKERS_S or progress["phase"].startswith(ENDING)
        if not progress["note"] and progress["workers_ready"] == 0 and not has_time:
            progress["note"] = _waiting_for(ray, work.config)
        problems = [progress.get(f"{kind}_problem") for kind in kinds]
        for problem in (*problems, *progress["warnings"]):
            if problem and problem not in shown:
                shown.add(problem)
                warnings.warn(problem, stacklevel=2)
        listener(progress)
        if summary and not covers:
            time.sleep(MAKE_ROOM_S)  # those whose plan it covers read the summary
            coordinator.kill()
            return {**summary, "status": "interrupted"} if received else None
        if summary:
            if progress.get("bug"):
                raise RunBug(progress["error"], progress["bug"])
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
