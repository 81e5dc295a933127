"""The oracle against rendered truth, and against videos that are wrong in known ways."""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import oracle, pixels
from tests.support.films import COLORS, MOTIONS, film, one_film
from tests.support.places import ROOT
from ti2v_dist.shapes import world

Change = Callable[[np.ndarray], np.ndarray]
AskedVideo = tuple[np.ndarray, tuple[str, str, str]]


def sampled(count: int, seed: int, num_frames: int) -> Iterator[AskedVideo]:
    """Videos of the world's own distribution, with the words that name them."""
    scenes = world.sample_scenes(count, np.random.default_rng([9, seed]))
    for index, video in enumerate(film(scenes, num_frames)):
        words = COLORS[scenes.color[index]], world.SHAPES[scenes.shape[index]], MOTIONS[scenes.motion[index]]
        yield video, words


def share_passing(count: int, seed: int, num_frames: int, change: Change) -> float:
    verdicts = [
        oracle.judge(change(video), video[0], *words).passes for video, words in sampled(count, seed, num_frames)
    ]
    return sum(verdicts) / count


def with_jpeg(video: np.ndarray) -> np.ndarray:
    """Blocks and halved chroma, as a lossy codec leaves them."""
    frames = []
    for frame in video:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=60, subsampling="4:2:0")
        frames.append(np.asarray(Image.open(file)))
    return np.stack(frames)


def with_noise(video: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 0.03 * 255, video.shape)
    return np.clip(video + noise, 0, 255).round().astype(np.uint8)


def with_blur(video: np.ndarray) -> np.ndarray:
    padded = np.pad(video.astype(float), ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    shifted = [padded[:, y : y + world.SIZE, x : x + world.SIZE] for y in range(3) for x in range(3)]
    return np.mean(shifted, axis=0).round().astype(np.uint8)


def write_mp4(path: Path, video: np.ndarray) -> None:
    options = ["-crf", "18", "-preset", "medium"]
    writer = imageio_ffmpeg.write_frames(
        str(path), (world.SIZE, world.SIZE), fps=8, macro_block_size=1, output_params=options
    )
    writer.send(None)
    for frame in video:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def test_truth_passes() -> None:
    assert share_passing(300, 1, 16, lambda video: video) >= 0.995


@pytest.mark.parametrize("change", [with_jpeg, with_noise, with_blur, lambda video: with_noise(with_blur(video))])
def test_degraded_truth_passes(change: Change) -> None:
    assert share_passing(200, 2, 5, change) >= 0.995


def test_an_mp4_of_the_truth_passes(tmp_path: Path) -> None:
    for index, (video, words) in enumerate(sampled(12, 3, 16)):
        write_mp4(tmp_path / f"{index}.mp4", video)
        verdict = oracle.judge_mp4(tmp_path / f"{index}.mp4", *words)
        assert verdict.passes, (words, verdict)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("asked", MOTIONS)
def test_only_the_prompted_motion_follows(motion: str, asked: str) -> None:
    video = one_film(motion=motion)
    assert oracle.judge(video, video[0], "red", "circle", asked).motion_follows == (motion == asked)


def test_displacement_is_unwrapped_over_the_edge() -> None:
    verdict = oracle.judge(one_film(128), one_film()[0], "red", "circle", "left")
    assert verdict.net_px == pytest.approx((-4.0 * 127, 0.0), abs=0.5)
    assert verdict.motion_px_per_frame == pytest.approx(4.0, abs=0.1)
    assert verdict.passes


def test_motion_aslant_does_not_follow() -> None:
    assert oracle.follows((-20.0, 9.9), "left")
    assert not oracle.follows((-20.0, 10.1), "left")
    assert not oracle.follows((-7.9, 0.0), "left")
    assert oracle.follows((0.0, 20.0), "down")
    assert not oracle.follows((2.2, 2.2), "still")


def test_a_frozen_video_fails_its_motion_only() -> None:
    video = np.repeat(one_film()[:1], 16, axis=0)
    verdict = oracle.judge(video, video[0], "red", "circle", "left")
    assert not verdict.motion_follows
    assert verdict.motion_px_per_frame == 0
    assert (verdict.color_kept, verdict.shape_kept, verdict.background_kept) == (True, True, True)


@pytest.mark.parametrize("color", [color for color in COLORS if color != "red"])
def test_a_colour_swapped_midway_fails(color: str) -> None:
    video = one_film()
    video[8:] = one_film(color=color)[8:]
    verdict = oracle.judge(video, video[0], "red", "circle", "left")
    assert not verdict.color_kept
    assert not verdict.color_kept_last
    assert (verdict.shape_kept, verdict.motion_follows) == (True, True)


def test_a_colour_that_returns_fails_but_for_the_last_frame() -> None:
    video = one_film()
    video[8] = one_film(color="orange")[8]
    verdict = oracle.judge(video, video[0], "red", "circle", "left")
    assert (verdict.color_kept, verdict.color_kept_last) == (False, True)


def test_a_first_frame_of_another_colour_than_the_prompts_fails() -> None:
    video = one_film(color="purple")
    assert oracle.judge(video, video[0], "purple", "circle", "left").color_kept
    assert not oracle.judge(video, video[0], "blue", "circle", "left").color_kept


@pytest.mark.parametrize("first", world.SHAPES)
@pytest.mark.parametrize("last", world.SHAPES)
def test_a_swapped_shape_is_seen(first: str, last: str) -> None:
    video = one_film(shape=first)
    video[8:] = one_film(shape=last)[8:]
    verdict = oracle.judge(video, video[0], "red", first, "left")
    assert verdict.shape_last == last
    assert verdict.shape_kept == (first == last)
    assert verdict.color_kept


@pytest.mark.parametrize("amount", [0.06, -0.06])
def test_a_drifting_background_fails(amount: float) -> None:
    drift = amount * 255 * np.linspace(0, 1, 16)[:, None, None, None]
    video = np.clip(one_film() + drift, 0, 255).round().astype(np.uint8)
    verdict = oracle.judge(video, video[0], "red", "circle", "left")
    assert not verdict.background_kept
    assert not verdict.background_kept_last
    assert verdict.curves["background_error"][-1] == pytest.approx(0.06, abs=0.003)
    assert verdict.slopes["background_error"] == pytest.approx(0.06 / 15, rel=0.05)
    assert (verdict.color_kept, verdict.shape_kept, verdict.motion_follows) == (True, True, True)


def test_a_vanishing_object_fails() -> None:
    video = one_film()
    video[6:] = video[0, :, 50:51]  # columns that show nothing but background
    verdict = oracle.judge(video, video[0], "red", "circle", "left")
    assert (verdict.color_kept, verdict.shape_kept, verdict.motion_follows) == (False, False, False)
    assert verdict.shape_last is None


def test_an_object_that_fades_or_shrinks_away_fails() -> None:
    video = one_film()
    empty = np.broadcast_to(video[0, :, 50:51], video[0].shape).astype(float)
    faded = video.copy()
    faded[12:] = (0.1 * video[12:] + 0.9 * empty).round().astype(np.uint8)
    shrunk = video.copy()
    shrunk[12:] = one_film(radius=4.0)[12:]
    for wrong in (faded, shrunk):
        assert not oracle.judge(wrong, video[0], "red", "circle", "left").color_kept


def test_curves_measure_what_they_are_called() -> None:
    video = one_film(motion="still")
    flashing = video.astype(float)
    flashing[1::2] += 0.02 * 255
    flashing = flashing.round().astype(np.uint8)
    soft = np.concatenate([video[:1], with_blur(with_blur(video[1:]))])
    still, bright, blurred = (oracle.judge(v, v[0], "red", "circle", "still") for v in (video, flashing, soft))
    assert still.curves["flicker"] == [0.0] * 16
    assert bright.curves["flicker"][5] == pytest.approx(0.02, abs=0.002)
    assert bright.curves["mean_drift"][5] == pytest.approx(0.02, abs=0.002)
    assert still.curves["sharpness"][-1] == pytest.approx(1)
    assert blurred.curves["sharpness"][-1] < 0.5
    assert {len(curve) for curve in still.curves.values()} == {16}


@pytest.mark.parametrize("color", COLORS)
def test_hue_is_the_colours_own(color: str) -> None:
    import colorsys

    swatch = np.full((1, 2, 2, 3), world.COLORS[color])
    expected = colorsys.rgb_to_hsv(*world.COLORS[color])[0] * 360
    assert pixels.circular_hue(swatch, np.ones((1, 2, 2)))[0] == pytest.approx(expected)


def test_every_prompt_of_the_grammar_is_understood() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        color, shape, motion = (str(rng.choice(list(words))) for words in (COLORS, world.SHAPES, MOTIONS))
        prompt = world.describe(color, shape, motion, rng)
        assert oracle.parse_prompt(prompt) == oracle.Prompted(color, shape, motion), prompt


@pytest.mark.parametrize("prompt", ["a circle moving left", "a red circle", "a red blue circle moving left"])
def test_an_unclear_prompt_is_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="name one of"):
        oracle.parse_prompt(prompt)


def test_wrong_input_is_refused_by_name() -> None:
    video = one_film()
    with pytest.raises(ValueError, match="32"):
        oracle.judge(video[:, :32, :32], video[0, :32, :32], "red", "circle", "left")
    with pytest.raises(ValueError, match="pink"):
        oracle.judge(video, video[0], "pink", "circle", "left")
    with pytest.raises(ValueError, match="one frame"):
        oracle.judge(video[:1], video[0], "red", "circle", "left")


def test_the_command_judges_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `ti2v run` leaves it: exit 0 where all videos are right, 1 and the culprit named where one is not."""
    folder = tmp_path / "dataset"
    (folder / "videos").mkdir(parents=True)
    for name, motion in (("good", "left"), ("wrong", "right")):
        write_mp4(folder / "videos" / f"{name}.mp4", one_film(motion=motion))
    text = "a red disc going left"
    rows = [{"file_name": f"videos/{name}.mp4", "id": name, "text": text} for name in ("good", "wrong")]
    pq.write_table(pa.Table.from_pylist(rows[:1]), folder / "metadata.parquet")
    assert oracle.main([str(tmp_path)]) == 0
    assert "1 of 1 videos" in capsys.readouterr().out
    pq.write_table(pa.Table.from_pylist(rows), folder / "metadata.parquet")
    command = [sys.executable, str(ROOT / "benchmarks" / "oracle.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    marks = {line.split()[0]: line.split()[2] for line in done.stdout.splitlines()[1:-1]}
    assert marks == {"good": "pass", "wrong": "FAIL"}
