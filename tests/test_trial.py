"""The number of slots that is measured: which one is chosen, of what, and that a run keeps to it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.tiny_models import SIZE, write_tiny_model
from ti2v_dist import generate, trial
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.models import load_model, read_info
from ti2v_dist.numerics import kept_numerics
from ti2v_dist.params import SamplingParams
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.trial import measured_slots
from ti2v_dist.video import VideoRequest

LARGEST = VideoRequest("a", "/a.png", "red", 9, SIZE, SIZE, SamplingParams(context_frames=3), 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def engine_of(folder: Path) -> Any:
    with kept_numerics():
        yield partial(Engine, load_model(read_info(str(folder))))


def timed(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
    """A device whose calls take so long, by their slots."""
    monkeypatch.setattr(trial, "_seconds", lambda engine, *given: seconds[engine.slots])
    monkeypatch.setattr(trial, "try_out", lambda engine, largest: None)


@pytest.mark.parametrize(
    ("seconds", "chosen", "tried"),
    [
        ({1: 1.0, 2: 1.2, 4: 2.0, 8: 4.1}, 4, 4),
        ({1: 1.0, 2: 1.8, 4: 3.55, 8: 7.0}, 2, 3),
        ({1: 1.0, 2: 2.1}, 1, 2),
    ],
    ids=["more is faster for a while", "hardly faster is not worth it", "more is slower"],
)
def test_the_fewest_of_the_fastest_are_chosen(
    engine_of: Callable[[int], Engine],
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[int, float],
    chosen: int,
    tried: int,
) -> None:
    timed(monkeypatch, seconds)
    found = measured_slots(engine_of, LARGEST)
    assert found[0]["slots"] == chosen
    assert sorted(one["slots"] for one in found) == [2**n for n in range(tried)]


def test_what_does_not_fit_the_device_ends_it(
    engine_of: Callable[[int], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, {1: 1.0, 2: 1.0})

    def small(slots: int, most: int) -> Engine:
        if slots > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return engine_of(slots)

    assert [one["slots"] for one in measured_slots(partial(small, most=2), LARGEST)] == [2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        measured_slots(partial(small, most=0), LARGEST)


def test_a_number_whose_slots_are_not_alike_is_passed_over(
    engine_of: Callable[[int], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, {1: 1.0, 4: 2.0, 8: 4.0})

    def unlike(engine: Engine, largest: VideoRequest) -> None:
        if engine.slots == 2:
            raise InputError("a video's bits would depend on its slot")

    monkeypatch.setattr(trial, "try_out", unlike)
    found = measured_slots(engine_of, LARGEST)
    assert [one["slots"] for one in found] == [4, 8, 1, 2]
    assert found[-1]["seconds_per_video"] is None


def test_a_video_keeps_the_number_that_was_measured_for_it(folder: Path, tmp_path: Path) -> None:
    """`generate` measures for real, a second time nobody does; and the frames are those of that number."""
    for name in ("auto", "same"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (SIZE, SIZE), "red").save(tmp_path / "red.png")

    def made(name: str, slots: int | str) -> dict[str, Any]:
        small = {"sampling.num_inference_steps": 2, "sampling.resample_iterations": 1, "sampling.num_frames": 4}
        settings = {"model.id": str(folder), "engine.slots": slots, **small}
        return generate(str(tmp_path / "red.png"), "red", tmp_path / name, config=settings)

    row = made("auto/a.mp4", "auto")
    store = CheckpointStore(str(tmp_path / "auto" / "a.mp4.ti2v"))
    kept = json.loads(store.store.get(".ti2v/slots"))
    known = store.read_fingerprint()
    assert known is not None
    assert known["slots"] == kept["slots"] == kept["measured"][0]["slots"]
    assert store.slots(lambda: pytest.fail("it is measured again")) == kept["slots"]
    assert store.strays() == []
    assert made("same/a.mp4", kept["slots"])["frames_sha256"] == row["frames_sha256"]
