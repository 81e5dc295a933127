"""Who works next: pure decisions. An event goes in, commands come out; no clock, no IO, no torch, no Ray.

A run can be replayed from its list of events, so every distributed bug becomes a story in `tests/scheduling`.

Life of a video: waiting → loading → (encoding) → ready ⇄ advancing → finishing → done, or failed from anywhere.
A video stays with the workers of its kind, and a new one goes wherever there is room (`kinds`). Which call a worker
gets is decided in `calls`.
"""

from collections import Counter, deque
from collections.abc import Callable
from itertools import count

from ti2v_dist.scheduling import events
from ti2v_dist.scheduling.calls import Calls
from ti2v_dist.scheduling.crew import Crew
from ti2v_dist.scheduling.kinds import Kinds
from ti2v_dist.scheduling.line import Line, Video
from ti2v_dist.scheduling.losses import LOSSES
from ti2v_dist.scheduling.starts import Starts

MAX_ATTEMPTS = 3
"""Errors of a video's own work before it becomes a failed row."""
MAX_CRASHES = 3
"""Workers that may be lost through a video in hand before it becomes a failed row."""


class Scheduler:
    """Decides what every worker does next. `slots` is the batch size of a worker."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.waiting: deque[Video] = deque()
        self.videos: dict[str, Video] = {}  # admitted ones
        self.crew = Crew()
        self.kinds = Kinds[Video](self.crew, slots)
        self.starts = Starts()
        self.stopping = False
        self.barren = Counter[str]()  # losses in a row without one finished call, by reason
        self._turns = count()
        self._line = Line(self.videos, slots, self.kinds.share)
        self._calls = Calls(self.crew, self.kinds, self._line)
        self._unsettled: set[str] = set()
        self._handlers: dict[type, Callable] = {
            events.VideoSubmitted: self._on_submitted,
            events.Loaded: self._on_loaded,
            events.AlreadyDone: self._on_already_done,
            events.WorkersWanted: self.starts.on_wanted,
            events.Places: self.starts.on_places,
            events.WorkerReady: self._on_worker_ready,
            events.StartFailed: lambda event: self.starts.on_failed(event, self.crew.staying),
            events.WorkerRefused: lambda event: self.starts.on_refused(event, self.crew.staying),
            events.WorkerLost: self._on_worker_lost,
            events.WorkerDraining: self._on_worker_draining,
            events.ClassGone: self._on_class_gone,
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
        if self.stopping:
            commands = [c for c in commands if not isinstance(c, events.StartWorker | events.GiveUp)]
        self.stopping = self.stopping or any(isinstance(c, events.GiveUp) for c in commands)
        commands += self._release()
        return commands if self.stopping else commands + self._admit() + self._calls.dispatch()

    @property
    def is_idle(self) -> bool:
        """True when nothing is left to do, or, once stopping, when nothing is in hand any more."""
        if self.stopping:
            return not self.crew.calls and not self._unsettled
        return not self.videos and not self.waiting and not self.kinds.parked

    # Events

    def _on_submitted(self, event: events.VideoSubmitted) -> list[events.Command]:
        self.waiting.append(Video(event.id, event.group, event.num_frames))
        return []

    def _on_loaded(self, event: events.Loaded) -> list[events.Command]:
        video = self.videos[event.id]
        video.void = False
        video.frame, video.unsettled = event.frame or 0, []
        self._unsettled.discard(video.id)
        return self._bind(video, event.kind, "new" if event.frame is None else video.next_status)

    def _on_already_done(self, event: events.AlreadyDone) -> list[events.Command]:
        self._drop(self.videos[event.id])
        return [events.Forget(event.id)]

    def _on_worker_ready(self, event: events.WorkerReady) -> list[events.Command]:
        if event.slots:
            self.slots = self._line.slots = self.kinds.slots = event.slots
        self.crew.join(event.worker, event.kind)
        if event.kind in self.kinds.let_go:
            self.kinds.let_go.discard(event.kind)
            self._share_anew(event.kind)
        return self.starts.on_ready(event)

    def _on_worker_lost(self, event: events.WorkerLost) -> list[events.Command]:
        worker = self.crew.lose(event.worker)
        self.starts.on_lost(event.worker)
        if self.stopping:
            return []
        policy = LOSSES[event.reason]
        self.barren[event.reason] += 1
        if self.barren[event.reason] == policy.limit:
            ends = f"{policy.limit} workers in a row {policy.what} without finishing a call"
            return [events.GiveUp(f"{ends}: {event.detail or policy.advice}")]
        commands: list[events.Command] = [] if worker and worker.leaving else [self.starts.start()]
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
        worker = self.crew.drain(event.worker)
        if worker is None:
            return []
        commands: list[events.Command] = [events.Recall(event.worker)] if worker.calls else []
        return [*commands, self.starts.start()]

    def _on_class_gone(self, event: events.ClassGone) -> list[events.Command]:
        if self.crew.kinds.get(event.kind):
            return []  # one has come after all
        self.kinds.let_go.add(event.kind)
        self._share_anew(event.kind)
        for video in reversed(self.kinds.parked.pop(event.kind, ())):
            video.kind = ""
            self.waiting.appendleft(video)
        return []

    def _on_encoded(self, event: events.Encoded) -> list[events.Command]:
        if not self._returned(event.worker, (event.id,)):
            return []
        return self._bind(self.videos[event.id], event.kind, "ready")

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
            video.frame, video.attempts, video.crashes = frame, 0, 0
            video.kind = self.crew.workers[event.worker].kind
            video.unsettled.append(frame)
            self._unsettled.add(video.id)
            commands.append(events.Commit(video.id, frame))
            # Turns go round, so that the last videos still fill their batches.
            video.turn = next(self._turns)
            self._line.put(video, video.next_status)
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
        if not self.crew.returned(event.worker, event.ids):
            return []
        found = [video for video in map(self.videos.get, event.ids) if video]
        return [command for video in found for command in self._try_again(video)]

    def _on_video_error(self, event: events.VideoError) -> list[events.Command]:
        video = self.videos.get(event.id)
        if video is None:
            return []
        if (holder := self.crew.holder((event.id,))) is not None:
            self.crew.returned(holder, (event.id,))
        return self._fail(video, event.error_type, event.message)

    def _on_committed(self, event: events.Committed) -> list[events.Command]:
        video = self.videos.get(event.id)
        if video is None:
            return []
        video.unsettled = [frame for frame in video.unsettled if frame > event.frame]
        if not video.unsettled:
            self._unsettled.discard(video.id)
        if video.status == "settling":
            self._line.put(video, video.next_status)
        return []

    def _on_superseded(self, event: events.Superseded) -> list[events.Command]:
        video = self.videos.get(event.id)
        if video is None:
            return []
        self._unsettled.discard(video.id)  # what was to be settled is dropped
        if video.status == "advancing":
            video.void = True
            return []
        return [self._load(video)]

    def _on_finished(self, event: events.Finished) -> list[events.Command]:
        if not self._returned(event.worker, (event.id,)):
            return []
        self._drop(self.videos[event.id])
        return [events.Forget(event.id)]

    def _on_stop(self, event: events.StopRequested) -> list[events.Command]:
        self.stopping = True
        return []

    # Decisions

    def _returned(self, worker: int, ids: tuple[str, ...]) -> bool:
        """Take a call back; False for one of a worker already given up for lost, whose videos went elsewhere."""
        if not self.crew.returned(worker, ids):
            return False
        self.barren.clear()
        return True

    def _bind(self, video: Video, kind: str, status: str) -> list[events.Command]:
        """A video's class is known. Where that has no room for it, others may have use for the memory."""
        is_news, video.kind = kind != video.kind, kind
        self.kinds.hold(video.id, self.kinds.share(kind))
        if is_news and self.kinds.is_over(kind):
            self._drop(video)
            self.kinds.park(kind, video)
            return [events.Park(video.id)]
        self._line.put(video, status)
        return []

    def _share_anew(self, kind: str) -> None:
        """Whose workers the videos of a kind are for has changed; what is in hand ends where it is."""
        for video in self.videos.values():
            if video.kind == kind and video.status not in ("encoding", "advancing", "finishing"):
                self.kinds.hold(video.id, self.kinds.share(kind))
                self._line.put(video, video.status)

    def _drop(self, video: Video) -> None:
        del self.videos[video.id]
        self.kinds.drop(video.id)
        self._line.leave(video.id)
        self._unsettled.discard(video.id)

    def _load(self, video: Video) -> events.Load:
        self.kinds.hold(video.id, self.kinds.share(video.kind))
        self._line.put(video, "loading")
        return events.Load(video.id)

    def _try_again(self, video: Video) -> list[events.Command]:
        if video.void:
            return [self._load(video)]
        self.kinds.hold(video.id, self.kinds.share(video.kind))
        self._line.put(video, "new" if video.status == "encoding" else video.next_status)
        return []

    def _fail(self, video: Video, error_type: str, message: str) -> list[events.Command]:
        self._drop(video)
        return [events.Fail(video.id, error_type, message, max(video.attempts, video.crashes, 1))]

    def _release(self) -> list[events.Command]:
        """A worker that leaves is let go as soon as it has returned its last call."""
        return [events.Release(number) for number in self.crew.released()]

    def _admit(self) -> list[events.Command]:
        """Take as many videos into memory as there is room for, those first whose class has room again."""
        commands: list[events.Command] = []
        while self.waiting or self.kinds.parked:
            video = self.kinds.next_parked() if self.kinds.parked else None
            if video is None and self.waiting and self.kinds.room > 0:
                video = self.waiting.popleft()
            if video is None:
                break
            video.turn = next(self._turns)
            self.videos[video.id] = video
            commands.append(self._load(video))
        return commands
