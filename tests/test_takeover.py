"""Two owners of one run: the older one steps down, and the videos are those of an undisturbed run."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import ray_runs
from ray_runs import FRAMES_TO_MAKE, Ended, Inputs, Run


@dataclass(frozen=True)
class TakenOver:
    """A run whose processes were all stopped in mid-video, taken over by another cluster, and then woken."""

    older: Run
    newer: Run
    older_ended: Ended
    newer_ended: Ended
    settled_by_older: dict[str, bytes]


@pytest.fixture(scope="module")
def taken_over(given: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TakenOver]:
    output = tmp_path_factory.mktemp("taken") / "out"
    with ray_runs.opened(given, output) as older, ray_runs.opened(given, output) as newer:
        newer.log = output.with_suffix(".newer.frames")
        first = older.start()
        older.await_frames(first, 12)
        stopped = list(older.processes())
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        settled = older.records()
        second = newer.start()
        newer.await_frames(second, 12)
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        ended = older.finish(first)
        yield TakenOver(older, newer, ended, newer.finish(second), settled)


def test_the_older_owner_steps_down_and_says_so(taken_over: TakenOver):
    ended = taken_over.older_ended
    assert ended.code == 1, ended.stderr
    assert "another coordinator has taken this run over from epoch 1; it goes on there" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_newer_owner_ends_with_the_videos_of_an_undisturbed_run(taken_over: TakenOver, reference: Run):
    ended = taken_over.newer_ended
    assert (ended.code, ended.result["status"]) == (0, "finished"), ended.stderr
    assert taken_over.newer.records() == reference.records()
    assert taken_over.newer.mp4s() == reference.mp4s()


def test_what_the_older_owner_had_settled_is_kept(taken_over: TakenOver):
    records = taken_over.newer.records()
    assert {key: records[key] for key in taken_over.settled_by_older} == taken_over.settled_by_older
    computed = {frame[:2] for frame in taken_over.newer.frames()}
    kept = {(name, int(frame)) for name, frame in (key.split("/") for key in taken_over.settled_by_older)}
    assert not computed & kept


def test_no_frame_is_missing_or_computed_by_anybody_twice(taken_over: TakenOver):
    computed = taken_over.older.frames_once() | taken_over.newer.frames_once()
    assert len(computed) == FRAMES_TO_MAKE
