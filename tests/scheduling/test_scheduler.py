"""Stories of events: no torch, no Ray, no clock, no IO."""

import pytest

from ti2v_dist.scheduling.crew import CALLS_PER_WORKER
from ti2v_dist.scheduling.events import (
    Advance,
    CallCancelled,
    CallFailed,
    ChunkDone,
    Commit,
    Committed,
    Encode,
    Encoded,
    Fail,
    Finish,
    Finished,
    Forget,
    GiveUp,
    Load,
    Loaded,
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
from ti2v_dist.scheduling.scheduler import MAX_ATTEMPTS, MAX_CRASHES, Scheduler
from ti2v_dist.scheduling.starts import MAX_IN_A_ROW

GROUP = ("ti2v_zero", 10, 4)


def submit(scheduler: Scheduler, *ids: str, frames: int = 3, group: tuple = GROUP) -> list:
    return [command for i in ids for command in scheduler.handle(VideoSubmitted(i, group, frames))]


def started(*ids: str, slots: int = 2, frames: int = 3) -> Scheduler:
    """A scheduler with worker 0, whose videos all have frame 0 and the first batch is in hand."""
    scheduler = Scheduler(slots)
    scheduler.handle(WorkerReady(0))
    submit(scheduler, *ids, frames=frames)
    for i in ids:
        scheduler.handle(Loaded(i, 0))
    return scheduler


def advance(scheduler: Scheduler, worker: int, *ids: str, frame: int) -> list:
    """A batch comes back and its frames are settled at once."""
    commands = scheduler.handle(ChunkDone(worker, ids, dict.fromkeys(ids, frame)))
    for i in ids:
        commands += scheduler.handle(Committed(i, frame))
    return commands


def test_one_video_from_submission_to_the_end() -> None:
    scheduler = Scheduler(slots=2)
    assert submit(scheduler, "a") == []  # nobody is there to work yet
    assert scheduler.handle(WorkerReady(0)) == [Load("a")]
    assert scheduler.handle(Loaded("a", None)) == [Encode(0, "a")]
    assert scheduler.handle(Encoded(0, "a")) == [Advance(0, ("a",))]
    assert scheduler.handle(ChunkDone(0, ("a",), {"a": 1})) == [Commit("a", 1), Advance(0, ("a",))]
    assert scheduler.handle(Committed("a", 1)) == []
    assert scheduler.handle(ChunkDone(0, ("a",), {"a": 2})) == [Commit("a", 2)]
    assert not scheduler.is_idle
    assert scheduler.handle(Committed("a", 2)) == [Finish(0, "a")]
    assert scheduler.handle(Finished(0, "a")) == [Forget("a")]
    assert scheduler.is_idle


def test_a_resumed_video_goes_on_after_its_last_settled_frame() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(WorkerReady(0))
    submit(scheduler, "a", frames=10)
    assert scheduler.handle(Loaded("a", 7)) == [Advance(0, ("a",))]


def test_a_video_with_all_frames_settled_is_only_finished() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(WorkerReady(0))
    submit(scheduler, "a", frames=3)
    assert scheduler.handle(Loaded("a", 2)) == [Finish(0, "a")]


def test_full_batches_are_queued_behind_a_call_in_hand_and_part_ones_wait_for_company() -> None:
    scheduler = started("a", "b", "c", "d", slots=2)
    assert scheduler.crew.workers[0].calls == [("a", "b"), ("c", "d")]
    assert len(scheduler.crew.workers[0].calls) == CALLS_PER_WORKER
    scheduler = started("a", "b", "c", slots=2)
    assert scheduler.crew.workers[0].calls == [("a", "b")]
    assert Advance(0, ("c", "a")) in advance(scheduler, 0, "a", "b", frame=1)


def test_videos_take_turns_so_that_the_last_ones_fill_their_batches() -> None:
    """Six videos of 15 new frames in four slots need 23 batches; finishing four first would need 30."""
    scheduler = started(*"abcdef", slots=4, frames=16)
    frames, batches = dict.fromkeys("abcdef", 0), 0
    while scheduler.videos:
        ids = scheduler.crew.workers[0].calls[0]
        video = scheduler.videos[ids[0]]
        if video.status == "finishing":
            scheduler.handle(Finished(0, ids[0]))
            continue
        batches += 1
        for i in ids:
            frames[i] += 1
        scheduler.handle(ChunkDone(0, ids, {i: frames[i] for i in ids}))
        for i in ids:
            scheduler.handle(Committed(i, frames[i]))
    assert frames == dict.fromkeys("abcdef", 15)
    assert batches <= 24


def test_videos_of_different_groups_never_share_a_batch() -> None:
    scheduler = Scheduler(slots=4)
    scheduler.handle(WorkerReady(0))
    submit(scheduler, "a", "b")
    submit(scheduler, "x", "y", group=("ti2v_zero", 50, 1))
    commands = [c for i in ("a", "x", "b", "y") for c in scheduler.handle(Loaded(i, 0))]
    for command in commands:
        assert isinstance(command, Advance)
        assert len({scheduler.videos[i].group for i in command.ids}) == 1


def test_memory_holds_two_batches_a_worker() -> None:
    scheduler = Scheduler(slots=2)
    submit(scheduler, *map(str, range(100)))
    assert scheduler.handle(WorkerReady(0)) == [Load(str(i)) for i in range(4)]
    assert scheduler.handle(WorkerReady(1)) == [Load(str(i)) for i in range(4, 8)]
    assert len(scheduler.videos) == 8
    assert len(scheduler.waiting) == 92


def test_a_slow_store_holds_a_video_back_after_one_unsettled_frame() -> None:
    scheduler = started("a", slots=1, frames=9)
    assert Advance(0, ("a",)) in scheduler.handle(ChunkDone(0, ("a",), {"a": 1}))
    assert scheduler.handle(ChunkDone(0, ("a",), {"a": 2})) == [Commit("a", 2)]
    assert scheduler.handle(Committed("a", 1)) == [Advance(0, ("a",))]


def test_a_lost_worker_is_replaced_and_its_videos_go_to_others() -> None:
    scheduler = started("a", "b", slots=2)
    assert scheduler.handle(WorkerReady(1)) == []
    assert scheduler.handle(WorkerLost(0)) == [StartWorker(), Advance(1, ("a", "b"))]
    # what the dead worker may still be said to have done is not heard
    assert scheduler.handle(ChunkDone(0, ("a", "b"), {"a": 1, "b": 1})) == []


def test_a_video_in_the_middle_of_encoding_is_encoded_elsewhere() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(WorkerReady(0))
    submit(scheduler, "a")
    assert scheduler.handle(Loaded("a", None)) == [Encode(0, "a")]
    assert scheduler.handle(WorkerLost(0)) == [StartWorker()]
    assert scheduler.handle(WorkerReady(1)) == [Encode(1, "a")]


@pytest.mark.parametrize("reason", ["preempted", "node_died"])
def test_what_happens_to_nodes_counts_against_nobody(reason: str) -> None:
    scheduler = started("a", slots=1)
    for worker in range(50):
        assert scheduler.handle(WorkerLost(worker, reason)) == [StartWorker()]
        assert scheduler.handle(WorkerReady(worker + 1)) == [Advance(worker + 1, ("a",))]


def test_a_video_that_kills_its_workers_is_tried_alone_and_then_fails() -> None:
    scheduler = started("bad", "good", slots=2, frames=4)
    scheduler.handle(WorkerLost(0))
    assert scheduler.handle(WorkerReady(1)) == [Advance(1, ("bad", "good"))]
    scheduler.handle(WorkerLost(1))
    assert scheduler.handle(WorkerReady(2)) == [Advance(2, ("bad",)), Advance(2, ("good",))][:1]
    commands = scheduler.handle(WorkerLost(2))
    assert commands[0] == StartWorker()
    message = f"{MAX_CRASHES} workers were lost with this video in hand, the last one died"
    assert commands[1] == Fail("bad", "WorkerCrashed", message, 3)
    assert scheduler.handle(WorkerReady(3)) == [Advance(3, ("good",))]


@pytest.mark.parametrize("slots", [1, 2])
def test_what_waits_behind_a_killer_is_tried_alone_and_lives(slots: int) -> None:
    """Both are blamed twice, since a worker's last answer may die with it; the third time, only one is there."""
    scheduler = Scheduler(slots)
    scheduler.handle(WorkerReady(0))
    submit(scheduler, "bad", "good")
    scheduler.handle(Loaded("bad", None))
    scheduler.handle(Loaded("good", None))
    for worker in range(2):
        assert scheduler.crew.workers[worker].calls == [("bad",), ("good",)]
        scheduler.handle(WorkerLost(worker))
        scheduler.handle(WorkerReady(worker + 1))
    assert scheduler.crew.workers[2].calls == [("bad",)]
    assert Fail in map(type, scheduler.handle(WorkerLost(2)))
    assert scheduler.handle(WorkerReady(3)) == [Encode(3, "good")]
    assert scheduler.handle(Encoded(3, "good")) == [Advance(3, ("good",))]
    scheduler.handle(ChunkDone(3, ("good",), {"good": 1}))
    assert scheduler.videos["good"].crashes == 0


LIMITED = {reason: policy for reason, policy in LOSSES.items() if policy.limit}


@pytest.mark.parametrize("reason", LIMITED)
def test_workers_that_never_finish_a_call_end_the_run_and_say_why(reason: str) -> None:
    limit = LIMITED[reason].limit
    assert limit
    scheduler = Scheduler(slots=1)
    submit(scheduler, "a")
    commands = [scheduler.handle(WorkerLost(worker, reason))[0] for worker in range(limit)]
    assert commands[:-1] == [StartWorker()] * (limit - 1)
    assert isinstance(commands[-1], GiveUp)
    assert LIMITED[reason].what in commands[-1].reason
    assert scheduler.is_idle


def test_an_end_for_want_of_memory_names_what_to_lower() -> None:
    assert "engine.slots" in LOSSES["cuda_oom"].advice
    assert {"engine.slots", "cluster.workers"} <= set(LOSSES["host_oom"].advice.replace(",", "").split())


@pytest.mark.parametrize("reason", ["host_oom", "cuda_oom"])
def test_want_of_memory_is_no_videos_fault_and_a_finished_call_clears_it(reason: str) -> None:
    scheduler = started("a", slots=1, frames=99)
    for life in range(20):
        assert scheduler.handle(WorkerLost(life, reason)) == [StartWorker()]
        assert scheduler.handle(WorkerReady(life + 1)) == [Advance(life + 1, ("a",))]
        assert Commit("a", life + 1) in advance(scheduler, life + 1, "a", frame=life + 1)
    assert scheduler.videos["a"].crashes == 0


def test_each_kind_of_loss_has_a_limit_of_its_own() -> None:
    scheduler = started("a", slots=1)
    for worker, reason in enumerate(["cuda_oom", "host_oom", "preempted", "host_oom", "died"]):
        assert scheduler.handle(WorkerLost(worker, reason))[0] == StartWorker()
        scheduler.handle(WorkerReady(worker + 1))
    assert isinstance(scheduler.handle(WorkerLost(5, "cuda_oom"))[0], GiveUp)


def test_a_video_that_breaks_its_device_is_quarantined() -> None:
    scheduler = started("bad", slots=1)
    for worker in range(MAX_CRASHES - 1):
        assert scheduler.handle(WorkerLost(worker, "cuda_error")) == [StartWorker()]
        assert scheduler.handle(WorkerReady(worker + 1)) == [Advance(worker + 1, ("bad",))]
    _, failed = scheduler.handle(WorkerLost(MAX_CRASHES - 1, "cuda_error"))
    assert isinstance(failed, Fail)
    assert (failed.error_type, "cuda_error" in failed.message) == ("WorkerCrashed", True)


def test_a_draining_worker_finishes_the_frame_in_hand_and_leaves() -> None:
    scheduler = started("a", "b", slots=1, frames=9)
    assert scheduler.crew.workers[0].calls == [("a",), ("b",)]
    assert scheduler.handle(WorkerDraining(0)) == [Recall(0), StartWorker()]
    assert scheduler.handle(WorkerDraining(0)) == []
    assert scheduler.handle(ChunkDone(0, ("a",), {"a": 1})) == [Commit("a", 1)]
    assert scheduler.handle(CallCancelled(0, ("b",))) == [Release(0)]
    assert scheduler.handle(Committed("a", 1)) == []
    assert scheduler.handle(WorkerReady(1)) == [Advance(1, ("b",)), Advance(1, ("a",))]
    assert [scheduler.videos[i].attempts + scheduler.videos[i].crashes for i in "ab"] == [0, 0]


def test_what_a_draining_worker_gives_back_goes_to_another_at_once() -> None:
    scheduler = started("a", "b", slots=1, frames=9)
    scheduler.handle(WorkerReady(1))
    assert scheduler.handle(WorkerDraining(0)) == [Recall(0), StartWorker()]
    assert scheduler.handle(CallCancelled(0, ("b",))) == [Advance(1, ("b",))]
    assert scheduler.handle(ChunkDone(0, ("a",), {"a": 1})) == [Commit("a", 1), Release(0), Advance(1, ("a",))]


def test_a_call_given_back_unbegun_leaves_its_video_where_it_was() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(WorkerReady(0))
    submit(scheduler, "new", "complete")
    scheduler.handle(Loaded("complete", 2))
    scheduler.handle(Loaded("new", None))
    assert scheduler.crew.workers[0].calls == [("complete",), ("new",)]
    scheduler.handle(WorkerDraining(0))
    assert scheduler.handle(CallCancelled(0, ("complete",))) == []
    assert scheduler.handle(CallCancelled(0, ("new",))) == [Release(0)]
    assert scheduler.handle(WorkerReady(1)) == [Finish(1, "complete"), Encode(1, "new")]


def test_an_idle_worker_leaves_its_draining_node_at_once() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(WorkerReady(0))
    assert scheduler.handle(WorkerDraining(0)) == [StartWorker(), Release(0)]
    assert scheduler.handle(WorkerDraining(0)) == []


def test_a_draining_worker_that_is_lost_after_all_was_replaced_already() -> None:
    scheduler = started("a", slots=1)
    scheduler.handle(WorkerDraining(0))
    assert scheduler.handle(WorkerLost(0, "preempted")) == []
    assert scheduler.handle(WorkerReady(1)) == [Advance(1, ("a",))]


def test_a_stopping_run_replaces_no_draining_worker() -> None:
    scheduler = started("a", slots=1, frames=9)
    scheduler.handle(StopRequested())
    assert scheduler.handle(WorkerDraining(0)) == [Recall(0)]
    assert scheduler.handle(ChunkDone(0, ("a",), {"a": 1})) == [Commit("a", 1), Release(0)]
    scheduler.handle(Committed("a", 1))
    assert scheduler.is_idle


def test_a_call_that_fails_is_tried_again_and_its_video_fails_at_the_limit() -> None:
    scheduler = started("a", slots=1)
    for _ in range(MAX_ATTEMPTS - 1):
        assert scheduler.handle(CallFailed(0, ("a",), "RuntimeError", "no")) == [Advance(0, ("a",))]
    assert scheduler.handle(CallFailed(0, ("a",), "RuntimeError", "no")) == [
        Fail("a", "RuntimeError", "no", MAX_ATTEMPTS)
    ]
    assert scheduler.is_idle


def test_an_innocent_neighbour_survives_a_poisoned_batch() -> None:
    scheduler = started("bad", "good", slots=2)
    scheduler.handle(CallFailed(0, ("bad", "good"), "RuntimeError", "boom"))
    assert scheduler.handle(CallFailed(0, ("bad", "good"), "RuntimeError", "boom")) == [Advance(0, ("bad",))]
    commands = scheduler.handle(CallFailed(0, ("bad",), "RuntimeError", "boom"))
    assert commands == [Fail("bad", "RuntimeError", "boom", MAX_ATTEMPTS), Advance(0, ("good",))]
    assert Commit("good", 1) in scheduler.handle(ChunkDone(0, ("good",), {"good": 1}))
    assert scheduler.videos["good"].attempts == 0


def test_a_video_error_fails_that_video_alone_and_at_once() -> None:
    scheduler = started("bad", "good", slots=2)
    commands = scheduler.handle(ChunkDone(0, ("bad", "good"), {"good": 1}))
    assert commands == [Commit("good", 1), Advance(0, ("good",))]
    assert scheduler.handle(VideoError("bad", "NonFiniteLatents", "NaN")) == [Fail("bad", "NonFiniteLatents", "NaN", 1)]
    assert scheduler.handle(VideoError("bad", "NonFiniteLatents", "NaN")) == []


def test_a_video_may_fail_while_its_next_frame_is_being_computed() -> None:
    scheduler = started("bad", "good", slots=2, frames=9)
    scheduler.handle(ChunkDone(0, ("bad", "good"), {"bad": 1, "good": 1}))
    assert scheduler.crew.workers[0].calls == [("bad", "good")]
    assert scheduler.handle(VideoError("bad", "CorruptRecord", "x")) == [Fail("bad", "CorruptRecord", "x", 1)]
    assert Commit("good", 2) in scheduler.handle(ChunkDone(0, ("bad", "good"), {"bad": 2, "good": 2}))
    assert scheduler.handle(CallFailed(0, ("bad", "good"), "RuntimeError", "late")) == []


def test_an_image_error_frees_the_worker() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(WorkerReady(0))
    submit(scheduler, "a")
    scheduler.handle(Loaded("a", None))
    scheduler.handle(VideoError("a", "ImageError", "missing"))
    assert scheduler.crew.workers[0].calls == []
    assert scheduler.is_idle


def test_what_rests_on_a_superseded_frame_is_dropped_and_the_video_is_read_again() -> None:
    scheduler = started("a", slots=1, frames=9)
    scheduler.handle(ChunkDone(0, ("a",), {"a": 1}))  # frame 2 is being computed on top of our frame 1
    assert scheduler.handle(Superseded("a")) == []
    assert scheduler.handle(ChunkDone(0, ("a",), {"a": 2})) == [Load("a")]
    assert scheduler.handle(Loaded("a", 1)) == [Advance(0, ("a",))]
    assert scheduler.videos["a"].unsettled == []


def test_a_chunk_of_many_frames_overlaps_with_the_commit_of_the_one_before() -> None:
    scheduler = started("a", slots=1, frames=15)
    assert Advance(0, ("a",)) in scheduler.handle(ChunkDone(0, ("a",), {"a": 4}))
    assert scheduler.handle(ChunkDone(0, ("a",), {"a": 8})) == [Commit("a", 8)], "two are not settled"
    assert scheduler.handle(Committed("a", 4)) == [Advance(0, ("a",))]
    scheduler.handle(ChunkDone(0, ("a",), {"a": 16}))
    assert scheduler.handle(Committed("a", 8)) == [], "it has more frames than were asked for, and one chunk to settle"
    assert scheduler.handle(Committed("a", 16)) == [Finish(0, "a")]


def test_a_video_that_has_failed_cannot_be_superseded() -> None:
    scheduler = started("a", slots=1, frames=9)
    scheduler.handle(ChunkDone(0, ("a",), {"a": 1}))
    scheduler.handle(VideoError("a", "CorruptRecord", "bad"))
    assert scheduler.handle(Superseded("a")) == []


@pytest.mark.parametrize("in_hand", [True, False])
def test_a_stop_starts_nothing_new_and_waits_for_what_is_in_hand(in_hand: bool) -> None:
    scheduler = started("a", slots=1, frames=9) if in_hand else Scheduler(slots=1)
    assert scheduler.handle(StopRequested()) == []
    assert submit(scheduler, "b") == []
    if in_hand:
        assert not scheduler.is_idle
        assert scheduler.handle(ChunkDone(0, ("a",), {"a": 1})) == [Commit("a", 1)]
        assert not scheduler.is_idle
        assert scheduler.handle(Committed("a", 1)) == []
    assert scheduler.is_idle


def test_stopping_ends_though_what_was_superseded_is_lost_with_its_worker() -> None:
    scheduler = started("a", slots=1, frames=9)
    scheduler.handle(ChunkDone(0, ("a",), {"a": 1}))  # frame 2 is in hand
    scheduler.handle(Superseded("a"))
    scheduler.handle(StopRequested())
    assert not scheduler.is_idle
    scheduler.handle(WorkerLost(0))
    assert scheduler.is_idle


def test_a_run_is_replayed_from_its_events() -> None:
    def story(scheduler: Scheduler) -> list:
        log = [*submit(scheduler, "a", "b", "c"), *scheduler.handle(WorkerReady(0))]
        log += [c for i in "abc" for c in scheduler.handle(Loaded(i, 0))]
        log += scheduler.handle(ChunkDone(0, ("a",), {"a": 1})) + scheduler.handle(WorkerLost(0))
        return log + scheduler.handle(WorkerReady(1))

    assert story(Scheduler(2)) == story(Scheduler(2))


def test_a_start_that_fails_is_tried_again_and_costs_no_video() -> None:
    scheduler = started("a", slots=1)
    assert scheduler.handle(StartFailed(1, "n", "OSError: disk")) == [StartWorker(after_s=1.0)]
    assert (scheduler.videos["a"].attempts, scheduler.videos["a"].crashes) == (0, 0)
    assert not scheduler.stopping


def test_a_node_that_fails_twice_in_a_row_is_avoided() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(Places(frozenset({"good", "bad"})))
    assert scheduler.handle(WorkersWanted(2)) == [StartWorker(), StartWorker()]
    scheduler.handle(WorkerReady(0, "good"))
    assert scheduler.handle(StartFailed(1, "bad", "x")) == [StartWorker(after_s=1.0)]
    assert scheduler.handle(StartFailed(2, "bad", "x")) == [StartWorker(frozenset({"bad"}), 2.0)]
    scheduler.handle(WorkerReady(3, "bad"))
    assert scheduler.starts.avoided == frozenset(), "it can, after all"


def test_the_run_ends_with_the_first_cause_when_nobody_can_load_the_model() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(Places(frozenset({"m", "n"})))
    scheduler.handle(WorkersWanted(2))
    told = [scheduler.handle(StartFailed(i, node, f"cause {i}")) for i, node in enumerate("mnmn")]
    assert [type(command) for commands in told[:2] for command in commands] == [StartWorker, StartWorker]
    assert told[2] == [StartWorker(frozenset({"m"}), 4.0)]
    assert told[3] == [], "one is still on its way"
    assert told[3] + scheduler.handle(StartFailed(4, "n", "cause 4")) == [
        GiveUp("no worker can load the model, in 5 tries: cause 0")
    ]


def test_starts_that_fail_everywhere_are_bounded() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(Places(frozenset(map(str, range(1000)))))
    open_starts, failed = scheduler.handle(WorkersWanted(1000)), 0
    while open_starts and not scheduler.stopping:
        open_starts.pop()
        found = scheduler.handle(StartFailed(failed, str(failed % 1000), "x"))
        open_starts += [command for command in found if isinstance(command, StartWorker)]
        failed += 1
    assert scheduler.stopping
    assert failed < 1000 + MAX_IN_A_ROW


def test_what_a_sick_node_cannot_start_is_started_on_a_new_one() -> None:
    scheduler = started("a", slots=1)
    scheduler.handle(Places(frozenset({"n"})))
    scheduler.handle(StartFailed(1, "n", "x"))
    assert scheduler.handle(StartFailed(2, "n", "x")) == [], "another worker works, so the run goes on without"
    assert scheduler.handle(Places(frozenset({"n", "new"}))) == [StartWorker(frozenset({"n"}))]


def test_a_worker_of_another_kind_is_not_started_again_on_that_kind() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(Places(frozenset({"a100", "h1", "h2"})))
    scheduler.handle(WorkersWanted(2))
    scheduler.handle(WorkerReady(0, "a100"))
    h100 = frozenset({"h1", "h2"})
    assert scheduler.handle(WorkerRefused(1, h100, "device: stored A100, now H100")) == [StartWorker(h100)]


def test_a_run_that_nobody_matches_ends_in_words() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(Places(frozenset({"h1"})))
    scheduler.handle(WorkersWanted(1))
    told = scheduler.handle(WorkerRefused(0, frozenset({"h1"}), "device: stored A100, now H100"))
    assert told == [GiveUp("0 of 1 workers match: device: stored A100, now H100")]


def test_a_stopping_run_starts_nobody() -> None:
    scheduler = Scheduler(slots=1)
    scheduler.handle(WorkersWanted(1))
    scheduler.handle(StopRequested())
    assert scheduler.handle(StartFailed(0, "n", "x")) == []
    assert scheduler.handle(Places(frozenset({"n", "m"}))) == []
    assert scheduler.is_idle
