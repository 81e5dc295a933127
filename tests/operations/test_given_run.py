"""Several given frames through `generate`, `verify`, `repair`, `fork` and the command line."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.cli_runs import FAST, PROMPT, ti2v
from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.operations import edit, repair
from ti2v_dist.operations.generate import generate
from ti2v_dist.operations.verify import verify
from ti2v_dist.outputs.codec import read_video, write_video
from ti2v_dist.runtime.worker import Worker
from ti2v_dist.state.checkpoint import CheckpointStore

FRAMES = 6
LISTS = {
    "predicted": ["0.png", "1.png", "2.png"],
    "infilled": [
        "0.png",
        {"frame": 2, "image": "1.png"},
        {"frame": 3, "image": "2.png"},
        {"frame": 5, "image": "3.png"},
    ],
    "clip": "clip.mp4",
}
GIVEN = {"predicted": [0, 1, 2], "infilled": [0, 2, 3, 5], "clip": [0, 1, 2]}
EACH = pytest.mark.parametrize("kind", LISTS)


def picture(number: int) -> np.ndarray:
    down, right = np.mgrid[0:SIZE, 0:SIZE] * (255 / SIZE)
    return np.roll(np.stack([down, right, 255 - down], -1), 8 * number, 1).astype(np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number in range(4):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    with write_video([picture(number) for number in range(3)], 8, {}) as written:
        (tmp_path / "clip.mp4").write_bytes(written.path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def configured(model: Path, kind: str) -> RunConfig:
    small = ["num_inference_steps=2", "resample_iterations=2", f"num_frames={FRAMES}"]
    small += ["sampler=infill"] if kind == "infilled" else []
    return load_config(None, [f"model.id={model}", *(f"sampling.{one}" for one in small)])


def make(model: Path, kind: str) -> dict[str, Any]:
    return generate(LISTS[kind], PROMPT, "cat.mp4", seed=7, config=configured(model, kind))


@EACH
def test_the_video_shows_what_was_given_and_goes_on_from_any_frame(folder: Path, model: Path, kind: str) -> None:
    row = make(model, kind)
    assert (row["num_frames"], row["given_frames"]) == (FRAMES, str(GIVEN[kind]).replace(" ", ""))
    assert row["image_uri"] == ("clip.mp4" if kind == "clip" else "0.png")
    shown = list(read_video("cat.mp4"))
    for number, frame in enumerate(GIVEN[kind]):
        # Twice through the codec for a clip's, once for an image's.
        assert np.abs(shown[frame].astype(int) - picture(number)).mean() < 6, (frame, number)
    checked = verify("cat.mp4.ti2v", deep=True)
    assert checked["problems"] == []
    assert checked["frames_computed_again"] > 0
    store, state = CheckpointStore(f"{folder}/cat.mp4.ti2v"), Path("cat.mp4.ti2v/.ti2v")
    for path in [*folder.glob("*.png"), folder / "clip.mp4"]:
        path.unlink()
    first = max(int(name.name) for name in (state / "videos" / "cat").iterdir())
    for frame in (first, 0):
        (state / "done" / "cat" / "0").unlink()
        record = state / "videos" / "cat" / f"{first:010d}"
        record.write_bytes(b"damaged")
        assert repair.repair(store, "cat")["moved"] == [f".ti2v/videos/cat/{first:010d}"]
        if frame == 0:
            os.unlink("cat.mp4")
        again = make(model, kind)
        assert (again["frames_sha256"], again["file_sha256"]) == (row["frames_sha256"], row["file_sha256"])


@pytest.mark.parametrize("kind", ["predicted", "clip"])
def test_a_fork_begins_with_what_was_given(folder: Path, model: Path, kind: str) -> None:
    """From within the given frames, at their end, and behind them; the images may be gone."""
    make(model, kind)
    (folder / "1.png").unlink()
    (folder / "clip.mp4").unlink()
    store, url = CheckpointStore(f"{folder}/cat.mp4.ti2v"), f"{folder}/cat.mp4.ti2v"
    worker = Worker(configured(model, kind).model_copy(update={"engine": stored_engine(store)}), url)
    fingerprint = store.claim_fingerprint(worker.open())
    source = list(store.latents("cat", 0))
    for frame in (1, 2, 4):
        request = edit.fork(store, "cat", frame, "a blue dog")
        state, tip = store.begin(request, worker.encode(request)[0], fingerprint)
        assert state.frame == max(2, frame)
        while not state.is_complete:
            settled = store.commit(worker.advance([state])[0][0], tip)  # pyright: ignore[reportArgumentType]
            state, tip = state.push(settled.chunk), settled.tip
        made = list(store.latents(request.id, 0))
        shared = 1 + max(2, frame)
        np.testing.assert_array_equal(made[:shared], source[:shared])
        assert not np.array_equal(made[shared], source[shared])
        with worker.write_video(request) as written:
            assert written.num_frames == FRAMES


def stored_engine(store: CheckpointStore) -> Any:
    return edit.config_of(store).engine


def test_an_infilled_video_does_not_grow_or_part(folder: Path, model: Path) -> None:
    make(model, "infilled")
    store = CheckpointStore(f"{folder}/cat.mp4.ti2v")
    with pytest.raises(ValueError, match="made between given frames of sampler 'infill'; it cannot go on from there"):
        edit.extend(store, "cat", "+2")
    with pytest.raises(ValueError, match="'infill' makes what lies between given frames under one text"):
        edit.fork(store, "cat", 2, "a blue dog")


def test_the_command_line_takes_images_one_after_the_other(folder: Path, model: Path) -> None:
    common = ["--prompt", PROMPT, "--num-frames", FRAMES, "--seed", 7, "--model", model, *FAST]
    texts = [str(one) for one in common]
    infill = ["--set", "sampling.sampler=infill"]
    last = '{"frame": 5, "image": "3.png"}'
    wanted = [
        (["0.png", "1.png", "2.png"], [], 0, ""),
        (["clip.mp4"], [], 0, ""),
        (["0.png", '{"frame": 2, "image": "1.png"}', '{"frame": 3, "image": "2.png"}', last], infill, 0, ""),
        (["0.png", last], [], 2, "leave no gap, or choose infill"),
        (["0.png", "{1.png"], [], 2, "{1.png' does not exist"),
    ]
    for number, (images, more, code, said) in enumerate(wanted):
        named = [word for image in images for word in ("--image", image)]
        done = ti2v("generate", *named, "--output", f"{number}.mp4", *texts, *more, cwd=folder)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert (folder / f"{number}.mp4").exists() == (code == 0)
