"""Kills and stops of whole runs on a real Ray: they end with the very frames of a run that nobody disturbed."""

import json
import os
import re
import shutil
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support import ray_runs
from tests.support.ray_runs import FRAMES_TO_MAKE, NUM_FRAMES, SLOTS, Ended, Inputs, Run, wait_until
from tests.support.reports import page_cards
from ti2v_dist.outputs import views
from ti2v_dist.outputs.dataset import read_rows

CALLS = 2
"""Calls in flight of one worker, each of at most SLOTS frames."""
WORKERS = 2


@dataclass(frozen=True)
class WorkerKilled:
    """A run of a single worker that was killed, ended by itself."""

    run: Run
    ended: Ended
    pid: int
    reported: Ended
    """What `ti2v report` told while the run went on, and the cards of its page."""
    cards: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def worker_killed(given: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerKilled]:
    with ray_runs.opened(given, tmp_path_factory.mktemp("worker") / "out", TI2V_LOG="json") as run:
        process = run.start(workers=1)
        *_, (_, _, pid) = run.await_frames(process, 12)
        os.kill(pid, signal.SIGKILL)
        reported = run.ti2v("report", str(run.output), "--json")
        assert process.poll() is None
        cards = page_cards(run.output)
        yield WorkerKilled(run, run.finish(process), pid, reported, cards)


@dataclass
class Life:
    """One life of a run's driver and cluster, and what was in the store when it began."""

    stored: set[tuple[str, int]]
    already_computed: int
    ended: Ended | None = None
    status: Ended | None = None
    previews: int | None = None
    """Of the report, when it ended."""

    @classmethod
    def of(cls, run: Run) -> "Life":
        return cls(stored(run), len(run.frames()))


@pytest.fixture(scope="module")
def lives(given: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, list[Life]]]:
    """Killed -9 with coordinator and workers; interrupted by Ctrl-C; stopped from outside; left alone to the end."""
    with ray_runs.opened(given, tmp_path_factory.mktemp("driver") / "out") as run:
        yield run, [killed_life(run), interrupted_life(run), stopped_life(run), last_life(run)]


def stored(run: Run) -> set[tuple[str, int]]:
    keys = (key.split("/") for key in run.records())
    return {(name, int(frame)) for name, frame in keys if int(frame)}


def killed_life(run: Run) -> Life:
    life = Life.of(run)
    with run.start() as process:
        run.await_frames(process, 12)
        assert "ray::Coordinator" in " ".join(run.processes().values())
        assert workers_of(run)
        run.kill()
    return life


def workers_of(run: Run) -> list[int]:
    """Both of them: for a moment a process that a worker starts bears the worker's name."""

    def all_there() -> list[int]:
        found = [pid for pid, command in run.processes().items() if command.startswith("ray::Worker")]
        return found if len(found) == WORKERS else []

    return wait_until(all_there, "workers")


@contextmanager
def no_frame_until_it_stops(run: Run) -> Iterator[None]:
    """Hold the workers: a fast machine would make the rest before the coordinator has heard of a stop."""
    workers = workers_of(run)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        logs = "ray/session_latest/logs/worker-*.err"
        wait_until(lambda: any("stopping: " in path.read_text() for path in run.ray_dir.glob(logs)), "stop")
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)


def interrupted_life(run: Run) -> Life:
    life = Life.of(run)
    process = run.start()
    run.await_frames(process, len(run.frames()) + 4)
    with no_frame_until_it_stops(run):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: Ray's processes get it too
    life.ended = run.finish(process)
    life.previews = len(list(run.output.glob("report/previews/*")))
    life.status = run.ti2v("status", str(run.output), "--json")
    return life


def stopped_life(run: Run) -> Life:
    life = Life.of(run)
    process = run.start()
    run.await_frames(process, len(run.frames()) + 2)
    with no_frame_until_it_stops(run):
        views.stop(str(run.output))
    life.ended = run.finish(process)
    life.previews = len(list(run.output.glob("report/previews/*")))
    return life


def last_life(run: Run) -> Life:
    """On a port that somebody else has, and where no image is: every video has its frame 0."""
    life = Life.of(run)
    manifest = run.inputs.without_images(run.output.parent / "elsewhere")
    assert {key.partition("/")[0] for key in run.records()} == NUM_FRAMES.keys()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = f"cluster.metrics_port={other.getsockname()[1]}"
        life.ended = run.run("--set", port, manifest=manifest, workers=1)
    life.previews = len(list(run.output.glob("report/previews/*")))
    return life


def assert_same_videos(run: Run, reference: Run) -> None:
    assert run.records() == reference.records()
    assert run.mp4s() == reference.mp4s()
    assert len(run.mp4s()) == len(NUM_FRAMES)


def contents(run: Run) -> dict[Path, bytes]:
    """Every file of the output but the summary, which tells what the last command did."""
    files = (path for path in run.output.rglob("*") if path.is_file() and path.name != "summary.json")
    return {path.relative_to(run.output): path.read_bytes() for path in files}


def test_a_killed_workers_videos_go_on_to_the_same_frames(worker_killed: WorkerKilled, reference: Run) -> None:
    assert worker_killed.ended.code == 0, worker_killed.ended.stderr
    assert_same_videos(worker_killed.run, reference)


def test_a_report_is_made_while_the_run_goes_on_and_at_its_end_the_same_again(worker_killed: WorkerKilled) -> None:
    assert worker_killed.reported.code == 0, worker_killed.reported.stderr
    told = worker_killed.reported.result
    assert told["finished"] + told["under_way"] == len(NUM_FRAMES)
    assert told["under_way"] > 0
    cards = worker_killed.cards
    assert {video_id: card["text"] for video_id, card in cards.items()} == {name: f"red {name}" for name in NUM_FRAMES}
    assert all(card["frames"] == NUM_FRAMES[name] for name, card in cards.items() if "frames" in card)
    run = worker_killed.run
    assert {card["status"] for card in page_cards(run.output).values()} == {"finished"}
    before = contents(run)
    assert run.ti2v("report", str(run.output), "--json").result["measured"] == len(NUM_FRAMES)
    assert contents(run) == before


def test_a_killed_worker_costs_the_frames_in_flight(worker_killed: WorkerKilled) -> None:
    computed = worker_killed.run.frames()
    first = {frame[:2]: frame[2] for frame in reversed(computed)}
    twice = Counter(frame[:2] for frame in computed) - Counter(first.keys())
    assert len(first) == FRAMES_TO_MAKE
    assert twice.total() <= CALLS * SLOTS
    assert {first[frame] for frame in twice} <= {worker_killed.pid}
    counters = worker_killed.ended.result["this_life"]["counters"]
    assert counters['ti2v_worker_losses_total{reason="died"}'] == 1
    usage = worker_killed.ended.result["usage"]
    assert usage["worker_losses"] == 1
    assert twice.total() <= usage["frames_discarded"] <= CALLS * SLOTS


def logged(run: Run) -> dict[int, list[dict[str, Any]]]:
    """The lines of the log by the pid of the actor's process, from the files that Ray keeps of its stderr."""
    texts = {path: path.read_text() for path in run.ray_dir.glob("ray/session_2*/logs/worker-*.err")}
    actors = {path: text for path, text in texts.items() if ":actor_name:" in text}
    return {
        int(path.stem.rpartition("-")[2]): [json.loads(line) for line in text.splitlines() if line[0] != ":"]  # Ray's
        for path, text in actors.items()
    }


def device_of(run: Run) -> str:
    """The device that made the run's videos, by its table."""
    (device,) = {row["device"] for row in read_rows(str(run.output))}
    return device


def test_each_line_of_the_log_says_where_it_comes_from(worker_killed: WorkerKilled) -> None:
    by_pid = logged(worker_killed.run)
    lines = [line for of_one in by_pid.values() for line in of_one]
    assert len(by_pid) == 3, "the coordinator, a worker, and the one in its place"
    run_id = worker_killed.run.summary()["run_id"]
    assert {(line["run"], line["epoch"]) for line in lines} == {(run_id, 1)}
    assert [(line["message"], line["worker"]) for line in by_pid[worker_killed.pid]] == [
        ("a worker's process has begun", 0),
        ("imported the model's libraries", 0),
        ("loaded the weights", 0),
        (f"loaded the model onto {device_of(worker_killed.run)}", 0),
    ]
    done = {line["video"]: line["worker"] for line in lines if line["message"] == "a video is finished"}
    assert done == dict.fromkeys(NUM_FRAMES, 1)
    assert not any(row["prompt"] in str(lines) for row in worker_killed.run.inputs.rows())


def test_the_log_tells_of_a_run_from_its_beginning_to_its_end(worker_killed: WorkerKilled) -> None:
    (lines,) = [of_one for of_one in logged(worker_killed.run).values() if "worker" not in of_one[0]]
    ready = f"a worker is ready on node 127.0.0.1 ({device_of(worker_killed.run)})"
    assert [(line["level"], line["message"], line.get("worker")) for line in lines if "video" not in line] == [
        ("INFO", "took the run over", None),
        ("INFO", "admitted a plan of 5 videos, of which 5 are to be made", None),
        ("INFO", "starting a worker", 0),
        ("INFO", ready, 0),
        ("WARNING", "lost a worker: died", 0),
        ("INFO", "starting a worker", 1),
        ("INFO", ready, 1),
        ("INFO", "wrote the tables", None),
        ("INFO", "the run has ended: finished", None),
    ]
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)
    assert {time.utcoffset() for time in times} == {timedelta()}


def test_a_finished_run_is_left_as_it_is(worker_killed: WorkerKilled) -> None:
    before = contents(worker_killed.run)
    with ray_runs.opened(worker_killed.run.inputs, worker_killed.run.output) as again:
        ended = again.run(workers=1)
        assert (ended.code, ended.result["status"]) == (0, "finished"), ended.stderr
        assert contents(again) == before
        assert not any(again.ray_dir.iterdir()), "Ray was started"


def test_a_lost_file_is_made_again_from_its_frames(worker_killed: WorkerKilled, reference: Run, tmp_path: Path) -> None:
    """The images need not be there any more."""
    output = shutil.copytree(worker_killed.run.output, tmp_path / "out")
    (lost,) = output.glob("dataset/videos/*/bob-*.mp4")
    lost.unlink()
    with ray_runs.opened(worker_killed.run.inputs, output) as run:
        ended = run.run(workers=1, manifest=run.inputs.without_images(tmp_path / "elsewhere"))
        assert (ended.code, ended.result["status"]) == (0, "finished"), ended.stderr
        assert_same_videos(run, reference)
        assert run.frames() == [], "no frame was computed"


def test_other_settings_are_refused(worker_killed: WorkerKilled) -> None:
    run = worker_killed.run
    before = contents(run)
    ended = run.run("--set", "sampling.num_inference_steps=3")
    assert ended.code == 2
    assert "sampling.num_inference_steps: stored 2, now 3" in ended.stderr
    assert contents(run) == before


@pytest.mark.parametrize("unfinished", [False, True])
def test_another_prompt_is_refused(worker_killed: WorkerKilled, tmp_path: Path, unfinished: bool) -> None:
    output = tmp_path / "out"
    shutil.copytree(worker_killed.run.output, output)
    if unfinished:
        shutil.rmtree(output / ".ti2v" / "done" / "bob")
    rows = [row | ({"prompt": "another"} if row["id"] == "bob" else {}) for row in worker_killed.run.inputs.rows()]
    manifest = worker_killed.run.inputs.other_manifest("other-prompt.jsonl", rows)
    with ray_runs.opened(worker_killed.run.inputs, output) as run:
        before = contents(run)
        ended = run.run(manifest=manifest)
        assert ended.code == 2
        assert "'bob'" in ended.stderr
        assert "'red bob'" in ended.stderr
        assert "'another'" in ended.stderr
        assert contents(run) == before


def test_after_kills_and_stops_the_videos_are_the_same(lives: tuple[Run, list[Life]], reference: Run) -> None:
    run, (*_, last) = lives
    assert last.ended
    assert (last.ended.code, last.ended.result["status"]) == (0, "finished"), last.ended.stderr
    assert_same_videos(run, reference)


def test_no_settled_frame_is_computed_again(lives: tuple[Run, list[Life]]) -> None:
    run, [killed, interrupted, stopped, last] = lives
    log = [frame[:2] for frame in run.frames()]
    for life, following in ((killed, interrupted), (interrupted, stopped), (stopped, last)):
        computed = log[life.already_computed : following.already_computed]
        assert len(set(computed)) == len(computed)
        assert not life.stored & set(computed)
        lost = set(computed) - following.stored
        # Computing a frame overlaps the commit of the one before it, and no more.
        allowed = 2 if life is killed else 0
        assert all(count <= allowed for count in Counter(name for name, _ in lost).values()), lost
    assert set(log[last.already_computed :]).isdisjoint(last.stored)
    assert 0 < len(interrupted.stored) < len(stopped.stored) < FRAMES_TO_MAKE


def test_what_a_run_has_cost_is_that_of_all_its_lives(lives: tuple[Run, list[Life]]) -> None:
    _, [_, interrupted, stopped, last] = lives
    results = [life.ended.result for life in (interrupted, stopped, last) if life.ended]
    own = [result["this_life"]["counters"]["ti2v_device_seconds_total"] for result in results]
    totals = [result["usage"]["device_seconds"] for result in results]
    assert totals[0] >= round(own[0], 3) > 0
    assert totals[1:] == pytest.approx([totals[0] + own[1], totals[0] + own[1] + own[2]], abs=0.01)


@pytest.mark.parametrize("life", [1, 2])
def test_a_stopped_run_says_how_to_go_on(lives: tuple[Run, list[Life]], life: int) -> None:
    ended = lives[1][life].ended
    assert ended
    assert (ended.code, ended.result["status"]) == (130, "interrupted"), ended.stderr
    assert "the same command goes on" in ended.stderr


def told(life: Life) -> list[tuple[int, int, str]]:
    """The lines of progress: frames, frames in all, and what was said."""
    assert life.ended
    found = re.findall(r"^(\d+) of (\d+) frames, (.*)$", life.ended.stderr, re.MULTILINE)
    return [(int(frames), int(total), said) for frames, total, said in found]


@pytest.mark.parametrize("life", [1, 2])
def test_a_stopping_run_says_so_and_makes_no_pictures(lives: tuple[Run, list[Life]], life: int) -> None:
    said = [said for _, _, said in told(lives[1][life])]
    assert any(line.startswith(("stopping: ", "writing the ")) for line in said), said
    assert not any(" s left" in line for line in said[-1:])
    assert lives[1][life].previews == 0


def test_a_resumed_run_counts_from_what_was_made_before(lives: tuple[Run, list[Life]]) -> None:
    _, [_, interrupted, stopped, last] = lives
    for life in (interrupted, stopped, last):
        for frames, total, said in told(life):
            assert total == FRAMES_TO_MAKE, said
            if not said.startswith("starting"):  # a killed life's last hint may lack its newest frames
                assert frames >= (0 if life is interrupted else len(life.stored)), said
    assert told(last)[-1][:2] == (FRAMES_TO_MAKE, FRAMES_TO_MAKE)
    assert last.previews == len(NUM_FRAMES)


def test_a_run_does_not_end_for_want_of_metrics(lives: tuple[Run, list[Life]]) -> None:
    ended = lives[1][-1].ended
    assert ended
    assert ended.result["this_life"]["metrics_url"] is None
    assert ended.stderr.count("warning: metrics are not served at 127.0.0.1:") == 1
    assert "Address already in use" in ended.stderr


def test_status_shows_what_an_interrupted_run_has_settled(lives: tuple[Run, list[Life]]) -> None:
    _, [_, interrupted, stopped, _] = lives
    assert interrupted.status
    shown = interrupted.status.result
    assert (shown["rows"], shown["failed"]) == (len(NUM_FRAMES), 0)
    last = {name: max(f for n, f in stopped.stored if n == name) for name, _ in stopped.stored}
    begun = {name: frame for name, frame in shown["in_progress"].items() if frame}  # others have their image alone
    assert begun.items() <= last.items()
    assert len(begun) + shown["finished"] == len(last) > 0
