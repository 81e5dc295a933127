"""Coordinator: holds every admitted video's state, feeds events to the Scheduler and carries out its commands.

An asyncio Ray actor. Nothing here decides what comes next, nothing touches pixels or a GPU, and storage is only ever
waited for on other threads, so it always answers. What it knows is a cache: the store is the truth after a crash.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from ray.actor import exit_actor
from ray.exceptions import RayError, RayTaskError

from ti2v_dist import dataset, events
from ti2v_dist.account import Account
from ti2v_dist.checkpoint import CheckpointStore
from ti2v_dist.config import RunConfig
from ti2v_dist.errors import UserError
from ti2v_dist.log import LOG, begin, log_bug
from ti2v_dist.metrics import Endpoint, Metrics
from ti2v_dist.outages import Outages
from ti2v_dist.pool import VIDEO_ERRORS, WorkerPool, video_error
from ti2v_dist.record import Tip
from ti2v_dist.scheduler import Scheduler
from ti2v_dist.upkeep import Upkeep
from ti2v_dist.video import Chunk, NonFiniteLatents, VideoRequest, VideoState

LINGER_S = 60.0
"""How long the end of a run can still be asked for before the actor leaves."""


@dataclass
class _Video:
    """What the coordinator remembers of an admitted video."""

    state: VideoState
    tip: Tip
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    pending: list[Chunk] = field(default_factory=list)
    ready_since: float = 0.0
    device_seconds: float = 0.0
    started_at: float = field(default_factory=time.time)


class Coordinator:
    """One life of a run's coordinator. It begins from the store alone, so Ray may start it again at any time."""

    def __init__(self, config: RunConfig, output_url: str, plan_sha256: str, workers: int, gpus_per_worker: float):
        begin(run=config.run_id(output_url))
        self.config, self.output_url, self.target_workers = config, output_url, workers
        self.store = CheckpointStore(output_url)
        self.scheduler = Scheduler(config.engine.slots)
        self.metrics = Metrics()
        self.outages = Outages(self.metrics)
        self.pool = WorkerPool(
            config, output_url, gpus_per_worker, self.metrics, self.outages, self._emit, self._accept
        )
        self.upkeep = Upkeep(self.store, self.metrics, self.outages, lambda: self.stop("asked in its store"), self._end)
        self.requests: dict[str, VideoRequest] = {}
        self.videos: dict[str, _Video] = {}
        self.fingerprint: str | None = None
        self.summary: dict[str, Any] | None = None
        self.endpoint = Endpoint(self.metrics, config.cluster.metrics_port, config.cluster.metrics_host)
        self.account = Account(self.scheduler, self.upkeep, self.outages, self.endpoint)
        self.error: str | None = None
        self.bug: str | None = None
        """The traceback behind `error`, if that is a bug of ours."""
        self._queue: asyncio.Queue[tuple[events.Event, ...]] = asyncio.Queue()
        self._plans = {plan_sha256}
        self._unread = 1
        self._tasks: set[asyncio.Future[None]] = set()
        self._do: dict[type, Callable[[Any], Awaitable[None]]] = {
            events.Load: self._load,
            events.Encode: self._encode,
            events.Advance: self._advance,
            events.Commit: self._commit,
            events.Finish: self._finish,
            events.Fail: self._fail,
            events.Forget: self._forget,
            events.StartWorker: self.pool.start,
            events.Recall: lambda command: self.pool.recall(command.worker),
            events.Release: lambda command: self.pool.release(command.worker),
            events.GiveUp: self._give_up,
        }
        self._life = asyncio.get_running_loop().create_task(self._live(plan_sha256))

    async def _live(self, plan_sha256: str) -> None:
        """From taking the run over to the last view, whatever happens; then stay a while for those who ask."""
        try:
            await self._work(plan_sha256)
        except Exception as error:  # a bug of ours must reach the user, not hang the run
            self._end_for(error)
        try:
            # Once superseded, the views are the new owner's to write.
            stepped_down = await self.upkeep.step_down_if_superseded()
            self.summary = {"status": "superseded"} if stepped_down else await self.account.close(self.life)
        except Exception as error:
            self.account.problem = f"the tables cannot be written: {error}"  # it may end for another reason
            self._end_for(error, "the tables cannot be written: ")
            self.summary = {"status": "interrupted"}
        LOG.info("the run has ended: %s", self.summary["status"])
        self.endpoint.close()
        await asyncio.sleep(LINGER_S)
        exit_actor()

    async def _work(self, plan_sha256: str) -> None:
        background: list[asyncio.Future[None]] = []
        try:
            await self.upkeep.take_over()
            await self._admit(plan_sha256)
            self.pool.largest = max(self.requests.values(), key=lambda asked: asked.height * asked.width, default=None)
            watches = (self.upkeep.watch_store(), self.upkeep.keep_hints(), self.upkeep.refresh_views(self.life))
            watches = (*watches, self.pool.watch_drains(), self.pool.watch_places(), self.endpoint.keep_trying())
            background = [self._spawn(watch) for watch in watches]
            full = -(-len(self.requests) // self.config.engine.slots)
            self._emit(events.WorkersWanted(min(self.target_workers, full)))
            await self._handle_events()
        finally:
            for task in background:
                task.cancel()
            self.pool.close()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _admit(self, plan_sha256: str) -> None:
        new = {asked.id: asked for asked in await self.upkeep.admit(plan_sha256) if asked.id not in self.requests}
        self._spawn(self.upkeep.recall(plan_sha256))
        self.requests |= new
        self._unread -= 1
        # Also where there is none: perhaps there is nothing left to wait for.
        self._emit(*(events.VideoSubmitted(asked.id, asked.batch_group, asked.num_frames) for asked in new.values()))

    # What drivers ask

    def identity(self) -> dict[str, Any]:
        """Whose coordinator this is."""
        return {"run_id": self.config.run_id(self.output_url), "output": self.output_url}

    def outcome(self, plan_sha256: str) -> tuple[bool, str | None, int]:
        """Whether it knows this plan, the status of the run once that has ended, and its epoch once it has one."""
        return plan_sha256 in self._plans, self.summary["status"] if self.summary else None, self.upkeep.epoch

    def report(self, plan_sha256: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The progress, and the summary once the run has ended; a plan that it does not know is added to its own."""
        if plan_sha256 not in self._plans and not self.summary:
            self._plans.add(plan_sha256)
            self._unread += 1
            self._spawn(self._admit(plan_sha256))
        return self.progress(), self.summary

    def progress(self) -> dict[str, Any]:
        """Counts of the run, whichever life made it, and the latest problem."""
        return {**self.account.progress(), "warnings": self.pool.warnings, "error": self.error, "bug": self.bug}

    def life(self) -> dict[str, Any]:
        """Counts of this life of the coordinator, and the latest problem."""
        return {**self.account.life(), "error": self.error}

    def stop(self, why: str = "asked by its driver") -> None:
        """Start nothing new; the run ends when what is in hand is committed."""
        if not self.account.stopping:
            LOG.info("stopping: %s", why)
        self.account.stopping = True
        self._emit(events.StopRequested())

    # The loop

    async def _handle_events(self) -> None:
        while not (self.scheduler.is_idle and self._queue.empty() and not self._unread) and not self.error:
            for command in self.scheduler.handle(*await self._queue.get()):
                self._spawn(self._do[type(command)](command))
            self._gauge()

    def _spawn(self, work: Awaitable[None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Future[None]) -> None:
        """A bug in carrying out a command ends the run: going on would leave its video waiting for ever."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error:
            self._end_for(error)

    def _end_for(self, error: BaseException, what: str = "") -> None:
        told = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        is_rays = isinstance(error, RayError) and not isinstance(error, RayTaskError)
        self._end(f"{what}{told}", None if is_rays else log_bug("which ends the run", error))

    def _end(self, reason: str, bug: str | None = None) -> None:
        LOG.error("the run ends: %s", reason)
        if not self.error:
            self.error, self.bug = reason, bug
        self.outages.close()  # what may never come must not keep the end from being told
        self.stop("the run ends")

    def _emit(self, *happened: events.Event) -> None:
        self._queue.put_nowait(happened)

    def _gauge(self) -> None:
        self.metrics.workers.set(len(self.scheduler.crew.workers))
        self.metrics.in_flight.set(len(self.scheduler.videos))
        self.metrics.waiting.set(len(self.scheduler.waiting))
        self.metrics.slots_used.set(self.scheduler.crew.in_hand)

    # Commands

    async def _load(self, command: events.Load) -> None:
        request = self.requests[command.id]
        if command.id in self.videos:
            self._discard(self.videos.pop(command.id).pending)
        try:
            done = await self.upkeep.storage(self.store.read_done, command.id)
            if done and command.id not in self.upkeep.remake:
                # Finished since the last hint of it.
                self.upkeep.final.add(command.id)
                self.account.tally.finish(command.id)
                self._emit(events.AlreadyDone(command.id))
                return
            await self.upkeep.storage(self.store.claim_request, request)
            loaded = await self.upkeep.storage(self.store.load, request, self.fingerprint)
        except VIDEO_ERRORS as error:
            self._emit(video_error(command.id, error))
            return
        if loaded:
            self._remember(*loaded)
            self.metrics.count_video("resumed")
        self._emit(events.Loaded(command.id, loaded[0].frame if loaded else None))

    def _remember(self, state: VideoState, tip: Tip) -> None:
        self.videos[state.request.id] = _Video(state, tip, ready_since=time.monotonic())
        self.account.settled(state.request.id, state.frame)

    async def _encode(self, command: events.Encode) -> None:
        request = self.requests[command.id]
        done = await self.pool.call(command.worker, (command.id,), "encode", request)
        if done is None:
            return
        encoded, seconds = done
        self.metrics.observe("encode", seconds)
        try:
            begun = await self.upkeep.storage(self.store.begin, request, encoded, self.fingerprint)
        except VIDEO_ERRORS as error:
            self._emit(video_error(command.id, error))
            return
        self._remember(*begun)
        self._emit(events.Encoded(command.worker, command.id))

    async def _advance(self, command: events.Advance) -> None:
        videos = [self.videos[video_id] for video_id in command.ids]
        now = time.monotonic()
        for video in videos:
            self.metrics.observe("queue_wait", now - video.ready_since)
        done = await self.pool.call(command.worker, command.ids, "advance", [video.state for video in videos])
        if done is None:
            if command.worker not in self.pool.actors:
                self.metrics.discarded.inc(len(videos))
            return
        results, seconds = done
        frames: dict[str, int] = {}
        for video, result in zip(videos, results, strict=True):
            if isinstance(result, NonFiniteLatents):
                continue
            count = len(result.latents_FCHW)
            self.metrics.observe("denoise", seconds / count, count)
            video.device_seconds += seconds / len(videos)
            video.state = video.state.push(result)
            video.pending.append(result)
            video.ready_since = time.monotonic()
            frames[result.video_id] = result.last_frame
        self._emit(events.ChunkDone(command.worker, command.ids, frames))
        for result in results:
            if isinstance(result, NonFiniteLatents):
                self._emit(video_error(result.video_id, result))

    async def _commit(self, command: events.Commit) -> None:
        video = self.videos[command.id]
        async with video.lock:
            if not video.pending:
                return  # dropped: an earlier frame turned out to be superseded
            chunk = video.pending.pop(0)
            began = time.monotonic()
            try:
                settled = await self.upkeep.storage(self.store.commit, chunk, video.tip)
            except Exception as error:
                video.pending.clear()  # what follows this chunk has no parent
                if not isinstance(error, VIDEO_ERRORS):
                    raise
                self._emit(video_error(command.id, error))
                return
            self.metrics.observe("commit", time.monotonic() - began, len(chunk.latents_FCHW))
            if not settled.ours:
                self._discard([chunk, *video.pending])
                video.pending.clear()
                await self.upkeep.step_down_if_superseded()
                self._emit(events.Superseded(command.id))
                return
            video.tip = settled.tip
            self.account.settled(command.id, chunk.last_frame, len(chunk.latents_FCHW))
            self.metrics.frames.inc(len(chunk.latents_FCHW))
            self._emit(events.Committed(command.id, chunk.last_frame))

    async def _finish(self, command: events.Finish) -> None:
        request, video = self.requests[command.id], self.videos[command.id]
        facts = {
            "run_id": self.config.run_id(self.output_url),
            "device_seconds": round(video.device_seconds, 3),
            "started_at": video.started_at,
        }
        done = await self.pool.call(command.worker, (command.id,), "finish", request, facts)
        if done is None:
            return
        row, seconds = done
        self.metrics.observe("decode", seconds / (request.num_frames - 1), request.num_frames - 1)
        await self.upkeep.storage(self.store.finish, command.id, row, request.generation)
        self.account.has_finished(command.id)
        self.metrics.count_video("finished")
        LOG.info("a video is finished", extra={"worker": command.worker, "video": command.id})
        self._emit(events.Finished(command.worker, command.id))

    async def _fail(self, command: events.Fail) -> None:
        request = self.requests[command.id]
        failure = dataset.failure_row(
            request, command.error_type, command.message, command.attempts, self.upkeep.lines.get(command.id, 0)
        )
        await self.upkeep.storage(self.store.fail, command.id, failure, request.generation)
        self.account.has_failed(command.id)
        self.metrics.count_video("failed")
        self.metrics.count_failure(command.error_type)
        LOG.warning("a video failed: %s", command.error_type, extra={"video": command.id})
        await self._forget(command)
        if self.account.failed > self.config.max_failures * len(self.upkeep.lines):
            self._end(f"{self.account.failed} of {len(self.upkeep.lines)} videos failed, more than max_failures allows")

    def _discard(self, chunks: list[Chunk]) -> None:
        self.metrics.discarded.inc(sum(len(chunk.latents_FCHW) for chunk in chunks))

    async def _forget(self, command: events.Forget | events.Fail) -> None:
        self.videos.pop(command.id, None)
        self.requests.pop(command.id, None)

    async def _give_up(self, command: events.GiveUp) -> None:
        bugs = (bug for told, bug in self.pool.bugs.items() if command.reason.endswith(told))
        self._end(command.reason, next(bugs, None))

    async def _accept(self, numerics: dict[str, Any]) -> None:
        self.fingerprint = await self.upkeep.storage(self.store.claim_fingerprint, numerics)
