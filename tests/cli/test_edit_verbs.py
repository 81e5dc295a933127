"""The verbs for a run that was described already, on a real Ray: only what is asked for is computed."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support import ray_runs
from tests.support.ray_runs import NUM_FRAMES, PATIENCE_S, TI2V, Ended, Run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A copy of a whole run, with a manifest of its own beside the images."""
    base = tmp_path_factory.getbasetemp()
    whole = ray_runs.undisturbed(base).run
    with ray_runs.opened(whole.inputs, tmp_path_factory.mktemp("grown") / "out") as run:
        shutil.copytree(whole.output, run.output)
        described = json.loads((run.output / "run.json").read_text())
        described["manifest"] = str(shutil.copy(whole.inputs.folder / "bad-rows.jsonl", whole.inputs.folder / OWN))
        (run.output / "run.json").write_text(json.dumps(described))
        yield run


OWN = "own.jsonl"


def verb(run: Run, name: str, *more: str) -> Ended:
    command = [str(TI2V), name, str(run.output), *more, "--json"]
    done = subprocess.run(command, env=run.environment, capture_output=True, text=True, timeout=PATIENCE_S)
    return Ended(done.returncode, done.stdout, done.stderr)


def computed_by(run: Run, name: str, *more: str) -> tuple[Ended, set[tuple[str, int]]]:
    before = run.frames_once()
    ended = verb(run, name, *more)
    return ended, run.frames_once() - before


def listed(run: Run) -> dict[str, dict]:
    return {row["id"]: row for row in pq.read_table(run.output / "dataset" / "metadata.parquet").to_pylist()}


def test_a_failed_row_is_mended_as_the_summary_says(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The manifest is corrected where it lies, then `retry` makes the failed rows and no others."""
    said = ray_runs.undisturbed(tmp_path_factory.getbasetemp()).ended.stderr
    assert "ti2v: 2 rows failed: see " in said
    assert "/failures.parquet; correct the manifest where it lies, then `ti2v retry " in said
    manifest = Path(json.loads((run.output / "run.json").read_text())["manifest"])
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    run.inputs.other_manifest(OWN, [{**row, "image": "ann.png"} if row["id"] == "broken" else row for row in rows])
    ended, computed = computed_by(run, "retry")
    assert ended.code == 3, ended.stderr
    assert f"ti2v: 1 row failed: see {run.output}/failures.parquet; " in ended.stderr
    assert computed == {("broken", frame) for frame in range(1, 8)}
    assert (ended.result["rows"], ended.result["finished"], ended.result["failed"]) == (7, 6, 1)
    assert set(listed(run)) == {*NUM_FRAMES, "broken"}


def test_extend_makes_the_new_frames_alone(run: Run) -> None:
    records = run.records()
    ended, computed = computed_by(run, "extend", "--id", "ann", "--num-frames", "+3")
    assert ended.code == 3, ended.stderr
    assert computed == {("ann", frame) for frame in range(NUM_FRAMES["ann"], NUM_FRAMES["ann"] + 3)}
    assert run.records().items() >= records.items()
    assert listed(run)["ann"]["num_frames"] == NUM_FRAMES["ann"] + 3
    assert len([name for name in run.mp4s() if name.startswith("ann-")]) == 2


def test_fork_makes_a_video_that_the_manifest_does_not_have(run: Run) -> None:
    chosen = ["--id", "bob", "--from-frame", "20", "--prompt", "red cid", "--new-id", "bob2"]
    ended, computed = computed_by(run, "fork", *chosen)
    assert ended.code == 3, ended.stderr
    assert computed == {("bob2", 21), ("bob2", 22), ("bob2", 23)}
    assert listed(run)["bob2"]["text"] == "red bob; from frame 21: red cid"
    assert (ended.result["rows"], ended.result["finished"]) == (8, 7)


def test_the_run_knows_what_became_of_its_videos(run: Run) -> None:
    """`run` finds nothing to do, the tables keep the fork, and every frame can be computed again."""
    before = run.frames_once()
    ended = run.run(manifest=Path(run.inputs.folder / OWN))
    assert ended.code == 3, ended.stderr
    assert run.frames_once() == before
    assert set(listed(run)) == {*NUM_FRAMES, "broken", "bob2"}
    found = verb(run, "verify", "--deep")
    assert (found.code, found.result["problems"]) == (0, []), found.stderr
    gone = verb(run, "gc", "--delete", "--drop-frames").result
    assert len(gone["orphans"]) == 1
    assert set(gone["frames_of"]) == {*NUM_FRAMES, "broken", "bob2"}
    assert run.records() == {}
    found = verb(run, "verify")
    assert (found.code, found.result["problems"], found.result["without_frames"]) == (0, [], 7), found.stderr
    refused = verb(run, "extend", "--id", "cid", "--num-frames", "+3")
    assert refused.code == 2
    assert "video 'cid' is finished and gc dropped its frames" in refused.stderr
