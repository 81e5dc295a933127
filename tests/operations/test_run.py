"""One undisturbed run on a real Ray, with two bad rows among the good ones, and what it leaves behind."""

from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from imageio_ffmpeg import count_frames_and_secs

from tests.support import ray_runs
from tests.support.ray_runs import FRAMES_TO_MAKE, NUM_FRAMES, SETTINGS, SLOTS, Run, Undisturbed
from ti2v_dist.config import load_config
from ti2v_dist.operations.generate import generate


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return ray_runs.undisturbed(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def run(done: Undisturbed) -> Run:
    return done.run


@cache
def table(path: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(path).to_pylist()


def test_good_rows_finish_and_bad_rows_are_named(run: Run, done: Undisturbed) -> None:
    result = done.ended
    assert result.code == 3, result.stderr
    assert (result.result["status"], result.result["finished"], result.result["failed"]) == ("failed_rows", 5, 2)
    failures = {row["id"]: row for row in table(run.output / "failures.parquet")}
    assert (failures["broken"]["line"], failures["negative"]["line"]) == (1, 2)
    assert "broken.png" in failures["broken"]["error_message"]
    assert "num_frames is -3" in failures["negative"]["error_message"]
    assert {row["error_type"] for row in failures.values()} == {"ImageError", "InputError"}


def test_every_video_is_an_mp4_of_the_right_length(run: Run) -> None:
    rows = {row["id"]: row for row in table(run.output / "dataset" / "metadata.parquet")}
    assert {video_id: row["num_frames"] for video_id, row in rows.items()} == NUM_FRAMES
    for row in rows.values():
        frames, _ = count_frames_and_secs(str(run.output / "dataset" / row["file_name"]))
        assert frames == row["num_frames"]
    assert len(run.mp4s()) == len(rows)


def test_every_frame_is_computed_and_recorded_once(run: Run) -> None:
    expected = {f"{video_id}/{frame:010d}" for video_id, count in NUM_FRAMES.items() for frame in range(count)}
    assert run.records().keys() == expected
    assert run.frames_once() == {(name, frame) for name, count in NUM_FRAMES.items() for frame in range(1, count)}


def test_what_people_read_is_written(run: Run, done: Undisturbed) -> None:
    assert run.summary() == done.ended.result
    assert run.summary()["frames"] == sum(NUM_FRAMES.values())
    for name in ("run.json", "dataset/README.md", "report/index.html"):
        assert (run.output / name).stat().st_size > 0
    html = (run.output / "report" / "index.html").read_text()
    assert all(name in html for name in run.mp4s())


def test_the_endpoint_counts_what_the_run_made(run: Run, done: Undisturbed) -> None:
    counters = run.summary()["this_life"]["counters"]
    assert counters["ti2v_frames_total"] == FRAMES_TO_MAKE == len(run.frames())
    for phase in ("queue_wait", "denoise", "decode", "commit"):
        assert counters[f'ti2v_frame_seconds_count{{phase="{phase}"}}'] == FRAMES_TO_MAKE
    assert counters['ti2v_videos_total{outcome="finished"}'] == len(NUM_FRAMES)
    live = [found["ti2v_frames_total"] for found in done.scrapes]
    assert live == sorted(live)
    assert any(0 < frames < FRAMES_TO_MAKE for frames in live), "no scrape came in mid-run"
    denoised = "ti2v_frame_seconds_count{phase=denoise}"
    assert all(found["ti2v_frames_total"] <= found[denoised] <= FRAMES_TO_MAKE for found in done.scrapes)


def test_the_same_command_again_touches_no_file(run: Run, done: Undisturbed) -> None:
    def views() -> dict[str, tuple[int, bytes]]:
        files = [path for path in run.output.rglob("*") if path.is_file() and ".ti2v" not in path.parts]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = views()
    again = run.run(manifest=run.inputs.folder / "bad-rows.jsonl")
    assert (again.code, again.result) == (3, done.ended.result)
    assert views() == before
    total = FRAMES_TO_MAKE
    told = [f"{total} of {total} frames, writing the {what}" for what in ("tables", "report")]
    assert [line for line in again.stderr.splitlines() if " frames, " in line] == told


def test_status_tells_the_same_as_the_summary(run: Run) -> None:
    shown = run.ti2v("status", str(run.output), "--json").result
    assert (shown["rows"], shown["finished"], shown["failed"], shown["refused"]) == (7, 5, 2, 2)
    assert (shown["frames"], shown["frames_total"]) == (FRAMES_TO_MAKE, FRAMES_TO_MAKE)


def test_generate_with_the_same_slots_makes_the_same_frames(run: Run, tmp_path: Path) -> None:
    row = next(row for row in table(run.output / "dataset" / "metadata.parquet") if row["id"] == "ann")
    settings = [*SETTINGS, f"model.id={run.inputs.model}", f"engine.slots={SLOTS}"]
    settings += [f"sampling.num_frames={row['num_frames']}"]
    alone = generate(
        str(run.inputs.image("ann")),
        row["text"],
        tmp_path / "ann.mp4",
        seed=row["seed"],
        config=load_config(settings=settings),
    )
    assert alone["frames_sha256"] == row["frames_sha256"]


def test_no_process_outlives_the_run(done: Undisturbed) -> None:
    assert not done.survivors


def test_only_workers_load_torch(done: Undisturbed) -> None:
    assert done.with_torch
    assert all(command.startswith("ray::Worker") for command in done.with_torch)


def test_an_unusable_manifest_starts_nothing(run: Run, tmp_path: Path) -> None:
    rows = run.inputs.rows()
    manifest = run.inputs.other_manifest("duplicate.jsonl", [*rows, rows[0]])
    with ray_runs.opened(run.inputs, tmp_path / "out") as refused:
        result = refused.run(manifest=manifest)
        assert result.code == 2
        assert "line 6" in result.stderr
        assert "'ann'" in result.stderr
        assert not refused.output.exists()
        assert not any(refused.ray_dir.iterdir()), "Ray was started"
