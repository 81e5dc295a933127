"""Who works next: pure decisions. An event goes in, commands come out; no clock, no IO, no torch, no Ray.

A run can be replayed from its list of events, so every distributed bug becomes a story in `tests/test_scheduler.py`.

Life of a video: waiting → loading → (encoding) → ready ⇄ advancing → finishing → done, or failed from anywhere.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from ti2v_dist import events
from ti2v_dist.losses import LOSSES

MAX_ATTEMPTS = 3
"""Errors of a video's own work before it becomes a failed row."""
MAX_CRASHES = 3
"""Workers that may be lost through a video in hand before it becomes a failed row."""
CALLS_PER_WORKER = 2
"""Outstanding calls: one in hand and one behind it, so that a worker never waits for the network."""


@dataclass
class _Video:
    id: str
    group: tuple
    num_frames: int
    status: str = "waiting"
    frame: int = 0
    committed: int = 0
    attempts: int = 0
    crashes: int = 0
    void: bool = False  # what comes back for it rests on a superseded frame

    @property
    def last(self) -> int:
        return self.num_frames - 1

    @property
    def frames_left(self) -> int:
        return max(0, self.last - self.frame)

    @property
    def is_suspect(self) -> bool:
        return max(self.attempts, self.crashes) >= 2


@dataclass
class _Worker:
    calls: list[tuple[str, ...]] = field(default_factory=list)
    leaving: bool = False  # its node is to be taken away: it finishes what it has in hand

    def return_call(self, ids: tuple[str, ...]) -> bool:
        """Take a call off the list; False if it was not there any more."""
        if ids not in self.calls:
            return False
        self.calls.remove(ids)
        return True


class Scheduler:
    """Decides what every worker does next. `slots` is the batch size of a worker."""

    def __init__(self, slots: int):
        self.slots = slots
        self.waiting: deque[_Video] = deque()
        self.videos: dict[str, _Video] = {}  # admitted ones, in the order of the next turn
        self.workers: dict[int, _Worker] = {}
        self.frames_left = 0  # frames still to be computed, of all videos: kept, for it is asked for all the time
        self.stopping = False
        self.barren = Counter[str]()  # losses in a row without one finished call, by reason
        self._handlers: dict[type, Callable] = {
            events.VideoSubmitted: self._on_submitted,
            events.Loaded: self._on_loaded,
            events.AlreadyDone: self._on_already_done,
            events.WorkerReady: self._on_worker_ready,
            events.WorkerLost: self._on_worker_lost,
            events.WorkerDraining: self._on_worker_draining,
            events.Encoded: self._on_encoded,
            events.ChunkDone: self._on_chunk_done,
            events.CallFailed: self._on_call_failed,
            events.CallCancelled: self._on_call_cancelled,
            events.VideoError: self._on_video_error,
            events.Committed: self._on_committed,
            events.Superseded: self._on_superseded,
            events.Finished: self._on_finished,
            events.StopRequested: self._on_stop,
        }

    def handle(self, *happened: events.Event) -> list[events.Command]:
        """Take in events, many where videos are submitted together, and return what is to be done now."""
        commands = [command for event in happened for command in self._handlers[type(event)](event)]
        return commands + self._release() + self._admit() + self._dispatch()

    @property
    def is_idle(self) -> bool:
        """True when nothing is left to do, or, once stopping, when nothing is in hand any more."""
        in_hand = any(worker.calls for worker in self.workers.values())
        if self.stopping:
            committing = any(video.committed < video.frame for video in self.videos.values())
            return not in_hand and not committing
        return not self.videos and not self.waiting

    def count(self, status: str) -> int:
        """Number of admitted videos with this status."""
        return sum(video.status == status for video in self.videos.values())

    @property
    def in_hand(self) -> int:
        """Videos inside the calls that workers are carrying out; what waits behind them is not counted."""
        return sum(len(worker.calls[0]) for worker in self.workers.values() if worker.calls)

    # Events

    def _on_submitted(self, event: events.VideoSubmitted) -> list[events.Command]:
        video = _Video(event.id, event.group, event.num_frames)
        self.waiting.append(video)
        self.frames_left += video.frames_left
        return []

    def _on_loaded(self, event: events.Loaded) -> list[events.Command]:
        video = self.videos[event.id]
        video.void = False
        self._set_frame(video, event.frame or 0)
        video.committed = video.frame
        video.status = "new" if event.frame is None else self._next_status(video)
        return []

    def _on_already_done(self, event: events.AlreadyDone) -> list[events.Command]:
        self._remove(event.id)
        return [events.Forget(event.id)]

    def _on_worker_ready(self, event: events.WorkerReady) -> list[events.Command]:
        self.workers[event.worker] = _Worker()
        return []

    def _on_worker_lost(self, event: events.WorkerLost) -> list[events.Command]:
        worker = self.workers.pop(event.worker, None)
        if self.stopping:
            return []
        policy = LOSSES[event.reason]
        self.barren[event.reason] += 1
        if self.barren[event.reason] == policy.limit:
            self.stopping = True
            ends = f"{policy.limit} workers in a row {policy.what} without finishing a call"
            return [events.GiveUp(f"{ends}: {policy.advice}")]
        commands: list[events.Command] = [] if worker and worker.leaving else [events.StartWorker()]
        for ids in worker.calls if worker else []:
            for video in map(self.videos.get, ids):
                if video is None:
                    continue
                video.crashes += policy.counts
                message = f"{video.crashes} workers were lost with this video in hand, the last one {event.reason}"
                exhausted = video.crashes >= MAX_CRASHES
                commands += self._fail(video, "WorkerCrashed", message) if exhausted else self._try_again(video)
        return commands

    def _on_worker_draining(self, event: events.WorkerDraining) -> list[events.Command]:
        worker = self.workers.get(event.worker)
        if worker is None or worker.leaving:
            return []
        worker.leaving = True
        commands: list[events.Command] = [events.Recall(event.worker)] if worker.calls else []
        return commands if self.stopping else [*commands, events.StartWorker()]

    def _on_encoded(self, event: events.Encoded) -> list[events.Command]:
        if self._returned(event.worker, (event.id,)):
            self.videos[event.id].status = "ready"
        return []

    def _on_chunk_done(self, event: events.ChunkDone) -> list[events.Command]:
        if not self._returned(event.worker, event.ids):
            return []
        commands: list[events.Command] = []
        for video_id, frame in event.frames.items():
            video = self.videos.get(video_id)
            if video is None:  # it failed while it was being computed: an earlier frame could not be settled
                continue
            if video.void:
                commands.append(self._load(video))
                continue
            self._set_frame(video, frame)
            video.attempts = video.crashes = 0
            commands.append(events.Commit(video.id, frame))
            self._requeue(video)
        return commands

    def _on_call_failed(self, event: events.CallFailed) -> list[events.Command]:
        if not self._returned(event.worker, event.ids):
            return []
        commands: list[events.Command] = []
        for video in map(self.videos.get, event.ids):
            if video is None:
                continue
            video.attempts += 1
            exhausted = video.attempts >= MAX_ATTEMPTS
            commands += self._fail(video, event.error_type, event.message) if exhausted else self._try_again(video)
        return commands

    def _on_call_cancelled(self, event: events.CallCancelled) -> list[events.Command]:
        worker = self.workers.get(event.worker)
        if worker is None or not worker.return_call(event.ids):
            return []
        found = [video for video in map(self.videos.get, event.ids) if video]
        return [command for video in found for command in self._try_again(video)]

    def _on_video_error(self, event: events.VideoError) -> list[events.Command]:
        video = self.videos.get(event.id)
        if video is None:
            return []
        for worker in self.workers.values():
            worker.return_call((event.id,))
        return self._fail(video, event.error_type, event.message)

    def _on_committed(self, event: events.Committed) -> list[events.Command]:
        video = self.videos.get(event.id)
        if video is None:
            return []
        video.committed = event.frame
        if video.status == "settling":
            video.status = self._next_status(video)
        return []

    def _on_superseded(self, event: events.Superseded) -> list[events.Command]:
        video = self.videos.get(event.id)
        if video is None:
            return []
        if video.status == "advancing":
            video.void = True
            return []
        return [self._load(video)]

    def _on_finished(self, event: events.Finished) -> list[events.Command]:
        if not self._returned(event.worker, (event.id,)):
            return []
        self._remove(event.id)
        return [events.Forget(event.id)]

    def _on_stop(self, event: events.StopRequested) -> list[events.Command]:
        self.stopping = True
        return []

    # Decisions

    def _returned(self, worker: int, ids: tuple[str, ...]) -> bool:
        """Take a call back; False for one of a worker already given up for lost, whose videos went elsewhere."""
        if worker not in self.workers or not self.workers[worker].return_call(ids):
            return False
        self.barren.clear()
        return True

    def _next_status(self, video: _Video) -> str:
        """Computing frame n + 1 may overlap the commit of n, and no more: a slow store holds its videos back."""
        if video.frame >= video.last:
            return "complete" if video.committed == video.frame else "settling"
        return "ready" if video.frame - video.committed <= 1 else "settling"

    def _set_frame(self, video: _Video, frame: int) -> None:
        self.frames_left -= video.frames_left
        video.frame = frame
        self.frames_left += video.frames_left

    def _remove(self, video_id: str) -> None:
        self.frames_left -= self.videos.pop(video_id).frames_left

    def _requeue(self, video: _Video) -> None:
        """Put the video behind the others: turns go round, so that the last videos still fill their batches."""
        video.status = self._next_status(video)
        self.videos[video.id] = self.videos.pop(video.id)

    def _load(self, video: _Video) -> events.Load:
        video.status = "loading"
        return events.Load(video.id)

    def _try_again(self, video: _Video) -> list[events.Command]:
        if video.void:
            return [self._load(video)]
        video.status = "new" if video.status == "encoding" else self._next_status(video)
        return []

    def _fail(self, video: _Video, error_type: str, message: str) -> list[events.Command]:
        self._remove(video.id)
        return [events.Fail(video.id, error_type, message, max(video.attempts, video.crashes, 1))]

    def _release(self) -> list[events.Command]:
        """A worker that leaves is let go as soon as it has returned its last call."""
        gone = [number for number, worker in self.workers.items() if worker.leaving and not worker.calls]
        for number in gone:
            del self.workers[number]
        return [events.Release(number) for number in gone]

    def _admit(self) -> list[events.Command]:
        """Hold at most two batches a worker in memory: one computing, one behind it."""
        commands: list[events.Command] = []
        staying = sum(not worker.leaving for worker in self.workers.values())
        room = CALLS_PER_WORKER * self.slots * staying - len(self.videos)
        while self.waiting and room > 0 and not self.stopping:
            video = self.waiting.popleft()
            self.videos[video.id] = video
            commands.append(self._load(video))
            room -= 1
        return commands

    def _dispatch(self) -> list[events.Command]:
        """Give every worker with room its next call, the emptiest worker first."""
        commands: list[events.Command] = []
        given = True
        while given and not self.stopping:
            given = False
            for number, worker in sorted(self.workers.items(), key=lambda item: len(item[1].calls)):
                call = self._next_call(number, worker)
                if call:
                    worker.calls.append((call.id,) if isinstance(call, events.Encode | events.Finish) else call.ids)
                    commands.append(call)
                    given = True
                    break
        return commands

    def _next_call(self, number: int, worker: _Worker) -> events.Encode | events.Finish | events.Advance | None:
        if worker.leaving or len(worker.calls) >= CALLS_PER_WORKER or self._tries_a_suspect(worker):
            return None
        for status, single in (("complete", events.Finish), ("new", events.Encode)):
            video = next((v for v in self.videos.values() if v.status == status), None)
            if video and video.is_suspect and worker.calls:
                return None
            if video:
                video.status = "finishing" if single is events.Finish else "encoding"
                return single(number, video.id)
        batch = self._next_batch()
        if not batch or (batch[0].is_suspect and worker.calls):
            return None
        # A batch that is not full waits while the videos that could fill it are on their way: in the call in hand,
        # or being read. A suspect's batch is as full as it will be.
        more_to_come = worker.calls or self.count("loading")
        if more_to_come and len(batch) < self.slots and not batch[0].is_suspect:
            return None
        for video in batch:
            video.status = "advancing"
        return events.Advance(number, tuple(video.id for video in batch))

    def _tries_a_suspect(self, worker: _Worker) -> bool:
        """A suspect is alone on its worker: a call queued beside its own would share the blame."""
        return any(self.videos[i].is_suspect for ids in worker.calls for i in ids if i in self.videos)

    def _next_batch(self) -> list[_Video]:
        ready = [video for video in self.videos.values() if video.status == "ready"]
        # What failed twice is tried alone, for its neighbours are innocent.
        if ready and ready[0].is_suspect:
            return ready[:1]
        return [v for v in ready if v.group == ready[0].group and not v.is_suspect][: self.slots]
