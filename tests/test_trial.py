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
from ti2v_dist.config import load_config
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.models import load_model, read_info
from ti2v_dist.numerics import kept_numerics
from ti2v_dist.params import SamplingParams
from ti2v_dist.runtime.worker import Worker
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
    found = measured_slots(engine_of, LARGEST, 64)
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

    assert [one["slots"] for one in measured_slots(partial(small, most=2), LARGEST, 64)] == [2, 1]
    with pytest.raises(torch.OutOfMemoryError):
        measured_slots(partial(small, most=0), LARGEST, 64)


def test_a_number_whose_slots_are_not_alike_is_passed_over(
    engine_of: Callable[[int], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, {1: 1.0, 4: 2.0, 8: 4.0})

    def unlike(engine: Engine, largest: VideoRequest) -> None:
        if engine.slots == 2:
            raise InputError("a video's bits would depend on its slot")

    monkeypatch.setattr(trial, "try_out", unlike)
    found = measured_slots(engine_of, LARGEST, 64)
    assert [one["slots"] for one in found] == [4, 8, 1, 2]
    assert found[-1]["seconds_per_video"] is None


def test_no_more_slots_are_tried_than_there_are_videos(
    engine_of: Callable[[int], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed(monkeypatch, {1: 1.0, 2: 1.0, 4: 1.0})
    assert [one["slots"] for one in measured_slots(engine_of, LARGEST, 3)] == [2, 1]
    assert [one["slots"] for one in measured_slots(engine_of, LARGEST, 1)] == [1]


def test_what_is_wrong_with_one_slot_is_told(
    engine_of: Callable[[int], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(engine: Engine, largest: VideoRequest) -> None:
        raise InputError("this model makes no such size")

    monkeypatch.setattr(trial, "try_out", refused)
    with pytest.raises(InputError, match="no such size"):
        measured_slots(engine_of, LARGEST, 64)


def test_a_run_keeps_the_number_that_its_first_worker_measured(folder: Path, tmp_path: Path) -> None:
    config = load_config(None, [f"model.id={folder}", "engine.slots=auto"])
    first = Worker(config, str(tmp_path / "run"))
    with kept_numerics():
        numerics = first.open(LARGEST, share=4)
        kept = json.loads(first.store.store.get(".ti2v/slots"))
        assert numerics["slots"] == kept["slots"] == kept["measured"][0]["slots"] <= 4
        assert len(kept["measured"]) >= 2
        assert first.store.slots(lambda: pytest.fail("it is measured again")) == kept["slots"]
        assert first.store.strays() == []
        # What began with a number of slots goes on with it.
        begun = CheckpointStore(str(tmp_path / "begun"))
        begun.claim_fingerprint({**numerics, "slots": 3})
        assert Worker(config, begun.url).open(LARGEST, share=64)["slots"] == 3


def test_one_video_has_one_slot(folder: Path, tmp_path: Path) -> None:
    Image.new("RGB", (SIZE, SIZE), "red").save(tmp_path / "red.png")
    small = {"sampling.num_inference_steps": 2, "sampling.resample_iterations": 1, "sampling.num_frames": 2}
    settings = {"model.id": str(folder), "engine.slots": "auto", **small}
    generate(str(tmp_path / "red.png"), "red", tmp_path / "a.mp4", config=settings)
    known = CheckpointStore(str(tmp_path / "a.mp4.ti2v")).read_fingerprint()
    assert known is not None
    assert known["slots"] == 1
