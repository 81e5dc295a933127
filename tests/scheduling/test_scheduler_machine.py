"""The scheduler in any order of events: a world of workers and a store that hypothesis moves, and what always holds."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ti2v_dist.scheduling.crew import CALLS_PER_WORKER
from ti2v_dist.scheduling.events import (
    Advance,
    CallCancelled,
    CallFailed,
    ChunkDone,
    ClassGone,
    Command,
    Commit,
    Committed,
    Encode,
    Encoded,
    Event,
    Fail,
    Finish,
    Finished,
    Forget,
    GiveUp,
    Load,
    Loaded,
    Park,
    Places,
    Recall,
    Release,
    StartFailed,
    StartWorker,
    StopRequested,
    Superseded,
    VideoError,
    VideoSubmitted,
    WorkerDraining,
    WorkerLost,
    WorkerReady,
    WorkerRefused,
    WorkersWanted,
)
from ti2v_dist.scheduling.losses import LOSSES
from ti2v_dist.scheduling.scheduler import MAX_CRASHES, Scheduler
from ti2v_dist.scheduling.starts import MAX_PAUSE_S

MOST_VIDEOS, RARE = 4, 4
NODES = {"good0": "good", "good1": "good", "bad0": "bad", "bad1": "bad", "other0": "other", "other1": "other"}
"""What becomes of a start on each: it is ready, it fails, or it is refused for its other model."""
KINDS = ("k", "m")
PHASES = (Phase.explicit, Phase.generate)  # a long story is read sooner than it is shortened


Call = Encode | Advance | Finish


def ids_of(call: Call) -> tuple[str, ...]:
    return call.ids if isinstance(call, Advance) else (call.id,)


@dataclass
class Video:
    """What the world knows of a video: what is settled, and what was computed beyond it."""

    group: tuple
    last: int
    settled: int | None = None
    computed: int = 0
    commits: list[int] = field(default_factory=list)
    final: str = ""
    crashes: int = 0
    alone: bool = False
    """Whether it was the only one in hand when its worker was last lost."""
    kind: str = ""
    """The class of its last settled frame, as the store has it."""
    made_by: list[str] = field(default_factory=list)
    """The classes of the chunks that are to be settled."""
    stale: bool = False
    """What was computed rests on a frame of ours that another owner's frame has superseded."""


class World(RuleBasedStateMachine):
    """Carries out every command as a real coordinator would, in an order that hypothesis chooses."""

    @initialize(
        slots=st.integers(1, 3),
        workers=st.integers(1, 2),
        reasons=st.sampled_from([list(LOSSES), *([reason] for reason in LOSSES)]),
        killer=st.sampled_from(["", "v0"]),
        settled=st.sampled_from([None, 0]),
        places=st.sampled_from([{"good0"}, {"good0"}]) | st.sets(st.sampled_from(sorted(NODES))),
        kinds=st.sampled_from([KINDS[:1], KINDS]),
    )
    def begin(
        self,
        slots: int,
        workers: int,
        reasons: list[str],
        killer: str,
        settled: int | None,
        places: set[str],
        kinds: tuple[str, ...],
    ) -> None:
        self.kinds, self.kind_of = kinds, dict[int, str]()
        self.let_go, self.parked = set[str](), set[str]()
        self.reasons, self.killer = reasons, killer  # a killer's calls never return: each ends its worker
        self.scheduler, self.slots = Scheduler(slots), slots
        self.videos: dict[str, Video] = {}
        self.loads: list[str] = []
        self.calls: dict[int, list[Call]] = {}
        self.starts, self.started, self.stopped, self.gave_up = list[StartWorker](), 0, False, False
        self.workers, self.leaving, self.recalled = workers, set[int](), set[int]()
        self.barren, self.refused = Counter[str](), set[str]()
        self.places = frozenset[str]()
        self.nodes_change(places)
        self.tell(WorkersWanted(workers))
        for _ in range(workers):
            if self.possible_starts():
                self.a_worker_comes(0, 0)
            self.submit("x", 5, settled)

    def tell(self, event: Event) -> None:
        leaving = set(self.leaving)
        for command in self.scheduler.handle(event):
            assert not (isinstance(command, Call) and command.worker in leaving), "a call for a worker that leaves"
            self.carry_out(command)

    def carry_out(self, command: Command) -> None:
        match command:
            case Load(id):
                assert not self.videos[id].final
                assert id not in self.loads, "read twice at once"
                self.parked.discard(id)
                self.videos[id].stale = False
                self.loads.append(id)
            case Encode(worker, id):
                assert self.videos[id].settled is None
                self.check_class(worker, id)
                self.calls[worker].append(command)
            case Advance(worker, ids):
                assert 1 <= len(ids) <= self.slots
                assert len({self.videos[id].group for id in ids}) == 1, "a batch of two groups"
                for id in ids:
                    video = self.videos[id]
                    self.check_class(worker, id)
                    assert video.computed < video.last, "computed beyond the end"
                    assert video.computed - (video.settled or 0) <= 1, "too far ahead of the store"
                self.calls[worker].append(command)
            case Commit(id, frame):
                assert not self.videos[id].stale, "commits what rests on a superseded frame"
                self.videos[id].commits.append(frame)
            case Finish(worker, id):
                assert self.videos[id].settled == self.videos[id].last, "finished before its last frame was settled"
                self.check_class(worker, id)
                self.calls[worker].append(command)
            case Park(id):
                assert len(self.kinds) > 1, "for whom?"
                assert self.videos[id].kind not in self.let_go
                self.parked.add(id)
            case Fail(id, error_type):
                video = self.videos[id]
                assert not video.final
                if error_type == "WorkerCrashed":
                    assert video.crashes == MAX_CRASHES, "quarantined too early, or for a loss that counts for nothing"
                    assert video.alone, "quarantined for what a neighbour may have done"
                video.final = "failed"
            case Forget(id):
                assert self.videos[id].final == "finished"
            case StartWorker(avoid, after_s):
                assert not self.places or self.places - avoid, "it could be started nowhere"
                assert 0 <= after_s <= MAX_PAUSE_S
                if any(NODES[node] == "good" for node in self.places):
                    assert self.refused & self.places <= avoid, "tried again on a node of another kind"
                self.starts.append(command)
            case Recall(worker):
                assert self.calls[worker]
                self.recalled.add(worker)
            case Release(worker):
                assert worker in self.leaving
                assert self.calls.pop(worker) == [], "released with a call in hand"
            case GiveUp(reason):
                if "workers in a row" in reason:
                    assert any(count == LOSSES[loss].limit for loss, count in self.barren.items())
                else:
                    assert reason.startswith(("no worker can load the model, in ", "0 of "))
                    assert reason.endswith((": no disk", ": another kind"))
                    assert not any(NODES[node] == "good" for node in self.places), "somebody could have loaded it"
                    assert not self.calls.keys() - self.leaving
                    assert not self.starts
                self.gave_up = True

    def check_class(self, worker: int, id: str) -> None:
        """Only those of its class go on with a video, or any once that is let go."""
        video = self.videos[id]
        last = video.made_by[-1] if video.made_by else video.kind
        assert last in ("", self.kind_of[worker]) or last in self.let_go, "goes on in another class"
        assert id not in self.parked

    @precondition(lambda self: self.without_workers())
    @rule(data=st.data(), it_is=st.integers(0, RARE))
    def a_class_is_let_go(self, data: st.DataObject, it_is: int) -> None:
        if it_is == RARE:
            kind = data.draw(st.sampled_from(self.without_workers()))
            self.let_go.add(kind)
            self.tell(ClassGone(kind))

    def without_workers(self) -> list[str]:
        there = {self.kind_of[worker] for worker in self.calls.keys() - self.leaving}
        return [kind for kind in self.kinds if kind not in there]

    # What may happen

    @precondition(lambda self: len(self.videos) < MOST_VIDEOS)
    @rule(group=st.sampled_from("xy"), last=st.integers(1, 6), settled=st.none() | st.integers(0, 6))
    def submit(self, group: str, last: int, settled: int | None) -> None:
        id = f"v{len(self.videos)}"
        self.videos[id] = Video((group,), last, None if settled is None else min(settled, last))
        self.videos[id].kind = "" if settled is None else self.kinds[len(self.videos) % len(self.kinds)]
        self.tell(VideoSubmitted(id, (group,), last + 1))

    def possible_starts(self) -> list[tuple[StartWorker, str]]:
        """Each start that finds a node, with that node."""
        return [(start, node) for start in self.starts for node in sorted(self.places - start.avoid)]

    @precondition(lambda self: self.possible_starts())
    @rule(which=st.integers(0, 20), it_dies=st.integers(0, RARE))
    def a_worker_comes(self, which: int, it_dies: int) -> None:
        possible = self.possible_starts()
        start, node = possible[which % len(possible)]
        self.starts.remove(start)
        number, self.started = self.started, self.started + 1
        if it_dies == RARE:
            self.lose(number, "preempted")
        elif NODES[node] == "good":
            self.calls[number] = []
            self.kind_of[number] = kind = self.kinds[which % len(self.kinds)]
            self.let_go.discard(kind)
            self.tell(WorkerReady(number, node, kind))
        elif NODES[node] == "bad":
            self.tell(StartFailed(number, node, "no disk"))
        else:
            kind = frozenset(other for other in self.places if NODES[other] == "other")
            self.refused |= kind
            self.tell(WorkerRefused(number, kind, "another kind"))

    @rule(nodes=st.sets(st.sampled_from(sorted(NODES)), min_size=1))
    def nodes_change(self, nodes: set[str]) -> None:
        self.places = frozenset(nodes)
        self.tell(Places(self.places))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), it_does=st.integers(0, RARE))
    def a_worker_is_lost(self, data: st.DataObject, it_does: int) -> None:
        if it_does < RARE:
            return
        self.lose(data.draw(st.sampled_from(sorted(self.calls))), data.draw(st.sampled_from(self.reasons)))

    def lose(self, worker: int, reason: str) -> None:
        in_hand = [id for call in self.calls.pop(worker, []) for id in ids_of(call)]
        for id in in_hand:
            self.videos[id].crashes += LOSSES[reason].counts
            self.videos[id].alone = len(in_hand) == 1
        self.barren[reason] += 1
        self.tell(WorkerLost(worker, reason))
        limit = LOSSES[reason].limit
        assert self.gave_up or self.stopped or limit is None or self.barren[reason] < limit

    @precondition(lambda self: self.calls.keys() - self.leaving)
    @rule(data=st.data(), it_does=st.integers(0, RARE))
    def a_node_drains(self, data: st.DataObject, it_does: int) -> None:
        if it_does < RARE:
            return
        worker = data.draw(st.sampled_from(sorted(self.calls.keys() - self.leaving)))
        self.leaving.add(worker)
        self.tell(WorkerDraining(worker))

    @precondition(lambda self: any(self.calls.get(worker) for worker in self.recalled))
    @rule(data=st.data())
    def a_call_comes_back_unbegun(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(worker for worker in self.recalled if self.calls.get(worker))))
        self.tell(CallCancelled(worker, ids_of(self.calls[worker].pop())))

    @precondition(lambda self: self.loads)
    @rule(data=st.data())
    def a_video_is_read(self, data: st.DataObject) -> None:
        id = self.loads.pop(data.draw(st.integers(0, len(self.loads) - 1)))
        video = self.videos[id]
        video.computed = video.settled or 0
        self.tell(Loaded(id, video.settled, video.kind))

    @precondition(lambda self: any(self.calls.values()))
    @rule(data=st.data(), how=st.sampled_from(["done"] * 6 + ["raised", "bad video"]))
    def a_call_returns(self, data: st.DataObject, how: str) -> None:
        worker = data.draw(st.sampled_from(sorted(w for w, calls in self.calls.items() if calls)))
        if self.killer in ids_of(self.calls[worker][0]):
            self.lose(worker, "died")
            return
        call = self.calls[worker].pop(0)
        ids = ids_of(call)
        if how != "bad video" or isinstance(call, Advance):
            self.barren.clear()
        if how == "raised":
            self.tell(CallFailed(worker, ids, "ValueError", "x"))
        elif isinstance(call, Encode):
            if how == "bad video":
                self.tell(VideoError(call.id, "ImageError", "x"))
                return
            if not self.videos[call.id].final:
                self.videos[call.id].settled, self.videos[call.id].kind = 0, self.kind_of[worker]
            self.tell(Encoded(worker, call.id, self.kind_of[worker]))
        elif isinstance(call, Finish):
            if not self.videos[call.id].final:
                self.videos[call.id].final = "finished"
            self.tell(Finished(worker, call.id))
        else:
            bad = ids[:1] if how == "bad video" else ()
            frames = {id: self.videos[id].computed + 1 for id in ids if id not in bad}
            for id, frame in frames.items():
                self.videos[id].computed, self.videos[id].crashes = frame, 0
                if not self.videos[id].stale:
                    self.videos[id].made_by.append(self.kind_of[worker])
            self.tell(ChunkDone(worker, ids, frames))
            for id in bad:
                self.tell(VideoError(id, "NonFiniteLatents", "x"))

    @precondition(lambda self: any(video.commits for video in self.videos.values()))
    @rule(data=st.data(), ours=st.booleans())
    def a_commit_settles(self, data: st.DataObject, ours: bool) -> None:
        id = data.draw(st.sampled_from(sorted(id for id, video in self.videos.items() if video.commits)))
        video = self.videos[id]
        frame = video.commits.pop(0)
        assert frame == (video.settled or 0) + 1, "commits go up by one"
        video.settled, video.kind = frame, video.made_by.pop(0)
        if ours:
            self.tell(Committed(id, frame))
        else:
            video.commits.clear()
            video.made_by.clear()
            video.kind = self.kinds[frame % len(self.kinds)]  # another owner may have moved it
            video.stale = True
            self.tell(Superseded(id))

    @precondition(lambda self: len(self.videos) == MOST_VIDEOS and not self.stopped)
    @rule(it_is=st.integers(0, RARE))
    def a_stop_is_asked_for(self, it_is: int) -> None:
        if it_is < RARE:
            return
        self.stopped = True
        self.tell(StopRequested())

    @rule()
    def time_passes(self) -> None:
        """Also where nothing else can happen any more."""

    # What always holds

    @invariant()
    def nothing_is_lost_or_done_twice(self) -> None:
        parked = {video.id for videos in self.scheduler.kinds.parked.values() for video in videos}
        assert parked <= self.parked
        known = {video.id for video in self.scheduler.waiting} | self.scheduler.videos.keys() | parked
        assert known == {id for id, video in self.videos.items() if not video.final}
        inside = Counter(id for calls in self.calls.values() for call in calls for id in ids_of(call))
        assert not inside or max(inside.values()) == 1, "a video is in two calls"
        assert all(len(calls) <= CALLS_PER_WORKER for calls in self.calls.values())
        if not (self.stopped or self.gave_up):
            there = len(self.calls.keys() - self.leaving) + len(self.starts) + self.scheduler.starts.missing
            assert there == self.workers, "each is replaced once"
            has_room = any(NODES[node] == "good" for node in self.places)
            assert not (has_room and self.scheduler.starts.missing), "a new node is room"

    @invariant()
    def a_suspect_is_alone_on_its_worker(self) -> None:
        for calls in self.calls.values():
            in_hand = [id for call in calls for id in ids_of(call)]
            if any(self.videos[id].crashes >= 2 for id in in_hand if not self.videos[id].final):
                assert len(in_hand) == 1

    @invariant()
    def it_never_waits_for_nothing(self) -> None:
        """While a worker stays and a video is left that is not for another class, something is under way."""
        missed = {*self.without_workers()} - self.let_go
        left = any(not video.final and video.kind not in missed for video in self.videos.values())
        if left and self.calls.keys() - self.leaving and not (self.stopped or self.gave_up):
            commits = any(video.commits for video in self.videos.values())
            assert self.loads or commits or any(self.calls.values())

    def teardown(self) -> None:
        """With nothing more going wrong, every video ends, and whoever was to leave has left."""
        if not hasattr(self, "scheduler") or self.stopped or self.gave_up:
            return
        self.nodes_change(set(NODES))
        for _ in range(1000):
            if self.gave_up:
                return
            if self.possible_starts():
                self.a_worker_comes(0, 0)
            elif self.loads:
                id = self.loads.pop(0)
                self.videos[id].computed = self.videos[id].settled or 0
                self.tell(Loaded(id, self.videos[id].settled, self.videos[id].kind))
            elif waiting := [id for id, video in self.videos.items() if video.commits]:
                video = self.videos[waiting[0]]
                video.settled, video.kind = video.commits.pop(0), video.made_by.pop(0)
                self.tell(Committed(waiting[0], video.settled))
            elif busy := [worker for worker, calls in self.calls.items() if calls]:
                self.finish_call(busy[0])
            elif self.calls and (gone := [kind for kind in self.without_workers() if kind not in self.let_go]):
                self.let_go.add(gone[0])
                self.tell(ClassGone(gone[0]))
            else:
                break
        assert self.scheduler.is_idle
        assert not self.calls.keys() & self.leaving
        assert all(video.final for video in self.videos.values())

    def finish_call(self, worker: int) -> None:
        if self.killer in ids_of(self.calls[worker][0]):
            self.lose(worker, "died")
            return
        call = self.calls[worker].pop(0)
        self.barren.clear()
        match call:
            case Encode(_, id):
                self.videos[id].settled, self.videos[id].kind = 0, self.kind_of[worker]
                self.tell(Encoded(worker, id, self.kind_of[worker]))
            case Finish(_, id):
                self.videos[id].final = "finished"
                self.tell(Finished(worker, id))
            case Advance(_, ids):
                for id in ids:
                    self.videos[id].computed += 1
                    self.videos[id].crashes = 0
                    if not self.videos[id].stale:
                        self.videos[id].made_by.append(self.kind_of[worker])
                self.tell(ChunkDone(worker, ids, {id: self.videos[id].computed for id in ids}))


World.TestCase.settings = settings(
    World.TestCase.settings, max_examples=500, stateful_step_count=60, derandomize=True, phases=PHASES
)
test_the_scheduler_in_any_order = World.TestCase
