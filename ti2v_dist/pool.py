"""WorkerPool: one coordinator's worker actors. It starts, calls and buries them, and tells what happened as events."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import ray
from ray._private.state import actors as actors_in_gcs
from ray._private.state import state as gcs
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    RpcError,
    WorkerCrashedError,
)

from ti2v_dist import events
from ti2v_dist.checkpoint import FingerprintMismatch
from ti2v_dist.config import RunConfig
from ti2v_dist.errors import InputError, RunError
from ti2v_dist.log import log_bug
from ti2v_dist.losses import DeviceFailure, DeviceOutOfMemory, Leaving
from ti2v_dist.metrics import Metrics
from ti2v_dist.outages import Outages
from ti2v_dist.record import CorruptRecord
from ti2v_dist.video import NonFiniteLatents, VideoRequest
from ti2v_dist.worker import Worker

WORKER_DEATHS = (RayActorError, NodeDiedError, WorkerCrashedError, OutOfMemoryError)
"""Ray's exceptions for a dead worker process or node; they share no base class."""
DEATH_IS_TOLD_S, DEATH_POLL_S = 3.0, 0.25
"""A node that lives tells of the death of its processes at once; after this silence it is taken for dead itself."""
DRAIN_POLL_S = 1.0
CONTROL = "control"
"""The concurrency group in which a worker answers during a call."""
VIDEO_ERRORS = (InputError, CorruptRecord, NonFiniteLatents)
"""What is wrong with a video itself; trying again would not help. Any other error may be a bug of ours: an attempt."""


class WorkerPool:
    """Workers by number. `accept` settles a new worker's fingerprint or raises `FingerprintMismatch`."""

    def __init__(
        self,
        config: RunConfig,
        output_url: str,
        gpus_per_worker: float,
        metrics: Metrics,
        outages: Outages,
        emit: Callable[[events.Event], None],
        accept: Callable[[dict[str, Any]], Awaitable[None]],
    ):
        self.config, self.output_url, self.gpus = config, output_url, gpus_per_worker
        self.metrics, self.outages, self.emit, self.accept = metrics, outages, emit, accept
        self.largest: VideoRequest | None = None
        """The request of the largest batch: a new worker tries at once whether it fits."""
        self.actors: dict[int, Any] = {}
        self.open: set[int] = set()
        self.leaving: set[int] = set()
        self.started = 0

    async def start(self) -> None:
        """Start one more worker and load its model.

        Raises:
            RuntimeError: the model cannot be loaded, or no worker matches the run's fingerprint.
        """
        number, self.started = self.started, self.started + 1
        # The coordinator replaces a dead worker itself; a call that Ray repeats would be computed twice.
        options = {"max_restarts": 0, "max_task_retries": 0, "concurrency_groups": {CONTROL: 1}, **self._resources()}
        actor = self.actors[number] = ray.remote(**options)(Worker).remote(self.config, self.output_url)
        try:
            await self.accept(await actor.open.remote(self.largest))
        except WORKER_DEATHS as error:
            self._bury(number, await death(actor, error))
        except RayTaskError as error:
            if isinstance(error.cause, DeviceFailure):
                self._bury(number, "cuda_error")
                return
            raise RunError(f"a worker cannot load the model: {error.cause}") from error
        except FingerprintMismatch as mismatch:
            ray.kill(self.actors.pop(number, actor))
            if not self.actors:
                raise RunError(f"0 of {self.started} workers match: {mismatch}") from mismatch
        else:
            if number in self.actors:
                self.open.add(number)
                self.emit(events.WorkerReady(number))

    async def call(self, number: int, ids: tuple[str, ...], method: str, *arguments: Any) -> Any:
        """A worker's value for these videos and its seconds; None when it failed, which has been told as an event."""
        return await self.outages.outlast(lambda: self._try(number, ids, method, arguments))

    async def _try(self, number: int, ids: tuple[str, ...], method: str, arguments: tuple[Any, ...]) -> Any:
        """One try of `call`; raises what storage did to the worker."""
        actor = self.actors.get(number)
        if actor is None:
            return None  # lost meanwhile: the scheduler has heard, and has given its videos to others
        try:
            value, seconds = await getattr(actor, method).remote(*arguments)
            self.metrics.device_seconds.inc(seconds)
            return value, seconds
        except WORKER_DEATHS as error:
            self._bury(number, await death(actor, error))
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, OSError):
                raise cause from error
            if isinstance(cause, Leaving):
                self.emit(events.CallCancelled(number, ids))
            elif isinstance(cause, DeviceOutOfMemory | DeviceFailure):
                self._bury(number, "cuda_oom" if isinstance(cause, DeviceOutOfMemory) else "cuda_error")
            elif isinstance(cause, VIDEO_ERRORS) and len(ids) == 1:
                self.emit(video_error(ids[0], cause))
            else:
                log_bug(f"worker {number}, {method}", error)
                self.emit(events.CallFailed(number, ids, type(cause).__name__, str(cause)))
        return None

    async def watch_drains(self) -> None:
        """Tell of every worker whose node is about to be taken away, about a second after Ray knows; without end.

        Ray's drain is only a notice: it places nothing new on the node, and ends nothing there.
        """
        while True:
            try:
                nodes = await asyncio.to_thread(gcs.get_draining_nodes)
            except RpcError:  # a head that is silent for a while drains nobody
                nodes = {}
            for number, actor in list(self.actors.items()) if nodes else ():
                entry = await asyncio.to_thread(actors_in_gcs, actor._actor_id.hex())
                if number in self.leaving or not entry or entry["Address"]["NodeID"] not in nodes:
                    continue
                self.leaving.add(number)
                if number in self.open:
                    self.emit(events.WorkerDraining(number))
                else:
                    self._bury(number, "preempted")
            await asyncio.sleep(DRAIN_POLL_S)

    async def recall(self, number: int) -> None:
        """Let a worker finish the frame in hand and nothing else."""
        # Not `ray.cancel`: Ray carries a cancelled method out all the same, and then throws its result away.
        if number in self.actors:
            with suppress(*WORKER_DEATHS):
                await self.actors[number].leave.options(concurrency_group=CONTROL).remote()

    async def release(self, number: int) -> None:
        """End a worker that has no call left, so that its node is free."""
        actor = self.actors.pop(number, None)
        if actor is not None:
            self.metrics.count_worker_loss("drained")
            ray.kill(actor)

    def close(self) -> None:
        """End every worker at once."""
        while self.actors:
            ray.kill(self.actors.popitem()[1])

    def _resources(self) -> dict[str, Any]:
        if self.gpus:
            return {"num_gpus": self.gpus, "num_cpus": 1}
        cpus = self.config.cluster.cpus_per_worker
        # Without a GPU of its own a worker would otherwise see all of them.
        no_gpu = {"runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": ""}}}
        return {"num_cpus": self.config.engine.threads if cpus is None else cpus, **no_gpu}

    def _bury(self, number: int, reason: str) -> None:
        """Every outstanding call of a lost worker fails; the first one reports the loss."""
        actor = self.actors.pop(number, None)
        if actor is None:
            return
        if number in self.leaving and reason in ("died", "node_died"):
            reason = "preempted"  # the notice may have been shorter than it said
        self.metrics.count_worker_loss(reason)
        ray.kill(actor)  # an unreachable actor may still live; it must not hold a GPU
        self.emit(events.WorkerLost(number, reason))


async def death(actor: Any, error: Exception) -> str:
    """Why a worker is dead, as a key of `losses.LOSSES`: Ray's exceptions alone do not tell a process from its node."""
    if isinstance(error, OutOfMemoryError):
        return "host_oom"
    if isinstance(error, RayActorError) and error.preempted:
        return "preempted"
    for _ in range(round(DEATH_IS_TOLD_S / DEATH_POLL_S)):
        entry = await asyncio.to_thread(actors_in_gcs, actor._actor_id.hex())
        if entry and entry["State"] == "DEAD":
            return reason_of(entry["DeathCause"])
        await asyncio.sleep(DEATH_POLL_S)
    return "node_died" if isinstance(error, ActorUnavailableError | NodeDiedError) else "died"


def reason_of(cause: Any) -> str:
    """Ray's own record of an actor's death, an `ActorDeathCause`, as a key of `losses.LOSSES`."""
    if cause.HasField("oom_context"):
        return "host_oom"
    context = cause.actor_died_error_context
    if context.node_death_info.reason == context.node_death_info.AUTOSCALER_DRAIN_PREEMPTED:
        return "preempted"
    return "node_died" if context.reason == context.NODE_DIED else "died"


def video_error(video_id: str, error: BaseException) -> events.VideoError:
    """The event of an error that is the video's own."""
    return events.VideoError(video_id, type(error).__name__, str(error))
