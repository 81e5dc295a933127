"""Stories of a fleet of two classes of workers, and what becomes of the videos of one that is gone."""

from ti2v_dist.scheduling.events import (
    Advance,
    CallFailed,
    ChunkDone,
    ClassGone,
    Commit,
    Committed,
    Encode,
    Encoded,
    Finish,
    Finished,
    Forget,
    Load,
    Loaded,
    Park,
    Release,
    StartWorker,
    Superseded,
    VideoSubmitted,
    WorkerDraining,
    WorkerLost,
    WorkerReady,
)
from ti2v_dist.scheduling.scheduler import Scheduler

A, B = "a" * 64, "b" * 64
GROUP = ("ti2v_zero", 10, 4)


def fleet(*ids: str, slots: int = 1, frames: int = 9, kinds: tuple[str, ...] = (A, B)) -> Scheduler:
    """A worker of each kind, and videos that are being read."""
    scheduler = Scheduler(slots)
    scheduler.handle(*(VideoSubmitted(i, GROUP, frames) for i in ids))
    for number, kind in enumerate(kinds):
        scheduler.handle(WorkerReady(number, kind=kind))
    return scheduler


def test_a_video_stays_with_the_class_that_began_it() -> None:
    scheduler = fleet("x", "y", frames=3)
    assert scheduler.handle(Loaded("x", None)) == [Encode(0, "x")]
    assert scheduler.handle(Loaded("y", None)) == [Encode(1, "y")]
    assert scheduler.handle(Encoded(0, "x", A)) == [Advance(0, ("x",))]
    assert scheduler.handle(Encoded(1, "y", B)) == [Advance(1, ("y",))]
    assert scheduler.handle(WorkerLost(1, "node_died")) == [StartWorker()], "no worker of another class takes it"
    assert scheduler.handle(ChunkDone(0, ("x",), {"x": 1})) == [Commit("x", 1), Advance(0, ("x",))]
    scheduler.handle(Committed("x", 1))
    scheduler.handle(ChunkDone(0, ("x",), {"x": 2}))
    assert scheduler.handle(Committed("x", 2)) == [Finish(0, "x")]
    assert scheduler.handle(Finished(0, "x")) == [Forget("x")]
    assert not scheduler.is_idle
    assert scheduler.kinds.stranded == {B: 1}
    assert scheduler.handle(WorkerReady(2, kind=A)) == []
    assert scheduler.handle(WorkerReady(3, kind=B)) == [Advance(3, ("y",))]
    assert scheduler.kinds.stranded == {}


def test_the_file_of_a_video_is_written_by_its_class() -> None:
    scheduler = fleet("x", frames=3)
    scheduler.handle(WorkerLost(1, "node_died"))
    assert scheduler.handle(Loaded("x", 2, B)) == [Park("x")]
    assert scheduler.handle(WorkerReady(2, kind=B)) == [Load("x")]
    assert scheduler.handle(Loaded("x", 2, B)) == [Finish(2, "x")]


def test_a_batch_is_of_one_class() -> None:
    scheduler = fleet("a1", "b1", "a2", "b2", slots=4)
    commands = [
        c for i, kind in (("a1", A), ("b1", B), ("a2", A), ("b2", B)) for c in scheduler.handle(Loaded(i, 1, kind))
    ]
    batches = [command for command in commands if isinstance(command, Advance)]
    assert {batch.worker: set(batch.ids) for batch in batches} == {0: {"a1", "a2"}, 1: {"b1", "b2"}}


def test_new_videos_go_wherever_there_is_room_and_no_class_takes_more_than_its_own() -> None:
    scheduler = fleet(*(f"v{number}" for number in range(8)), slots=2, kinds=(A,))
    for number in range(4):
        scheduler.handle(Loaded(f"v{number}", None))
    encoded = [scheduler.handle(Encoded(0, f"v{number}", A)) for number in range(4)]
    assert encoded
    assert not [video for video in scheduler.videos.values() if video.kind != A]
    assert scheduler.handle(WorkerReady(1, kind=B)) == [Load(f"v{number}") for number in range(4, 8)]
    scheduler.handle(ChunkDone(0, ("v0", "v1"), {"v0": 1, "v1": 1}))
    given = [c for number in range(4, 8) for c in scheduler.handle(Loaded(f"v{number}", None))]
    assert given
    assert all(isinstance(command, Encode) and command.worker == 1 for command in given), "the first class is full"


def test_a_video_that_has_no_room_in_its_class_makes_room_for_others() -> None:
    """A restart: many of the waiting videos are of the class that has few workers."""
    scheduler = fleet(*(f"b{number}" for number in range(6)), "x", slots=1)
    assert len(scheduler.videos) == 4
    told = [scheduler.handle(Loaded(f"b{number}", 3, B)) for number in range(4)]
    assert told[0] == [Advance(1, ("b0",))]
    assert told[1] == [Advance(1, ("b1",))]
    assert told[2] == [Park("b2"), Load("b4")]
    assert told[3] == [Park("b3"), Load("b5")]
    assert scheduler.handle(Loaded("b4", 3, B)) == [Park("b4"), Load("x")]
    assert scheduler.handle(Loaded("x", None)) == [Encode(0, "x")], "the other class has its work"
    assert scheduler.handle(Loaded("b5", 3, B)) == [Park("b5")]
    scheduler.handle(ChunkDone(1, ("b0",), {"b0": 8}))
    assert scheduler.handle(Committed("b0", 8)) == [Finish(1, "b0")]
    assert scheduler.handle(Finished(1, "b0")) == [Forget("b0"), Load("b2")]
    assert scheduler.handle(Loaded("b2", 3, B)) == [Advance(1, ("b2",))]
    assert not scheduler.is_idle


def test_a_class_with_room_is_not_starved_by_videos_that_wait_for_another() -> None:
    scheduler = fleet("x", "y", "z1", "z2", slots=1)
    for video_id in ("x", "y"):
        scheduler.handle(Loaded(video_id, 3, B))
    scheduler.handle(VideoSubmitted("z3", GROUP, 9))
    assert scheduler.handle(WorkerLost(1, "node_died")) == [StartWorker()]
    for video_id in ("z1", "z2"):
        scheduler.handle(Loaded(video_id, None))
        scheduler.handle(Encoded(0, video_id, A))
    scheduler.handle(ChunkDone(0, ("z1",), {"z1": 8}))
    scheduler.handle(Committed("z1", 8))
    scheduler.handle(ChunkDone(0, ("z2",), {"z2": 1}))
    assert scheduler.handle(Finished(0, "z1")) == [Forget("z1"), Load("z3")]
    assert scheduler.kinds.stranded == {B: 2}


def test_videos_of_a_class_that_is_gone_go_on_elsewhere_when_they_are_let_go() -> None:
    scheduler = fleet("x", "y", slots=1)
    scheduler.handle(Loaded("x", 3, B))
    scheduler.handle(Loaded("y", 8, B))
    scheduler.handle(WorkerLost(1, "node_died"))
    assert scheduler.handle(ClassGone(B)) == [Finish(0, "y"), Advance(0, ("x",))]
    assert scheduler.kinds.stranded == {}
    scheduler.handle(Finished(0, "y"))
    assert scheduler.handle(ChunkDone(0, ("x",), {"x": 4})) == [Commit("x", 4), Advance(0, ("x",))]
    assert scheduler.videos["x"].kind == A
    assert scheduler.handle(WorkerReady(2, kind=B)) == []
    scheduler.handle(Committed("x", 4))
    assert scheduler.handle(ChunkDone(0, ("x",), {"x": 5})) == [Commit("x", 5), Advance(0, ("x",))], "it is of A now"


def test_parked_videos_are_let_go_too() -> None:
    scheduler = fleet("x", kinds=(A,))
    assert scheduler.handle(Loaded("x", 3, B)) == [Park("x")]
    assert scheduler.kinds.stranded == {B: 1}
    assert scheduler.handle(ClassGone(B)) == [Load("x")]
    assert scheduler.handle(Loaded("x", 3, B)) == [Advance(0, ("x",))]


def test_a_class_that_comes_back_has_its_videos_again_where_nobody_has_gone_on() -> None:
    scheduler = fleet("x", "y", "z", slots=1)
    for video_id in ("x", "y", "z"):
        scheduler.handle(Loaded(video_id, 3, B))
    scheduler.handle(WorkerLost(1, "node_died"))
    assert scheduler.handle(ClassGone(B))[:2] == [Advance(0, ("x",)), Advance(0, ("y",))][:2]
    scheduler.handle(WorkerReady(2, kind=B))
    assert scheduler.handle(CallFailed(0, ("x",), "ValueError", "no")) == [Advance(2, ("x",))]
    scheduler.handle(ChunkDone(0, ("y",), {"y": 4}))
    assert (scheduler.videos["x"].kind, scheduler.videos["y"].kind) == (B, A)


def test_a_class_is_not_gone_where_one_of_its_workers_came_first() -> None:
    scheduler = fleet("x")
    scheduler.handle(Loaded("x", 3, B))
    assert scheduler.handle(ClassGone(B)) == []
    scheduler.handle(WorkerLost(1, "node_died"))
    assert scheduler.handle(WorkerReady(2, kind=A)) == []


def test_a_video_that_another_owner_moved_is_of_the_class_in_its_record() -> None:
    """What was computed rests on a frame that a worker of the other class has settled first."""
    scheduler = fleet("x", slots=1)
    assert scheduler.handle(Loaded("x", 3, B)) == [Advance(1, ("x",))]
    scheduler.handle(ChunkDone(1, ("x",), {"x": 4}))
    assert scheduler.handle(Superseded("x")) == []
    assert scheduler.handle(ChunkDone(1, ("x",), {"x": 5})) == [Load("x")]
    assert scheduler.handle(Loaded("x", 4, A)) == [Advance(0, ("x",))]


def test_frame_0_that_another_class_settled_first_makes_it_a_video_of_that_class() -> None:
    scheduler = fleet("x")
    assert scheduler.handle(Loaded("x", None)) == [Encode(0, "x")]
    assert scheduler.handle(Encoded(0, "x", B)) == [Advance(1, ("x",))]


def test_a_new_video_may_have_a_class_before_it_has_a_frame() -> None:
    """A fork begins in the class of the frame at which it leaves its origin."""
    scheduler = fleet("x", "y", slots=1)
    assert scheduler.handle(Loaded("x", None, B)) == [Encode(1, "x")]
    assert scheduler.handle(Loaded("y", None, B)) == [Encode(1, "y")], "that it fills its class does not hold it back"


def test_a_worker_that_drains_is_none_that_a_class_is_left_with() -> None:
    scheduler = fleet("x")
    scheduler.handle(Loaded("x", 3, B))
    scheduler.handle(WorkerDraining(1))
    assert scheduler.kinds.stranded == {B: 1}
    assert scheduler.handle(ClassGone(B)) == []
    told = scheduler.handle(ChunkDone(1, ("x",), {"x": 4}))
    assert told == [Commit("x", 4), Release(1), Advance(0, ("x",))]


def test_a_lost_reply_of_a_class_that_is_gone_counts_for_nothing() -> None:
    scheduler = fleet("x")
    scheduler.handle(Loaded("x", 3, B))
    scheduler.handle(WorkerLost(1, "node_died"))
    assert scheduler.handle(ClassGone(B)) == [Advance(0, ("x",))]
    assert scheduler.handle(ChunkDone(1, ("x",), {"x": 4})) == []
    assert scheduler.handle(ChunkDone(0, ("x",), {"x": 4}))[0] == Commit("x", 4)
