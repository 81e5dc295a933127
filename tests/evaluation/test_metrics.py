"""Every metric on videos whose values are known from a formula, and what holds for all of them."""

import tracemalloc
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from tests.support.clips import moving_square
from ti2v_dist.evaluation import METRICS, Metric, measure
from ti2v_dist.evaluation.base import FIGURES
from ti2v_dist.evaluation.color import LINEAR, lab
from ti2v_dist.evaluation.sharpness import laplacian


def plain(*levels: float, size: int = 16) -> np.ndarray:
    """A grey frame of each of these levels."""
    return np.stack([np.full((size, size, 3), level, np.uint8) for level in levels])


def checks(low: int, high: int, size: int = 16) -> np.ndarray:
    """A frame of pixels that are low and high in turn."""
    turns = np.indices((size, size)).sum(0) % 2
    return np.repeat(np.where(turns, high, low)[..., None], 3, axis=2).astype(np.uint8)


def curve(name: str, frames: Iterable[np.ndarray]) -> list[float]:
    return METRICS[name].curve(frames).tolist()


@pytest.mark.parametrize("frame", [plain(90)[0], moving_square(1)[0], checks(0, 255)], ids=["flat", "square", "checks"])
def test_a_still_video_is_perfect(frame: np.ndarray) -> None:
    curves = measure([frame] * 5, METRICS)
    for name, still in {"motion": 0, "sharpness": 1, "color": 0, "flicker": 0, "identity": 1}.items():
        assert curves[name].tolist() == [still] * 5, name


def test_motion_of_a_moved_edge_is_what_it_sweeps_over() -> None:
    """An edge of 50 levels moves by two columns of 16 a frame; no byte wraps."""
    frames = plain(200, 200, 200)
    for number, frame in enumerate(frames):
        frame[:, : 4 + 2 * number] = 150
    assert curve("motion", frames) == [0, 50 * 2 / 16, 50 * 2 / 16]
    assert curve("motion", plain(0, 255, 0)) == [0, 255, 255]


def test_sharpness_goes_with_the_square_of_contrast() -> None:
    frames = [checks(0, 200), checks(50, 150), checks(90, 110), plain(100)[0]]
    assert curve("sharpness", frames) == pytest.approx([1, 1 / 4, 1 / 100, 0], abs=1e-6)


def test_sharpness_of_a_blurred_frame_is_less_and_of_a_noisy_one_more() -> None:
    first = moving_square(1)[0].astype(float)
    blurred = (first + np.roll(first, 1, 0) + np.roll(first, 1, 1) + np.roll(first, (1, 1), (0, 1))) / 4
    noisy = first + np.random.default_rng(0).normal(0, 8, first.shape)
    frames = [np.clip(frame, 0, 255).round().astype(np.uint8) for frame in (first, blurred, noisy)]
    _, soft, rough = curve("sharpness", frames)
    assert soft < 0.5
    assert rough > 1.2


def test_sharpness_knows_no_torus_and_no_division_by_nothing() -> None:
    slanted = np.repeat(np.arange(0, 160, 10)[None], 16, axis=0)
    assert (laplacian(slanted.astype(float)) == 0).all(), "a ramp has no detail, where its ends meet neither"
    flat, rough = curve("sharpness", [plain(100)[0], checks(0, 255)])
    assert flat == 1
    assert np.isfinite(rough)
    assert rough > 1e6


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((119, 119, 119), (50.03, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.74, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_is_the_published_one(rgb: tuple[int, ...], expected: tuple[float, ...]) -> None:
    assert lab(LINEAR[list(rgb)]) == pytest.approx(expected, abs=0.05)


def test_color_is_the_way_from_the_first_frame() -> None:
    black_to_white = curve("color", plain(0, 255, 119, 0))
    assert black_to_white == pytest.approx([0, 100, 50.03, 0], abs=0.02)
    reddened = plain(100, 100, 100)
    reddened[1, ..., 0] += 20
    reddened[2, ..., 0] += 40
    steps = curve("color", reddened)
    assert steps[0] == 0
    assert 2.3 < steps[1] < steps[2]


def test_color_and_flicker_look_at_no_place() -> None:
    """A square that moves within the picture keeps its mean colour and its brightness."""
    frames = moving_square(6)
    assert curve("color", frames) == pytest.approx([0] * 6, abs=1e-9)
    assert curve("flicker", frames) == pytest.approx([0] * 6, abs=1e-9)
    assert min(curve("motion", frames)[1:]) > 1


def test_flicker_is_the_second_difference_so_a_fade_has_none() -> None:
    assert curve("flicker", plain(10, 20, 30, 40)) == pytest.approx([0] * 4, abs=1e-9)
    assert curve("flicker", plain(100, 110, 100, 110)) == pytest.approx([0, 0, 20, 20])
    green = plain(0, 0, 0)
    green[2, ..., 1] = 100
    assert curve("flicker", green) == pytest.approx([0, 0, 71.52])


def test_identity_is_the_share_of_the_picture_whose_colours_are_left() -> None:
    frames = plain(64, 64, 64, 128)
    frames[1, :4] = 192
    frames[2, :, :8, 0] = 255
    assert curve("identity", frames) == [1, 3 / 4, 1 / 2, 0]
    between = curve("identity", plain(128, 160, 192))
    assert between == [1, (1 / 2) ** 3, 0], "halfway along three channels"


def test_identity_follows_what_moves_and_misses_what_goes() -> None:
    frames = moving_square(6)
    assert curve("identity", frames) == [1] * 6
    lost = frames[0].copy()
    lost[16:40, 8:40] = lost[0, 0]
    assert curve("identity", [frames[0], lost])[1] == pytest.approx(1 - 24 * 32 / (64 * 96), abs=0.01)


def test_identity_of_a_frame_off_by_a_level_is_nearly_whole() -> None:
    """A lossy codec is off by so much."""
    first = np.random.default_rng(2).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    assert curve("identity", [first, first + 1])[1] > 0.98
    assert 0.95 < curve("identity", plain(100, 101))[1] < 1


def test_figures_leave_the_first_frame_out() -> None:
    line = np.array([9.0, 1.0, 2.0, 3.0])
    assert {name: figure(line) for name, figure in FIGURES.items()} == pytest.approx({"mean": 2, "last": 3, "slope": 1})
    for metric in METRICS.values():
        assert metric.figure_of(metric.curve(plain(7))) in (0, 1), "a video of one frame has its figures"


@pytest.mark.parametrize("name", METRICS)
def test_a_stream_and_an_array_give_the_same_float64(name: str) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (7, 12, 20, 3), dtype=np.uint8)
    before = frames.copy()
    streamed = METRICS[name].curve(frame for frame in frames)
    assert streamed.dtype == np.float64
    assert streamed.shape == (7,)
    assert np.isfinite(streamed).all()
    assert (streamed == METRICS[name].curve(frames)).all()
    assert (streamed == measure(iter(frames), METRICS)[name]).all()
    assert (frames == before).all(), "it changes no frame"


def test_a_long_video_is_measured_in_the_memory_of_a_few_frames() -> None:
    size, count = 64, 600
    frames = (np.full((size, size, 3), number % 256, np.uint8) for number in range(count))
    tracemalloc.start()
    curves = measure(frames, METRICS)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert {len(curve) for curve in curves.values()} == {count}
    assert peak < 50 * size * size * 3, "a few frames in float64, which are eight times as large"


def test_a_metric_that_looks_ahead_is_told_of() -> None:
    def ahead(frames_HWC: Iterable[np.ndarray]) -> Iterator[float]:
        frames = iter(frames_HWC)
        for frame in frames:
            yield float(np.abs(next(frames) - frame).mean())

    with pytest.raises(IndexError):
        measure(plain(1, 2, 3), {"ahead": Metric(ahead, "ahead", "levels", "mean")})
