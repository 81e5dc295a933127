"""Videos of an image model on Ray: killed, resumed, extended, forked; by one worker and by three."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support import ray_runs
from tests.support.footage import write_lossless
from tests.support.ray_runs import Inputs
from tests.support.tiny_models import SIZE, write_tiny_image_model
from ti2v_dist.config import load_config
from ti2v_dist.latents import BrokenSource
from ti2v_dist.operations import edit
from ti2v_dist.operations.generate import generate, generate_row
from ti2v_dist.operations.verify import verify
from ti2v_dist.state import keys
from ti2v_dist.state.checkpoint import CheckpointStore

SAMPLER, CONTROLLED, LIVING = "text2video_zero", "text2video_zero_control", "pilife"
SETTINGS = (
    f"sampling.sampler={SAMPLER}",
    "sampling.num_inference_steps=4",
    "sampling.motion_t0=251",
    "sampling.motion_t1=501",
    "sampling.motion_dx=8",
    "sampling.chunk_frames=4",
    "sampling.inversion_timestep=501",
    "sampling.inversion_iterations=2",
    f"engine.slots={ray_runs.SLOTS}",
)
LEVELS = range(10, 250, 18)
"""The grey of each frame of a control clip."""
FRAMES = {"ann": 25, "bob": 13, "cid": 13, "dan": 9}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    made = Inputs(tmp_path_factory.mktemp("image_run"))
    write_tiny_image_model(made.model, kind="control")
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(made.image("bob"))
    write_lossless(made.folder / "cid.mkv", LEVELS)
    rows: list[dict[str, Any]] = [
        {"id": "ann", "prompt": "red"},
        {"id": "bob", "prompt": "blue", "image": "bob.png"},
        {"id": "cid", "prompt": "sky", "control": "cid.mkv", "sampler": CONTROLLED},
        {"id": "dan", "prompt": "a red ball rolling", "image": "bob.png", "sampler": LIVING},
    ]
    made.other_manifest("manifest.jsonl", [{**row, "num_frames": FRAMES[row["id"]]} for row in rows])
    return made


def config(given: Inputs, **sampling: Any) -> Any:
    chosen = [f"sampling.{name}={value}" for name, value in sampling.items()]
    return load_config(None, [f"model.id={given.model}", *SETTINGS, *chosen])


def alone(given: Inputs, folder: Path, row: dict[str, Any], **sampling: Any) -> dict[str, Any]:
    """A row's video in this process, by one worker; what is said of it."""
    places = {name: str(given.folder / row[name]) for name in ("image", "control") if name in row}
    columns = {**row, **places}
    return generate_row(columns, folder / f"{row['id']}.mp4", config=config(given, **sampling))


def test_killed_resumed_extended_and_forked_they_are_the_videos_that_were_made_at_once(
    given: Inputs, tmp_path: Path
) -> None:
    options = [word for setting in SETTINGS for word in ("--set", setting)]
    with ray_runs.opened(given, tmp_path / "out") as run:
        process = run.start(*options, workers=3)
        computed = run.await_frames(process, 4)
        os.kill(computed[-1][2], signal.SIGKILL)
        run.await_frames(process, 12)
        run.kill()
        process.communicate()
        assert (ended := run.run(*options, workers=1)).code == 0, ended.stderr
        store = CheckpointStore(str(run.output))
        rows = {row["id"]: row for row in given.rows()}
        for video_id, row in rows.items():
            expected = alone(given, tmp_path / "alone", row)
            done = store.read_done(video_id)
            assert done
            assert done["frames_sha256"] == expected["frames_sha256"], video_id
            assert done["num_frames"] == FRAMES[video_id]
        assert (store.read_run() or {})["format"] == keys.FORMAT_OF_ANCHORS
        assert (store.read_done("cid") or {})["source_uri"] == "cid.mkv"

        opened = edit.opened(str(run.output))
        edit.fork(opened, "ann", 8, "a green dog", new_id="dog")
        with pytest.raises(ValueError, match=r"from_frame is 9, in the middle of a chunk of 4 frames: choose 8 or 12"):
            edit.fork(opened, "ann", 9, "a green dog", new_id="cat")
        longer = {"bob": 17, "dan": 13}
        for video_id, frames in longer.items():
            edit.extend(opened, video_id, str(frames))
        assert (ended := run.run(*options, workers=1)).code == 0, ended.stderr
        for video_id, frames in longer.items():
            expected = alone(given, tmp_path / "longer", {**rows[video_id], "num_frames": frames})
            assert (store.read_done(video_id) or {})["frames_sha256"] == expected["frames_sha256"], video_id
        schedule = [{"from_frame": 0, "prompt": "red"}, {"from_frame": 9, "prompt": "a green dog"}]
        forked = alone(given, tmp_path / "forked", {**rows["ann"], "prompt": schedule, "seed": store_seed(store)})
        assert (store.read_done("dog") or {})["frames_sha256"] == forked["frames_sha256"]
        assert verify(str(run.output), deep=True)["problems"] == []


def store_seed(store: CheckpointStore) -> int:
    """The seed that the run derived for the first video."""
    request = store.read_request("ann")
    assert request
    return request.seed


def test_a_video_from_text_alone_has_its_first_frame_made(given: Inputs, tmp_path: Path) -> None:
    row = generate(None, "red", tmp_path / "ann.mp4", config=config(given, num_frames=5))
    assert row["image_uri"] is None
    store = CheckpointStore(f"{tmp_path / 'ann.mp4'}.ti2v")
    assert store.first_image("ann").std() > 0
    again = generate(None, "red", tmp_path / "other" / "ann.mp4", config=config(given, num_frames=5, chunk_frames=2))
    assert again["frames_sha256"] == row["frames_sha256"], "the size of a chunk decides no frame"
    assert verify(str(tmp_path / "ann.mp4.ti2v"), deep=True)["problems"] == []


def test_a_source_that_is_another_one_ends_its_video_alone(given: Inputs, tmp_path: Path) -> None:
    clip = tmp_path / "c.mkv"
    original = write_lossless(clip, LEVELS).read_bytes()
    row = {"id": "c", "prompt": "sky", "control": str(clip), "sampler": CONTROLLED, "num_frames": 9}

    def stopped(frame: int, num_frames: int) -> None:
        if frame == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_row(row, tmp_path / "c.mp4", config=config(given), listener=stopped)
    write_lossless(clip, LEVELS[::-1])
    with pytest.raises(BrokenSource, match=r"video 'c': .*c\.mkv.* is another one"):
        generate_row(row, tmp_path / "c.mp4", config=config(given))
    clip.write_bytes(original)
    assert generate_row(row, tmp_path / "c.mp4", config=config(given))["num_frames"] == 9
