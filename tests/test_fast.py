"""The faster ways to make a video, which are approximate: each is one video's own, and of no neighbour's business."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.counted import rows_of
from tests.support.made_here import Place
from tests.support.places import EXAMPLES
from tests.support.tiny_models import SIZE, WINDOW, write_tiny_model
from ti2v_dist.config import load_config
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.base import VideoModel
from ti2v_dist.operations import edit
from ti2v_dist.operations.verify import verify
from ti2v_dist.outputs import views
from ti2v_dist.params import SamplingParams
from ti2v_dist.specs import FRAME_BY_FRAME
from ti2v_dist.trial import try_out
from ti2v_dist.video import VideoRequest

K = WINDOW - 1
WAYS: dict[str, dict[str, Any]] = {
    "stride": {"stride": 2, "context_frames": 2},
    "guidance_interval": {"guidance_interval": "300-999"},
    "solver": {"solver": "dpmpp_2m"},
    "resample_context": {"resample_context": "cached"},
    "together": {
        "resample_context": "cached",
        "solver": "dpmpp_2m",
        "guidance_interval": "1-400",
        "stride": 3,
        "context_frames": 1,
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", seed=3)


@pytest.fixture(scope="module")
def model(folder: Path) -> VideoModel:
    return load_model(read_info(str(folder)))


def asked(way: dict[str, Any], i: int = 0, num_frames: int = 6, **more: Any) -> VideoRequest:
    usual = {"num_inference_steps": 3, "resample_iterations": 2, "guidance_scale": 3.0 + i, "context_frames": K}
    params = SamplingParams(**{**usual, **way})
    prompt = ("a red cat", "a blue dog", "an owl")[i]
    own = {"id": f"v{i}", "image": f"/{i}.png", "prompt": prompt, "seed": 100 + i, **more}
    return VideoRequest(**own, height=SIZE, width=SIZE, params=params, num_frames=num_frames)


def start(engine: Engine, request: VideoRequest) -> VideoState:
    picture = np.random.default_rng(request.seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return VideoState.start(request, engine.encode(request, picture))


def made(engine: Engine, states: Sequence[VideoState]) -> list[Chunk]:
    results = engine.advance(states)
    assert all(isinstance(result, Chunk) for result in results), results
    return [result for result in results if isinstance(result, Chunk)]


@pytest.mark.parametrize("way", ["together"])
def test_a_video_that_was_stopped_and_extended_is_the_one_that_was_made_at_once(
    folder: Path, tmp_path: Path, way: str
) -> None:
    config = load_config(None, [f"model.id={folder}", "engine.slots=1"])
    request, url = asked(WAYS[way], num_frames=8), tmp_path / "out"
    image = str(EXAMPLES / "red-circle.png")
    request = replace(request, image=image, image_uri=image)
    first_chunk = request.params.chunk_latents(WINDOW)
    Place(url, config).advance(request, until=1 + first_chunk)
    resumed = Place(url, config)
    resumed.make(request)
    longer = edit.extend(resumed.store, "v0", "+2")
    row = resumed.make(longer)
    assert min(resumed.computed) > first_chunk, "what was there is not computed again"
    views.write(resumed.store, {"v0"}, (), {})
    assert verify(resumed.url, deep=True)["problems"] == []
    elsewhere = Place(tmp_path / "elsewhere", config)
    assert elsewhere.mp4(elsewhere.make(replace(request, num_frames=10))) == resumed.mp4(row)


@pytest.mark.parametrize("way", WAYS)
def test_neither_neighbours_nor_the_slot_matter(model: VideoModel, way: str) -> None:
    engine = Engine(model, slots=4)
    videos = [start(engine, asked(WAYS[way], i)) for i in range(3)]
    videos[2] = videos[2].push(made(engine, [videos[2]])[0])
    together = made(engine, videos)
    for video, chunk, moved in zip(videos, together, made(engine, videos[::-1])[::-1], strict=True):
        assert np.array_equal(made(engine, [video])[0].latents_FCHW, chunk.latents_FCHW)
        assert np.array_equal(moved.latents_FCHW, chunk.latents_FCHW)
    plain = made(engine, [start(engine, asked({}, 1))])[0].latents_FCHW
    assert not np.allclose(plain[0], together[1].latents_FCHW[0], atol=1e-4)
    with pytest.raises(ValueError, match="videos of 2 batch groups cannot share a batch"):
        engine.advance([videos[0], start(engine, asked({}, 1))])


@pytest.mark.parametrize("way", WAYS)
def test_a_trial_has_every_shape_of_a_later_batch(model: VideoModel, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    seen, engine = rows_of(model, monkeypatch), Engine(model, slots=2)
    try_out(engine, asked(WAYS[way]))
    tried = set(seen)
    seen.clear()
    made(engine, [start(engine, asked(WAYS[way]))])
    assert set(seen) == tried


# stride


def test_the_new_latents_of_a_stride_enter_the_queue_together(model: VideoModel) -> None:
    engine = Engine(model, slots=2)
    state = start(engine, asked(WAYS["stride"], num_frames=4))
    (chunk,) = made(engine, [state])
    assert (chunk.first_frame, chunk.last_frame, len(chunk.latents_FCHW)) == (1, 2, 2)
    assert not np.array_equal(*chunk.latents_FCHW), "each has noise of its own"
    after = state.push(chunk)
    assert np.array_equal(after.queue.latents_KCHW, chunk.latents_FCHW)
    (beyond,) = made(engine, [after])
    assert (beyond.last_frame, beyond.frames_of(4)) == (4, 1), "the length decides no frame"


def test_a_stride_that_does_not_fit_is_refused(model: VideoModel) -> None:
    for way, said in (
        ({"stride": 4, "context_frames": 1}, "stride is 4; it must be 1 to 3"),
        ({"stride": 2}, "context_frames is 3; it must be 1 to 2"),
    ):
        with pytest.raises(InputError, match=said):
            asked(way).check_against_model(model.info)
    with pytest.raises(InputError, match="stride is 0; it must be at least 1"):
        asked({"stride": 0})
    schedule: list[Any] = [{"from_frame": 0, "prompt": "a"}, {"from_frame": 4, "prompt": "b"}]
    with pytest.raises(InputError, match="prompt begins at frame 4, in the middle of a chunk of 2 frames: choose 3 or"):
        asked(WAYS["stride"], prompt=schedule).check_against_model(model.info)


# guidance_interval


def test_outside_of_the_interval_the_text_alone_is_asked(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps at 667, 334 and 1, of which the first two are guided; of a guidance of 1 the text is all anywhere."""
    engine, seen = Engine(model), rows_of(model, monkeypatch)
    for g, is_alike in ((3.0, False), (1.0, True)):
        plain, partly = (asked({"guidance_scale": g, **way}) for way in ({}, WAYS["guidance_interval"]))
        (whole,) = made(engine, [start(engine, plain)])
        seen.clear()
        (part,) = made(engine, [start(engine, partly)])
        assert [rows for rows, _ in seen] == [2, 2, 2, 2, 1]
        assert np.allclose(whole.latents_FCHW, part.latents_FCHW, atol=1e-4) == is_alike


@pytest.mark.parametrize("written", ["801-201", "0-5", "1-1000", "201", "a-b", "-3-5", "", "1.5-3"])
def test_what_is_no_interval_is_refused(written: str) -> None:
    said = f"guidance_interval is {written!r}; write two timesteps of 1-999, the lower one first"
    with pytest.raises(InputError, match=re.escape(said)):
        SamplingParams(guidance_interval=written)
    with pytest.raises(InputError, match="guidance_interval is"):
        load_config(None, [f"sampling.guidance_interval={written!r}"])


def test_an_interval_is_one_text_and_has_a_step_in_it(model: VideoModel) -> None:
    assert SamplingParams(guidance_interval=" 0201 - 801").guidance_interval == "201-801"
    with pytest.raises(
        InputError, match="guidance_interval is '400-600'; of the timesteps 667, 334, 1 none lies in it"
    ):
        asked({"guidance_interval": "400-600"}).check_against_model(model.info)


# resample_context


def test_only_the_first_denoising_of_a_step_computes_the_queue(
    model: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, seen = Engine(model), rows_of(model, monkeypatch)
    made(engine, [start(engine, asked({"resample_context": "cached", "resample_iterations": 3}))])
    assert [frames for _, frames in seen] == 2 * [WINDOW, 1, 1] + [WINDOW]


def test_without_resampling_or_a_network_that_keeps_it_is_refused(folder: Path, model: VideoModel) -> None:
    cached = {"resample_context": "cached"}
    with pytest.raises(InputError, match="resample_iterations 1: nothing is resampled; choose full"):
        asked({**cached, "resample_iterations": 1})
    other = replace(model.info, capabilities=FRAME_BY_FRAME)
    with pytest.raises(InputError, match="the model's network keeps nothing of the queue: choose full"):
        asked(cached).check_against_model(other)
    for load in ({"attention": "eager"}, {"forward": "diffusers"}):
        engine = Engine(load_model(read_info(str(folder)), **load))
        with pytest.raises(InputError, match="forward pass 'diffusers' keeps nothing: choose full"):
            engine.advance([start(engine, asked(cached))])
