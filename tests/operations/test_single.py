"""`generate`: one video without a cluster, made, killed, resumed, refused; in this process and as a command."""

import hashlib
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.cli_runs import PROMPT, Killed, generate_arguments, slow_ffmpeg, ti2v, vanishing_ffmpeg
from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist.config import RunConfig, load_config
from ti2v_dist.engine import Engine
from ti2v_dist.inputs.defaults import request_defaults
from ti2v_dist.inputs.images import ImageError
from ti2v_dist.inputs.making import make_request
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.numerics import kept_numerics
from ti2v_dist.operations.generate import generate
from ti2v_dist.operations.recording import RunMismatch
from ti2v_dist.outputs.codec import read_video
from ti2v_dist.state.checkpoint import CheckpointStore, RequestMismatch

FRAMES = 4
LONG = 48


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def config(model: Path) -> RunConfig:
    return configured(model)


def configured(model: Path, *settings: str) -> RunConfig:
    small = ["sampling.num_inference_steps=2", "sampling.resample_iterations=2", f"sampling.num_frames={FRAMES}"]
    return load_config(None, [f"model.id={model}", "engine.slots=1", *small, *settings])


@pytest.fixture
def image(tmp_path: Path) -> str:
    return str(write_image(tmp_path / "first.png"))


def write_image(path: Path) -> Path:
    down, right = np.mgrid[0:SIZE, 0:SIZE] * (255 / SIZE)
    Image.fromarray(np.stack([down, right, 255 - down], axis=-1).astype(np.uint8)).save(path)
    return path


def frames_by_hand(image: str, config: RunConfig) -> str:
    """`frames_sha256` of the video `cat` from the engine alone: no store, no worker."""
    info = read_info(config.model.id)
    row = {"id": "cat", "image": image, "prompt": PROMPT, "seed": 7}
    request = make_request(row, "/", request_defaults(config, info))
    engine = Engine(load_model(info), slots=1, threads=1)
    encoded = engine.encode(request, np.asarray(Image.open(image)))
    state, digest = VideoState.start(request, encoded), hashlib.sha256(encoded.image_HWC.tobytes())
    while not state.is_complete:
        (chunk,) = engine.advance([state])
        assert isinstance(chunk, Chunk)
        state = state.push(chunk)
        digest.update(engine.decode(chunk.latents_FCHW).tobytes())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_one_video_has_one_slot_unless_told_otherwise(image: str, model: Path, tmp_path: Path) -> None:
    small = [f"model.id={model}", "sampling.num_frames=2"]
    for name, settings, slots in (("a", [], 1), ("b", ["engine.slots=2"], 2)):
        generate(image, PROMPT, tmp_path / f"{name}.mp4", seed=7, config=load_config(None, [*small, *settings]))
        fingerprint = CheckpointStore(f"{tmp_path}/{name}.mp4.ti2v").read_fingerprint() or {}
        assert fingerprint["slots"] == slots


def settings_of_torch() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    return (
        *(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        *(cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, torch.get_float32_matmul_precision()),
        *(getattr(torch.utils.deterministic, "fill_uninitialized_memory"), torch.get_num_threads()),  # noqa: B009
    )


def test_makes_the_video_and_then_does_nothing(tmp_path: Path, image: str, config: RunConfig) -> None:
    output, heard = tmp_path / "deep" / "er" / "cat.mp4", []
    with kept_numerics():
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("high")
        before = settings_of_torch()
        row = generate(image, PROMPT, output, seed=7, config=config, listener=lambda *told: heard.append(told))
        assert settings_of_torch() == before, "the process is its caller's"
    frames = list(read_video(str(output)))
    assert len(frames) == FRAMES
    first = np.asarray(Image.open(image)).astype(int)
    assert np.abs(frames[0].astype(int) - first).mean() < 4, "frame 0 is the image itself, but for the codec's loss"
    assert row["frames_sha256"] == frames_by_hand(image, config)
    assert heard == [(frame, FRAMES) for frame in range(FRAMES)]
    assert row["file_sha256"] == sha256(output)
    assert (row["id"], row["text"], row["seed"], row["image_uri"]) == ("cat", PROMPT, 7, image)
    assert row["device_seconds"] > 0
    before = output.stat()
    assert generate(image, PROMPT, output, seed=7, config=config) == row
    assert (output.stat().st_mtime_ns, output.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert sorted(path.name for path in output.parent.iterdir()) == ["cat.mp4", "cat.mp4.ti2v"]


def test_a_lost_mp4_or_a_lost_done_gives_the_same_bytes(tmp_path: Path, image: str, config: RunConfig) -> None:
    output = tmp_path / "cat.mp4"
    row = generate(image, PROMPT, output, seed=7, config=config)
    output.unlink()
    assert generate(image, PROMPT, output, seed=7, config=config) == row
    assert sha256(output) == row["file_sha256"]
    output.write_bytes(output.read_bytes()[:1000])
    assert generate(image, PROMPT, output, seed=7, config=config) == row
    assert sha256(output) == row["file_sha256"]
    # A process that dies between the mp4 and its `done` leaves exactly this.
    CheckpointStore(f"{output}.ti2v").store.delete(".ti2v/done/cat/0")
    assert generate(image, PROMPT, output, seed=7, config=config)["file_sha256"] == row["file_sha256"]
    assert sha256(output) == row["file_sha256"]


def test_the_image_is_not_needed_once_frame_0_is_settled(tmp_path: Path, image: str, config: RunConfig) -> None:
    output = tmp_path / "cat.mp4"
    row = generate(image, PROMPT, output, seed=7, config=config)
    CheckpointStore(f"{output}.ti2v").store.delete(".ti2v/done/cat/0")
    os.unlink(image)
    assert generate(image, PROMPT, output, seed=7, config=config)["frames_sha256"] == row["frames_sha256"]


def test_the_image_is_what_the_user_wrote_not_where_it_lies(
    tmp_path: Path, image: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row = generate("first.png", PROMPT, "cat.mp4", seed=7, config=config)
    with pytest.raises(RequestMismatch, match=r"image_uri: stored 'first.png', now '/"):
        generate(image, PROMPT, "cat.mp4", seed=7, config=config)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "cat.mp4.ti2v").rename(elsewhere / "cat.mp4.ti2v")
    monkeypatch.chdir(elsewhere)
    assert generate("first.png", PROMPT, "cat.mp4", seed=7, config=config) == row
    assert sha256(elsewhere / "cat.mp4") == row["file_sha256"]


def test_another_request_or_other_settings_are_refused(
    tmp_path: Path, image: str, model: Path, config: RunConfig
) -> None:
    output = tmp_path / "cat.mp4"
    generate(image, PROMPT, output, seed=7, config=config)
    before = sha256(output)
    with pytest.raises(RequestMismatch, match=f"prompt: stored '{PROMPT}', now 'a dog'"):
        generate(image, "a dog", output, seed=7, config=config)
    with pytest.raises(RequestMismatch, match="seed: stored 7, now 8"):
        generate(image, PROMPT, output, seed=8, config=config)
    with pytest.raises(RunMismatch, match=r"engine\.slots: stored 1, now 2"):
        generate(image, PROMPT, output, seed=7, config=configured(model, "engine.slots=2"))
    with pytest.raises(RunMismatch, match=rf"sampling.num_frames: stored {FRAMES}, now 9"):
        generate(image, PROMPT, output, seed=7, config=configured(model, "sampling.num_frames=9"))
    assert sha256(output) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a b.mp4", "id is 'a b'"),
        ("...mp4", "id is "),
        ("é.mp4", "id is "),
        ("x" * 129 + ".mp4", "id is 'xxx"),
        ("cat.webm", "must end in .mp4"),
        ("cat", "must end in .mp4"),
        ("folder.mp4", "is a folder"),
        ("first.png/cat.mp4", "a file and not a folder"),
        ("s3://bucket/cat.mp4", "is a URL"),
    ],
)
def test_an_output_that_cannot_be_is_refused_by_name(
    tmp_path: Path, image: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.mp4").mkdir()
    with pytest.raises(ValueError, match=said) as error:
        generate(image, PROMPT, name, config=config)
    assert repr(name) in str(error.value)
    assert sorted(os.listdir()) == ["first.png", "folder.mp4"]


def test_a_file_of_somebody_else_is_not_overwritten(tmp_path: Path, image: str, config: RunConfig) -> None:
    output = tmp_path / "holiday.mp4"
    output.write_bytes(b"the only copy")
    with pytest.raises(ValueError, match=r"holiday.mp4' exists, and .*holiday.mp4.ti2v' does not"):
        generate(image, PROMPT, output, config=config)
    assert output.read_bytes() == b"the only copy"
    assert sorted(os.listdir(tmp_path)) == ["first.png", "holiday.mp4"]


def test_what_is_wrong_leaves_nothing_and_can_be_put_right(
    tmp_path: Path, image: str, model: Path, config: RunConfig
) -> None:
    output, broken = tmp_path / "out" / "cat.mp4", tmp_path / "broken.png"
    broken.write_bytes(Path(image).read_bytes()[:-40])
    with pytest.raises(ImageError, match="does not exist"):
        generate(str(tmp_path / "nowhere.png"), PROMPT, output, config=config)
    with pytest.raises(ImageError, match="damaged"):
        generate(str(broken), PROMPT, output, config=config)
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(image, " ", output, config=config)
    with pytest.raises(ValueError, match="height is 36; it must be a multiple of 8"):
        generate(image, PROMPT, output, config=configured(model, "sampling.height=36"))
    with pytest.raises(ValueError, match="cuda"):
        generate(image, PROMPT, output, config=configured(model, "model.device=cuda"))
    assert not output.parent.exists()
    assert generate(image, PROMPT, output, config=config)["num_frames"] == FRAMES


def test_the_command_says_what_is_wrong_and_exits_2_or_1_once_something_is_begun(tmp_path: Path, model: Path) -> None:
    write_image(tmp_path / "first.png")
    missing = ti2v(*generate_arguments("nowhere.png", model, "cat.mp4"), cwd=tmp_path)
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "nowhere.png' does not exist" in missing.stderr
    assert os.listdir(tmp_path) == ["first.png"]
    made = ti2v(*generate_arguments("first.png", model, "cat.mp4"), cwd=tmp_path)
    assert (made.returncode, made.stdout) == (0, "cat.mp4\n"), made.stderr
    other = ti2v(*generate_arguments("first.png", model, "cat.mp4", prompt="a dog"), cwd=tmp_path)
    assert other.returncode == 2
    assert f"prompt: stored '{PROMPT}', now 'a dog'" in other.stderr
    longer = ti2v(*generate_arguments("first.png", model, "cat.mp4", frames=9), cwd=tmp_path)
    assert longer.returncode == 2
    assert "num_frames: stored 4, now 9" in longer.stderr
    (state,) = tmp_path.glob("cat.mp4.ti2v/.ti2v")
    (state / "done" / "cat" / "0").unlink()
    (record,) = state.glob("videos/cat/*2")
    record.write_bytes(record.read_bytes()[:-1] + b"x")
    damaged = ti2v(*generate_arguments("first.png", model, "cat.mp4"), cwd=tmp_path)
    assert damaged.returncode == 1, "something was begun: 2 would say that nothing was"
    assert "videos/cat/0000000002" in damaged.stderr
    gone = vanishing_ffmpeg(tmp_path)
    cut = ti2v(*generate_arguments("first.png", model, "dog.mp4"), cwd=tmp_path, IMAGEIO_FFMPEG_EXE=str(gone))
    assert cut.returncode == 1, "a file that goes missing in the middle is none of the input"
    assert cut.stderr.splitlines()[-1] == f"ti2v: [Errno 2] No such file or directory: '{gone}'"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    write_image(folder / "first.png")
    done = ti2v(*generate_arguments("first.png", model, "cat.mp4", LONG), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "cat.mp4"


def test_three_kills_end_with_the_same_file(tmp_path: Path, model: Path, undisturbed: Path) -> None:
    write_image(tmp_path / "first.png")
    work = Killed(tmp_path, generate_arguments("first.png", model, "cat.mp4", LONG))
    assert work.until(lambda: len(work.computed()) >= 3, signal.SIGKILL) == -signal.SIGKILL
    first = work.settled()
    assert 2 <= first < LONG - 1
    assert work.until(lambda: work.settled() >= first + 10, signal.SIGKILL) == -signal.SIGKILL
    assert first + 10 <= work.settled() < LONG - 1
    script, mark = slow_ffmpeg(tmp_path)
    assert work.until(mark.exists, signal.SIGKILL, IMAGEIO_FFMPEG_EXE=str(script)) == -signal.SIGKILL
    assert work.settled() == LONG - 1
    assert work.store.done_ids() == []
    assert not work.output.exists()

    before_last = len(work.computed())
    done = ti2v(*generate_arguments("first.png", model, "cat.mp4", LONG), cwd=tmp_path, TI2V_FRAME_LOG=str(work.log))
    assert done.returncode == 0, done.stderr
    counts = Counter(work.computed())
    assert len(work.computed()) == before_last, "every frame was settled before the last kill"
    assert set(counts) == set(range(1, LONG))
    assert sum(counts.values()) - len(counts) <= 2, "one frame at most again for each kill"
    assert work.output.read_bytes() == undisturbed.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_how_to_go_on(tmp_path: Path, model: Path, number: int) -> None:
    write_image(tmp_path / "first.png")
    work = Killed(tmp_path, generate_arguments("first.png", model, "cat.mp4", LONG))
    assert work.until(lambda: len(work.computed()) >= 2, number) == 128 + number
    said = (tmp_path / "stderr").read_text()
    assert said.splitlines()[-1] == "ti2v: interrupted; what was finished is kept, the same command goes on from there"
    assert "Traceback" not in said
    assert 1 <= work.settled() < LONG - 1
