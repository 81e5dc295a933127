"""The figures of joins, on videos of which they are known."""

import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest

from ti2v_dist.evaluation.seams import UNSEEN, Seams

CHUNK, SIZE = 5, 32


def measured(frames: Iterable[np.ndarray], chunk: int = CHUNK) -> list[dict]:
    """The joins of frame 0 and chunks of so many frames."""
    seams = Seams()
    for number, frame in enumerate(frames):
        seams.add(frame, begins=number % chunk == 1 or chunk == 1 < number)
    return seams.joins()


def drifting(count: int = 1 + 3 * CHUNK) -> np.ndarray:
    """Columns of noise that move by one a frame, in on one side and out on the other, and get brighter by a level."""
    noise = np.random.default_rng(0).integers(40, 160, (SIZE, SIZE, 3))
    return np.stack([np.roll(noise, number, 1) + number for number in range(count)]).astype(np.uint8)


def blurred(frame: np.ndarray) -> np.ndarray:
    rows = (np.roll(frame.astype(float), 1, 0) + frame + np.roll(frame.astype(float), -1, 0)) / 3
    return ((np.roll(rows, 1, 1) + rows + np.roll(rows, -1, 1)) / 3).round().astype(np.uint8)


def test_a_video_that_goes_on_as_before_has_joins_like_any_other_two_frames() -> None:
    first, second = measured(drifting())
    assert (first["frame"], second["frame"]) == (1 + CHUNK, 1 + 2 * CHUNK)
    for join in (first, second):
        assert join["color"] == 1
        assert join["motion"] == pytest.approx(1, abs=0.02)
        assert join["sharpness"] < 3, "what comes in at the edge"


def test_a_shift_of_the_colour_shows_in_the_colour_alone_and_at_its_join_alone() -> None:
    frames = drifting()
    usual = measured(frames)
    frames[1 + 2 * CHUNK :] += 9
    first, second = measured(frames)
    assert first == usual[0]
    assert second["color"] == 10, "ten levels, where each frame adds one"
    assert {**second, "color": 0} == {**usual[1], "color": 0}


def test_a_colour_cast_of_one_channel_shows_too() -> None:
    frames = drifting()
    frames[1 + CHUNK :, ..., 2] += 12
    first, second = measured(frames)
    assert first["color"] == pytest.approx(np.linalg.norm([1, 1, 13]) / np.linalg.norm([1, 1, 1]), abs=0.01)
    assert second["color"] == 1


def test_a_blur_shows_in_the_sharpness() -> None:
    frames = drifting()
    frames[1 + CHUNK :] = [blurred(frame) for frame in frames[1 + CHUNK :]]
    first, second = measured(frames)
    assert first["sharpness"] > 20
    assert first["color"] == pytest.approx(1, abs=0.02)
    assert first["motion"] < 2
    assert second["sharpness"] < 5


def test_a_repeated_frame_shows_as_no_motion() -> None:
    frames = drifting()
    frames[1 + CHUNK :] = frames[CHUNK:-1].copy()
    first, second = measured(frames)
    usual = np.abs(frames[2].astype(float) - frames[1] - 1).mean()
    assert first["motion"] == pytest.approx(UNSEEN.motion / usual, rel=0.05)
    assert first["motion"] < 0.01
    assert second["motion"] == pytest.approx(1, abs=0.02)


def test_a_still_video_divides_by_nothing() -> None:
    still = np.full((1 + 2 * CHUNK, SIZE, SIZE, 3), 90, np.uint8)
    assert measured(still) == [{"frame": 1 + CHUNK, "color": 1, "sharpness": 1, "motion": 1}]
    still[1 + CHUNK :, : SIZE // 2] = 190
    (cut,) = measured(still)
    assert cut["motion"] == 500, "50 levels each way from their mean, where a tenth of one is what nobody sees"
    assert np.isfinite(list(cut.values())).all()
    assert cut["color"] == pytest.approx(np.linalg.norm([50] * 3) / UNSEEN.color, rel=0.01)
    assert cut["sharpness"] > 100


def test_frame_0_is_in_no_chunk() -> None:
    """An image that a model repaints at once is no join: chunks begin behind it."""
    frames = drifting()
    usual = measured(frames)
    frames[0] = 255 - frames[0]
    assert measured(frames) == usual


@pytest.mark.parametrize(("chunk", "count"), [(CHUNK, 1), (CHUNK, 1 + CHUNK), (1, 6)])
def test_without_a_join_or_anything_to_compare_it_with_there_is_no_row(chunk: int, count: int) -> None:
    assert measured(drifting(count), chunk) == []


def test_a_last_chunk_of_one_frame_is_compared_with_the_one_before() -> None:
    (join,) = measured(drifting(2 + CHUNK))
    assert join == {"frame": 1 + CHUNK, **{name: pytest.approx(1, abs=1.5) for name in UNSEEN._fields}}


def test_a_long_video_is_measured_in_the_memory_of_a_few_frames() -> None:
    size, count = 64, 600
    frames = (np.full((size, size, 3), number % 256, np.uint8) for number in range(count))
    tracemalloc.start()
    joins = measured(frames, chunk=60)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(joins) == 9
    assert peak < 20 * size * size * 3


def test_a_frame_that_is_written_over_later_is_remembered_as_it_was() -> None:
    frames, buffer = drifting(), np.empty((SIZE, SIZE, 3), np.uint8)

    def overwritten() -> Iterable[np.ndarray]:
        for frame in frames:
            buffer[:] = frame
            yield buffer

    assert measured(overwritten()) == measured(frames)
