"""WorkerPool: one coordinator's worker actors. It starts, calls and buries them, and tells what happened as events."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ti2v_dist.config import AUTO, RunConfig
from ti2v_dist.errors import InputError, UserError
from ti2v_dist.latents import BrokenVideo
from ti2v_dist.runtime import ray_internals
from ti2v_dist.runtime.deaths import ENDS, LIVES, death
from ti2v_dist.runtime.outages import OUTAGES, Outages
from ti2v_dist.runtime.patience import Patience, Stalled
from ti2v_dist.runtime.places import NODE_ID, Places, kind_of, node_of
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.losses import DeviceFailure, DeviceOutOfMemory, Leaving
from ti2v_dist.state.checkpoint import CheckpointStore, FingerprintMismatch
from ti2v_dist.state.record import CorruptRecord
from ti2v_dist.storage.objects import StoreDenied
from ti2v_dist.storage.scratch import ScratchFull
from ti2v_dist.storage.urls import HostUnreachable, Unreachable
from ti2v_dist.telemetry.log import LOG, bound, log_bug
from ti2v_dist.telemetry.metrics import Metrics
from ti2v_dist.video import VideoRequest

DRAIN_POLL_S = 1.0
MOST_WARNINGS = 20
INPUT_S = 300.0
"""How long an image may be asked for in vain, while the run's own store answers; then its video has had an attempt."""
CONTROL = "control"
"""The concurrency group in which a worker answers during a call."""
VIDEO_ERRORS = (InputError, CorruptRecord, BrokenVideo)
"""What is wrong with a video itself: trying again would not help. Any other error counts as an attempt.
"""


class WorkerPool:
    """Workers by number. `accept` returns a new worker's class or raises `FingerprintMismatch`."""

    def __init__(
        self,
        config: RunConfig,
        output_url: str,
        gpus_per_worker: float,
        metrics: Metrics,
        outages: Outages,
        emit: Callable[[events.Event], None],
        accept: Callable[[dict[str, Any]], Awaitable[str]],
    ) -> None:
        self.config, self.output_url = config, output_url
        self.metrics, self.outages, self.emit, self.accept = metrics, outages, emit, accept
        self.largest: VideoRequest | None = None
        """The request of the largest batch: a new worker tries at once whether it fits."""
        self.slots = config.engine.known_slots
        self.share = 1
        """Videos that a worker has, where all have the same: more slots would only be empty."""
        self.actors: dict[int, Any] = {}
        self.open: set[int] = set()
        self.kinds: dict[int, str] = {}
        self.leaving: set[int] = set()
        self.warnings: list[str] = []
        """What whoever follows the run should know of its workers."""
        self.bugs: dict[str, str] = {}
        """Tracebacks of our own bugs in starting a worker, by the words in which the failed start was told."""
        self.started = 0
        self.patience = Patience(config.cluster.stalled_after_s, self.warn)
        self.places = Places(config, gpus_per_worker, emit)
        self._closed = asyncio.Event()

    async def start(self, command: events.StartWorker) -> None:
        """Start one more worker and load its model; what becomes of it is told as an event."""
        if command.after_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), command.after_s)
        if self._closed.is_set():
            return
        number, self.started = self.started, self.started + 1
        # The coordinator replaces a dead worker itself; a call that Ray repeats would be computed twice.
        options = {
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {CONTROL: 1},
            **self.places.resources(),
        }
        if command.avoid:
            options["label_selector"] = {NODE_ID: f"!in({','.join(sorted(command.avoid))})"}
        fields = {**bound, "worker": number}
        LOG.info("starting a worker", extra=fields)
        actor = self.actors[number] = ray.remote(**options)(Worker).remote(self.config, self.output_url, fields)
        numerics: dict[str, Any] = {}
        try:
            numerics = await self._opened(actor)
            self.kinds[number] = await self.accept(numerics)
        except RayTaskError as error:
            bug = log_bug("open", error, worker=number)
            await self._start_failed(number, actor, error.cause, bug)
        except Stalled as stalled:
            await self._start_failed(number, actor, stalled)
        except RayError as error:
            if isinstance(error, ENDS):
                raise
            reason = await death(actor, error)
            if reason == "died" and number not in self.leaving:
                await self._start_failed(number, actor, error)
            else:
                self._bury(number, reason)
        except FingerprintMismatch as mismatch:
            await self._refuse(number, actor, numerics, str(mismatch))
        else:
            node, ip = await node_of(actor)
            if number in self.actors:
                self.open.add(number)
                chosen = numerics["slots"] if self.config.engine.slots == AUTO else 0
                self.slots = chosen or self.slots
                LOG.info("a worker is ready on node %s (%s)", ip, numerics.get("device"), extra=fields)
                self.emit(events.WorkerReady(number, node, self.kinds[number], chosen))

    async def _opened(self, actor: Any) -> dict[str, Any]:
        """What a new worker says of itself. It reads the store, and one that is away is no fault of the worker's."""

        async def once() -> dict[str, Any]:
            try:
                return await self.patience.opened(actor, self.largest, self.share)
            except RayTaskError as error:
                raise (error.cause if isinstance(error.cause, OUTAGES) else error) from error

        return await self.outages.outlast(once)

    async def _start_failed(self, number: int, actor: Any, cause: BaseException, bug: str | None = None) -> None:
        node, ip = await node_of(actor)
        if not self._remove(number, "start_failed"):
            return
        text = str(cause).strip().rpartition("\n")[2].strip()
        told = text if isinstance(cause, UserError) else f"{type(cause).__name__}: {text}"
        if bug:
            self.bugs[told] = bug
        self.warn(number, f"a worker could not be started on node {ip or 'unknown'}: {told}")
        await self.places.look()
        self.emit(events.StartFailed(number, node, told))

    async def _refuse(self, number: int, actor: Any, numerics: dict[str, Any], mismatch: str) -> None:
        """A worker that would compute other bits is ended at once, so that it holds no device; people can read why."""
        node, ip = await node_of(actor)
        if not self._remove(number, "refused"):
            return
        store = CheckpointStore(self.output_url)
        stored = await self._ask_storage(store.read_fingerprint) or {}
        keys = sorted(key for key in {*stored, *numerics} if stored.get(key) != numerics.get(key))
        differs = {key: {"run": stored.get(key), "worker": numerics.get(key)} for key in keys}
        device = numerics.get("device")
        await self._ask_storage(store.record_refusal, {"node": ip, "device": device, "differs": differs})
        named = "; ".join(f"{key} is {pair['worker']!r}, the run's {pair['run']!r}" for key, pair in differs.items())
        self.warn(number, f"a worker on node {ip or 'unknown'} ({device}) was refused: {named}")
        living = await self.places.look()
        kind = kind_of(living.get(node, {}))
        same = {other for other, entry in living.items() if kind and kind_of(entry) == kind}
        refused = frozenset({node, *(same if "device" in differs else ())} - {""})
        self.emit(events.WorkerRefused(number, refused, mismatch))

    async def _ask_storage(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return await self.outages.outlast(lambda: asyncio.to_thread(call, *arguments))

    def warn(self, number: int | None, text: str) -> None:
        """Tell whoever follows the run, once; `number` is that of the worker concerned, if there is one."""
        LOG.warning(text, extra={"worker": number})
        if text not in self.warnings and len(self.warnings) < MOST_WARNINGS:
            self.warnings.append(text)

    async def call(self, number: int, ids: tuple[str, ...], method: str, *arguments: Any) -> Any:
        """A worker's value for these videos and its seconds; None when it failed, which has been told as an event."""
        since: float | None = None  # when no image was given, though the run's store answered

        async def once() -> Any:
            nonlocal since
            if self.outages.is_store_away:
                since = None
            is_last = since is not None and time.monotonic() - since > INPUT_S
            try:
                return await self._try(number, ids, method, arguments, is_last)
            except Unreachable:
                since = since or time.monotonic()
                raise

        return await self.outages.outlast(once)

    async def _try(
        self, number: int, ids: tuple[str, ...], method: str, arguments: tuple[Any, ...], is_last: bool
    ) -> Any:
        """One try of `call`, the last one for an image; raises what storage did to the worker."""
        actor = self.actors.get(number)
        if actor is None:
            return None  # lost meanwhile: the scheduler has heard, and has given its videos to others
        try:
            value, seconds = await self.patience.answer(number, method, getattr(actor, method).remote(*arguments))
            if not self.is_there(number):
                return None  # it was lost while its value was on the way, and its videos went elsewhere
            self.metrics.device_seconds.inc(seconds)
            return value, seconds
        except LIVES as error:
            if not self.is_there(number):
                return None
            cause = error.cause
            # A web server is one among many, and a store may have an object that it never gives: such an image is an
            # attempt of its video, and nothing that the run waits for.
            is_over = is_last and isinstance(cause, Unreachable) and not self.outages.is_store_away
            is_attempt = isinstance(cause, HostUnreachable) or is_over
            if isinstance(cause, (*OUTAGES, StoreDenied)) and not is_attempt:
                raise cause from error
            if isinstance(cause, Leaving):
                self.emit(events.CallCancelled(number, ids))
            elif isinstance(cause, DeviceOutOfMemory | DeviceFailure):
                self._bury(number, "cuda_oom" if isinstance(cause, DeviceOutOfMemory) else "cuda_error")
            elif isinstance(cause, ScratchFull):
                self._bury(number, "disk_full", str(cause))
            elif isinstance(cause, VIDEO_ERRORS) and len(ids) == 1:
                self.emit(video_error(ids[0], cause))
            else:
                fields: dict[str, Any] = {"worker": number, "video": ",".join(ids)}
                LOG.warning("%s failed: %s", method, type(cause).__name__, extra=fields)
                log_bug(method, error, **fields)
                self.emit(events.CallFailed(number, ids, type(cause).__name__, str(cause)))
        except RayError as error:
            if isinstance(error, ENDS):
                raise
            self._bury(number, await death(actor, error))
        except Stalled as stalled:
            self._bury(number, "stalled", str(stalled))
        return None

    def is_there(self, number: int) -> bool:
        """Whether a worker is still the one that was asked: one that was lost has no say any more."""
        return number in self.actors

    async def watch_drains(self) -> None:
        """Tell of every worker whose node is about to be taken away, about a second after Ray knows; without end.

        Ray's drain is only a notice: it places nothing new on the node, and ends nothing there.
        """
        while True:
            nodes = await ray_internals.draining_nodes()
            for number, actor in list(self.actors.items()) if nodes else ():
                if number in self.leaving or (await node_of(actor))[0] not in nodes:
                    continue
                self.leaving.add(number)
                LOG.info("the node of a worker is to be taken away", extra={"worker": number})
                if number in self.open:
                    self.emit(events.WorkerDraining(number))
                else:
                    self._bury(number, "preempted")
            await asyncio.sleep(DRAIN_POLL_S)

    async def recall(self, number: int) -> None:
        """Let a worker finish the frame in hand and nothing else."""
        # Not `ray.cancel`: Ray carries a cancelled method out all the same, and then throws its result away.
        if number in self.actors:
            with suppress(RayError):
                await self.actors[number].leave.options(concurrency_group=CONTROL).remote()

    async def release(self, number: int) -> None:
        """End a worker that has no call left, so that its node is free."""
        actor = self.actors.pop(number, None)
        if actor is not None:
            self.metrics.count_worker_loss("drained")
            LOG.info("let a worker go", extra={"worker": number})
            ray.kill(actor)

    def close(self) -> None:
        """End every worker at once, and start none any more."""
        self._closed.set()
        while self.actors:
            ray.kill(self.actors.popitem()[1])

    def _remove(self, number: int, reason: str) -> bool:
        """End a worker and count it under `reason`; False if it was gone already."""
        actor = self.actors.pop(number, None)
        self.patience.forget(number)
        if actor is None:
            return False
        self.metrics.count_worker_loss(reason)
        ray.kill(actor)  # an unreachable actor may still live; it must not hold a GPU
        return True

    def _bury(self, number: int, reason: str, detail: str = "") -> None:
        """Every outstanding call of a lost worker fails; the first one reports the loss."""
        if number in self.leaving and reason in ("died", "node_died"):
            reason = "preempted"  # the notice may have been shorter than it said
        if self._remove(number, reason):
            LOG.warning("lost a worker: %s", reason, extra={"worker": number})
            self.emit(events.WorkerLost(number, reason, detail))


def video_error(video_id: str, error: BaseException) -> events.VideoError:
    """The event of an error that is the video's own."""
    return events.VideoError(video_id, type(error).__name__, str(error))
