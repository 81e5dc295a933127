"""Two owners of one run: the older one wakes, writes where all is settled, is refused, and steps down."""

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.rounds import Output
from tests.support import ray_runs
from tests.support.buckets import url_in
from tests.support.gate import Gate
from tests.support.ray_runs import FRAMES_TO_MAKE, Ended, Frames, Inputs, Run

VIDEOS = "/.ti2v/videos/"


@dataclass(frozen=True)
class TakenOver:
    """A run whose processes were all stopped in mid-write, taken over by another cluster, and then woken."""

    older_ended: Ended
    newer_ended: Ended
    older_frames: Frames
    newer_frames: Frames
    older_slept_at: int
    settled_by_older: dict[str, bytes]
    settled_at_waking: dict[str, bytes]
    in_mid_write: set[str]
    answers_after_waking: list[tuple[str, int]]
    final: Output


@pytest.fixture(scope="module")
def taken_over(given: Inputs, moto: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TakenOver]:
    folder = tmp_path_factory.mktemp("taken")
    with pytest.MonkeyPatch.context() as patch, closing(Gate(moto, VIDEOS)) as gate:
        url = url_in(moto, patch)
        with (
            ray_runs.opened(given, folder / "older", AWS_ENDPOINT_URL=gate.url) as older,
            ray_runs.opened(given, folder / "newer") as newer,
        ):
            yield take_over(url, older, newer, gate)


def take_over(url: str, older: Run, newer: Run, gate: Gate) -> TakenOver:
    first = older.start("--output", url)
    older.await_frames(first, 12)
    gate.shut()
    ray_runs.wait_until(lambda: gate.held, "create that is on its way")
    stopped = list(older.processes())
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    slept_at, in_mid_write = len(older.frames()), {key_of(path) for path in gate.held}
    settled = Output.read(url).records
    second = newer.start("--output", url, workers=1)
    newer.await_frames(second, 12)
    ray_runs.wait_until(lambda: Output.read(url).records.keys() >= in_mid_write, "the newer owner's values")
    at_waking, already = Output.read(url).records, len(gate.answers)
    for pid in stopped:
        os.kill(pid, signal.SIGCONT)
    gate.open()
    older_ended, newer_ended = older.finish(first), newer.finish(second)
    return TakenOver(
        older_ended=older_ended,
        newer_ended=newer_ended,
        older_frames=older.frames(),
        newer_frames=newer.frames(),
        older_slept_at=slept_at,
        settled_by_older=settled,
        settled_at_waking=at_waking,
        in_mid_write=in_mid_write,
        answers_after_waking=[(key_of(answer.path), answer.status) for answer in gate.answers[already:]],
        final=Output.read(url),
    )


def key_of(path: str) -> str:
    return path.partition(VIDEOS)[2]


def frame_of(key: str) -> tuple[str, int]:
    name, frame = key.split("/")
    return name, int(frame)


def test_the_older_owner_writes_what_is_settled_and_is_refused(taken_over: TakenOver) -> None:
    refused = {key for key, status in taken_over.answers_after_waking if status == 412}
    assert taken_over.in_mid_write
    assert refused >= taken_over.in_mid_write
    accepted = {key for key, status in taken_over.answers_after_waking if status == 200}
    assert not accepted & taken_over.settled_at_waking.keys()


def test_the_older_owner_changes_nothing(taken_over: TakenOver) -> None:
    records = taken_over.final.records
    for settled in (taken_over.settled_by_older, taken_over.settled_at_waking):
        assert {key: records[key] for key in settled} == settled
    assert taken_over.settled_by_older.keys() < taken_over.settled_at_waking.keys()


def test_the_older_owner_steps_down_and_says_so(taken_over: TakenOver) -> None:
    ended = taken_over.older_ended
    assert ended.code == 1, ended.stderr
    assert "another coordinator has taken this run over from epoch 1; it goes on there" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_older_owner_goes_on_for_no_more_than_a_frame(taken_over: TakenOver) -> None:
    """Of each video the frame that was in hand while it slept, and one more."""
    after = Counter(name for name, *_ in taken_over.older_frames[taken_over.older_slept_at :])
    assert all(count <= 2 for count in after.values()), after


def test_the_newer_owner_ends_with_the_videos_of_an_undisturbed_run(taken_over: TakenOver, reference: Run) -> None:
    ended = taken_over.newer_ended
    assert (ended.code, ended.result["status"]) == (0, "finished"), ended.stderr
    assert taken_over.final.records == reference.records()
    assert {Path(name).name: data for name, data in taken_over.final.mp4s().items()} == reference.mp4s()


def test_what_the_older_owner_had_settled_is_not_computed_again(taken_over: TakenOver) -> None:
    computed = {frame[:2] for frame in taken_over.newer_frames}
    assert not computed & set(map(frame_of, taken_over.settled_by_older))
    both = computed | {frame[:2] for frame in taken_over.older_frames}
    assert len(both) == FRAMES_TO_MAKE
