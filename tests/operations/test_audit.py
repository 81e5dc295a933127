"""`ti2v verify` on real runs: nothing to say of a whole one, and every kind of damage is named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import ray_runs
from tests.support.cli_runs import FAST, ti2v
from tests.support.ray_runs import FRAMES_TO_MAKE, NUM_FRAMES
from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.operations.verify import verify
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.state.record import Record


@pytest.fixture
def output(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a whole run, to be damaged."""
    run = ray_runs.undisturbed(tmp_path_factory.getbasetemp()).run
    return shutil.copytree(run.output, tmp_path / "out")


def only_problem(output: Path, deep: bool = False) -> tuple[str, str]:
    (problem,) = verify(str(output), deep)["problems"]
    return problem["id"], problem["problem"]


def record(output: Path, video_id: str, frame: int) -> Path:
    return output / ".ti2v" / "videos" / video_id / f"{frame:010d}"


def mp4(output: Path, video_id: str) -> Path:
    (path,) = (output / "dataset").glob(f"videos/*/{video_id}-*.mp4")
    return path


def test_a_whole_run_has_no_problem_and_its_frames_can_be_computed_again(output: Path) -> None:
    done = ti2v("verify", output, "--deep", "--json", cwd=output)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["videos"], found["finished"], found["problems"]) == (len(NUM_FRAMES), len(NUM_FRAMES), [])
    assert found["frames_computed_again"] == 3 * len(NUM_FRAMES)
    assert 3 * len(NUM_FRAMES) < FRAMES_TO_MAKE


def test_a_flipped_bit_of_a_record_is_named_with_its_key(output: Path) -> None:
    path = record(output, "bob", 5)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert only_problem(output) == ("bob", ".ti2v/videos/bob/0000000005: sha256 does not match")


def test_a_missing_record_is_found(output: Path) -> None:
    record(output, "bob", 5).unlink()
    video_id, problem = only_problem(output)
    assert video_id == "bob"
    assert "the record is missing, though frame 23 has one" in problem


def test_a_changed_file_and_a_missing_one_are_found(output: Path) -> None:
    mp4(output, "ann").unlink()
    with mp4(output, "bob").open("ab") as file:
        file.write(b"\0")
    done = ti2v("verify", output, cwd=output)
    assert done.returncode == 3
    ann, bob, *_ = done.stdout.splitlines()
    assert ann.startswith("ann: videos/")
    assert ann.endswith("does not exist")
    assert bob.endswith("is not the file that was finished: its sha256 differs")


def test_a_table_of_another_day_is_found(output: Path) -> None:
    path = output / "dataset" / "metadata.parquet"
    table = pq.read_table(path)
    pq.write_table(table.filter([name != "cid" for name in table["id"].to_pylist()]), path)
    assert only_problem(output) == ("cid", "dataset/metadata.parquet does not list it")


def test_a_frame_that_another_machine_made_is_found_by_a_deep_check(output: Path) -> None:
    """A chain that is whole in itself, whose last frame no such model computes."""
    path = record(output, "bob", NUM_FRAMES["bob"] - 1)
    whole = Record.from_bytes("", path.read_bytes())
    whole.arrays["latents_FCHW"][0, 0, 0, 0] = np.nextafter(whole.arrays["latents_FCHW"][0, 0, 0, 0], 9)
    path.write_bytes(whole.to_bytes())
    assert verify(str(output))["problems"] == []
    assert only_problem(output, deep=True) == ("bob", "frame 23 computed again has other bits")


def test_other_versions_cannot_check_bits(output: Path) -> None:
    path = output / ".ti2v" / "fingerprints" / "0"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch": "1.0"}))
    done = ti2v("verify", output, "--deep", cwd=output)
    assert done.returncode == 2
    assert "this machine cannot compute the run's frames bit for bit:" in done.stderr
    assert "torch: stored '1.0', now " in done.stderr


def test_one_video_is_verified_by_its_state(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(tmp_path / "first.png")
    chosen = ["--image", "first.png", "--prompt", "x", "--output", "cat.mp4", "--num-frames", "4"]
    model = write_tiny_model(tmp_path / "model")
    assert ti2v("generate", *chosen, "--model", model, *FAST, cwd=tmp_path).returncode == 0
    state = tmp_path / "cat.mp4.ti2v"
    found = verify(str(state), deep=True)
    assert (found["finished"], found["frames_computed_again"], found["problems"]) == (1, 3, [])
    assert CheckpointStore(str(state)).done_ids() == ["cat"]
    for moved in (tmp_path / "archive" / "cat.mp4", tmp_path / "archive" / "dog.mp4"):
        moved.parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "cat.mp4", moved)
        copied = shutil.copytree(state, f"{moved}.ti2v")
        assert verify(copied)["problems"] == [], "it lies elsewhere, under another name"
        moved.write_bytes(b"")
        assert only_problem(Path(copied))[0] == "cat", "the one beside it was looked at"
    (tmp_path / "cat.mp4").write_bytes(b"")
    assert only_problem(state)[0] == "cat"
