"""Videos: what a coordinator holds of every admitted video, and how it carries out what is to be done with them.

Across every await the world may have changed: the worker may be lost, the video with another one, or one of its frames
superseded. So each reply is looked at before it counts, and a late one never replaces newer state.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from ti2v_dist.canonical import differences
from ti2v_dist.config import RunConfig
from ti2v_dist.latents import BrokenVideo, Chunk, VideoState
from ti2v_dist.outputs import dataset
from ti2v_dist.runtime.account import Account
from ti2v_dist.runtime.classes import Classes
from ti2v_dist.runtime.pool import VIDEO_ERRORS, WorkerPool, video_error
from ti2v_dist.runtime.upkeep import Upkeep
from ti2v_dist.scheduling import events
from ti2v_dist.state.record import Tip
from ti2v_dist.telemetry.log import LOG
from ti2v_dist.telemetry.metrics import Metrics
from ti2v_dist.video import VideoRequest


@dataclass
class _Video:
    """What is remembered of a video since it was loaded or begun."""

    state: VideoState
    tip: Tip
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    pending: list[tuple[Chunk, str]] = field(default_factory=list)
    """Chunks to be settled, each with the class of the worker that made it."""
    ready_since: float = field(default_factory=time.monotonic)
    device_seconds: float = 0.0
    started_at: float = field(default_factory=time.time)
    is_void: bool = False
    """Another owner's frame has superseded one of ours: whatever rests on ours is dropped when it arrives."""


class Videos:
    """The videos of one life of a coordinator. `emit` tells its scheduler what happened, `end` ends the run."""

    def __init__(
        self,
        config: RunConfig,
        run_id: str,
        pool: WorkerPool,
        upkeep: Upkeep,
        account: Account,
        classes: Classes,
        metrics: Metrics,
        emit: Callable[..., None],
        end: Callable[[str], None],
    ) -> None:
        self.config, self.pool, self.upkeep, self.account, self.metrics = config, pool, upkeep, account, metrics
        self.store, self.classes, self.emit, self.end = upkeep.store, classes, emit, end
        self.run_id = run_id
        self.requests: dict[str, VideoRequest] = {}
        self.later: dict[str, VideoRequest] = {}
        """Longer generations of videos whose shorter one is still in hand."""
        self._held: dict[str, _Video] = {}
        self._negatives: WeakValueDictionary[str, np.ndarray] = WeakValueDictionary()
        """The embedding of each negative prompt in use: nearly all videos share one, and it is half of a message."""
        self.do: dict[type, Callable[[Any], Awaitable[None]]] = {
            events.Load: self._load,
            events.Encode: self._encode,
            events.Advance: self._advance,
            events.Commit: self._commit,
            events.Finish: self._finish,
            events.Fail: self._fail,
            events.Park: self._park,
            events.Forget: self._forget,
        }

    def admit(self, requests: Iterable[VideoRequest]) -> list[events.Event]:
        """Take in those that are not known; returns what to tell the scheduler."""
        told: list[events.Event] = []
        for asked in requests:
            known = self.requests.get(asked.id)
            if known is None:
                told.append(self._submit(asked))
            elif asked.generation > known.generation:
                self.later[asked.id] = asked  # once the shorter one has its end
            elif asked.generation == known.generation and differences(known.identity(), asked.identity()):
                self.pool.warn(None, f"two commands ask for different videos {asked.id!r}; the first one's is made")
        return told

    def _submit(self, asked: VideoRequest) -> events.VideoSubmitted:
        self.requests[asked.id] = asked
        return events.VideoSubmitted(asked.id, asked.batch_group, asked.num_frames)

    async def _load(self, command: events.Load) -> None:
        request = self.requests[command.id]
        if before := self._held.pop(command.id, None):
            self._discard(chunk for chunk, _ in before.pending)
        kind = ""
        try:
            done = await self.upkeep.storage(self.store.read_done, command.id, request.generation)
            if done and command.id not in self.upkeep.plans.remake:
                # Finished since the last hint of it.
                self.upkeep.plans.is_final(command.id, request.generation)
                self.account.tally.finish(command.id)
                self.emit(events.AlreadyDone(command.id))
                return
            await self.upkeep.storage(self.store.claim_request, request)
            loaded = await self.upkeep.storage(self.store.load, request, self.classes.newest)
            if request.origin and not loaded:  # as its first frames, which it shares
                kind = await self.upkeep.storage(self.store.class_at, request.origin.id, request.origin.frame)
        except VIDEO_ERRORS as error:
            self.emit(video_error(command.id, error))
            return
        if loaded:
            self._remember(*loaded)
            self.metrics.count_video("resumed")
            self.emit(events.Loaded(command.id, loaded[0].frame, loaded[1].fingerprint))
        else:
            self.emit(events.Loaded(command.id, None, kind))

    def _remember(self, state: VideoState, tip: Tip) -> None:
        negative = self._negatives.setdefault(state.request.negative_prompt, state.negative_text_LD)
        if np.array_equal(negative, state.negative_text_LD):
            state = replace(state, negative_text_LD=negative)
        self._held[state.request.id] = _Video(state, tip)
        self.account.settled(state.request.id, state.frame)

    async def _encode(self, command: events.Encode) -> None:
        request = self.requests[command.id]
        done = await self.pool.call(command.worker, (command.id,), "encode", request)
        if done is None:
            return
        encoded, seconds = done
        self.metrics.observe("encode", seconds)
        try:
            kind = self.pool.kinds[command.worker]
            begun = await self.upkeep.storage(self.store.begin, request, encoded, kind)
        except VIDEO_ERRORS as error:
            self.emit(video_error(command.id, error))
            return
        if self.pool.is_there(command.worker):  # else the video went elsewhere, and perhaps far
            self._remember(*begun)
            self.emit(events.Encoded(command.worker, command.id, begun[1].fingerprint))

    async def _advance(self, command: events.Advance) -> None:
        videos = [self._held[video_id] for video_id in command.ids]
        for video in videos:
            self.metrics.observe("queue_wait", time.monotonic() - video.ready_since)
        done = await self.pool.call(command.worker, command.ids, "advance", [video.state for video in videos])
        if done is None:
            if not self.pool.is_there(command.worker):
                self.metrics.discarded.inc(len(videos))
            return
        results, seconds = done
        frames: dict[str, int] = {}
        failed: list[BrokenVideo] = []
        for video, result in zip(videos, results, strict=True):
            if isinstance(result, BrokenVideo):
                if video.is_void:
                    frames[result.video_id] = result.frame
                else:
                    failed.append(result)
                continue
            self.metrics.observe("denoise", seconds / result.frames, result.frames)
            frames[result.video_id] = result.last_frame
            if video.is_void:
                self._discard([result])
                continue
            video.device_seconds += seconds / len(videos)
            video.state = video.state.push(result)
            video.pending.append((result, self.pool.kinds[command.worker]))
            video.ready_since = time.monotonic()
        self.emit(events.ChunkDone(command.worker, command.ids, frames))
        for error in failed:
            self.emit(video_error(error.video_id, error))

    async def _commit(self, command: events.Commit) -> None:
        video = self._held.get(command.id)
        if video is None:
            return  # it failed meanwhile
        async with video.lock:
            if not video.pending:
                return  # dropped: an earlier frame turned out to be superseded
            chunk, kind = video.pending.pop(0)
            began = time.monotonic()
            try:
                settled = await self.upkeep.storage(self.store.commit, chunk, await self._tip(video, kind))
            except Exception as error:
                video.pending.clear()  # what follows this chunk has no parent
                if not isinstance(error, VIDEO_ERRORS):
                    raise
                self.emit(video_error(command.id, error))
                return
            self.metrics.observe("commit", time.monotonic() - began, chunk.frames)
            if settled.ours:
                video.tip = settled.tip
                made = chunk.frames_of(video.state.request.num_frames)
                self.account.settled(command.id, chunk.last_frame, made)
                self.metrics.frames.inc(made)
                self.emit(events.Committed(command.id, chunk.last_frame))
                return
            video.is_void = True
            self._discard([chunk, *(later for later, _ in video.pending)])
            video.pending.clear()
            self.emit(events.Superseded(command.id))
        await self.upkeep.step_down_if_superseded()

    async def _tip(self, video: _Video, kind: str) -> Tip:
        """What the next record follows; made by workers of another class than the last one, it records the change."""
        if kind == video.tip.fingerprint:
            return video.tip
        assert video.tip.fingerprint in self.classes.let_go, f"{video.tip.video_id} would change its class"
        return await self.upkeep.storage(self.store.moved, video.tip, kind)

    async def _finish(self, command: events.Finish) -> None:
        request, video = self.requests[command.id], self._held[command.id]
        facts = {
            "run_id": self.run_id,
            "device_seconds": round(video.device_seconds, 3),
            "started_at": video.started_at,
        }
        done = await self.pool.call(command.worker, (command.id,), "finish", request, facts)
        if done is None:
            return
        row, seconds = done
        self.metrics.observe("decode", seconds / (request.num_frames - 1), request.num_frames - 1)
        await self.upkeep.storage(self.store.finish, command.id, row, request.generation)
        if not self.pool.is_there(command.worker):
            return  # another one finishes it too, with the same row: once is enough to count it
        self.account.has_finished(command.id, request.generation)
        self.metrics.count_video("finished")
        if request.params.spec.has_joins:
            self.metrics.observe_seams(json.loads(row.get("seams", "[]")))
        LOG.info("a video is finished", extra={"worker": command.worker, "video": command.id})
        self.emit(events.Finished(command.worker, command.id))

    async def _fail(self, command: events.Fail) -> None:
        request, line = self.requests[command.id], self.upkeep.plans.lines.get(command.id, 0)
        failure = dataset.failure_row(request, command.error_type, command.message, command.attempts, line)
        await self.upkeep.storage(self.store.fail, command.id, failure, request.generation)
        self.account.has_failed(command.id, request.generation)
        self.metrics.count_video("failed")
        self.metrics.count_failure(command.error_type)
        LOG.warning("a video failed: %s", command.error_type, extra={"video": command.id})
        await self._forget(command)
        failed, rows = self.account.failed_of_run, self.upkeep.plans.rows
        if failed > self.config.max_failures * rows:
            self.end(f"{failed} of {rows} videos failed, more than max_failures allows")

    async def _park(self, command: events.Park) -> None:
        self._held.pop(command.id, None)

    async def _forget(self, command: events.Forget | events.Fail) -> None:
        self._held.pop(command.id, None)
        self.requests.pop(command.id, None)
        if longer := self.later.pop(command.id, None):
            self.emit(self._submit(longer))

    def _discard(self, chunks: Iterable[Chunk]) -> None:
        self.metrics.discarded.inc(sum(chunk.frames for chunk in chunks))
