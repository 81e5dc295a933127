"""The samplers of image models: against diffusers' Text2Video-Zero, closed forms, and what a chunk depends on."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, TextToVideoZeroPipeline
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor

from tests.support.tiny_models import SIZE, write_tiny_image_model
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.latents import Chunk, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.base import FrameKeys
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.frames import warp
from ti2v_dist.samplers.noise import KeyedNoise, Purpose
from ti2v_dist.samplers.text2video_zero import _smoothed
from ti2v_dist.schedules import motion_pair, timesteps
from ti2v_dist.specs import SAMPLERS
from ti2v_dist.trial import try_out
from ti2v_dist.video import Given, Source, VideoRequest

FEW: dict[str, Any] = {"num_inference_steps": 5, "motion_t0": 401, "motion_t1": 601}
"""Few steps, 1, 201, ... 801, of which the motion takes two."""
KINDS = {
    "text2video_zero": "image",
    "text2video_zero_control": "control",
    "instruct_pix2pix_video": "instruct",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    return {s: load_model(read_info(str(write_tiny_image_model(folder / k, kind=k)))) for s, k in KINDS.items()}


def asked(sampler: str, num_frames: int = 9, size: int = SIZE, **more: Any) -> VideoRequest:
    own = {name: more.pop(name) for name in ("id", "prompt", "image", "seed") if name in more}
    spec = SAMPLERS[sampler]
    few = {"num_inference_steps": 3} if spec.source else FEW
    params = SamplingParams(sampler, context_frames=spec.anchor, guidance_scale=3.0, **{**few, **more})
    source = Source("/x.mp4", "x.mp4", num_frames, "0" * 64) if spec.source else None
    own = {"id": "a", "prompt": "a red ball", "image": "", "seed": 7, **own}
    return VideoRequest(**own, height=size, width=size, params=params, num_frames=num_frames, source=source)


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def begun(engine: Engine, request: VideoRequest) -> VideoState:
    images = [pictures(1, 5)[0]] if request.image else []
    source = pictures(request.num_frames)[:1] if request.source else None
    return VideoState.start(request, engine.encode(request, *images, source_FHWC=source))


def advanced(engine: Engine, states: Sequence[VideoState]) -> list[Chunk]:
    sources = [pictures(s.request.num_frames)[engine.source_frames(s)] if s.request.source else None for s in states]
    chunks = engine.advance(states, sources)
    assert all(isinstance(chunk, Chunk) for chunk in chunks), chunks
    return chunks  # type: ignore[return-value]


def made(engine: Engine, request: VideoRequest) -> np.ndarray:
    """All frames' latents but the first one's, one video in the engine."""
    state, latents = begun(engine, request), []
    while not state.is_complete:
        (chunk,) = advanced(engine, [state])
        latents.append(chunk.latents_FCHW)
        state = state.push(chunk)
    return np.concatenate(latents)[: request.num_frames - 1]


def test_latents_are_those_of_diffusers_where_it_is_right(tmp_path: Path) -> None:
    """On its one grid of 512 pixels, one prompt, 50 steps; its DDPM factor, off by one step, is replaced by ours."""
    model: Any = load_model(read_info(str(write_tiny_image_model(tmp_path, size=512, cell=64))))
    request = asked("text2video_zero", 3, 512, chunk_frames=2, num_inference_steps=50, motion_t0=881, motion_t1=941)
    request = replace(request, params=replace(request.params, motion_dx=128.0, motion_dy=-64.0))
    engine = Engine(model)
    ours = made(engine, request)

    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = TextToVideoZeroPipeline.from_pretrained(tmp_path, local_files_only=True, **parts)
    pipeline.scheduler = DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    pipeline.set_progress_bar_config(disable=True)
    fresh = [KeyedNoise([7], [k], (4, 8, 8)).draw(Purpose.RENOISE, 0, 0, 1)[:, :, 0] for k in (1, 2)]
    pipeline.forward_loop = lambda x_t0, t0, t1, generator: model.schedule.renoise(x_t0, 941, 881, torch.cat(fresh))
    start = KeyedNoise([7], [0], (4, 8, 8)).draw(Purpose.INIT, 0, 0, 1)[:, :, 0]
    # It samples at +δ, which moves the content to -δ.
    moved: dict[str, Any] = {"motion_field_strength_x": -128, "motion_field_strength_y": 64}
    theirs: Any = pipeline(
        prompt=request.caption, video_length=3, guidance_scale=3.0, latents=start, output_type="latent", **moved
    )
    assert np.allclose(ours, np.asarray(theirs.images)[1:], rtol=0, atol=1e-4 * np.abs(ours).max())


def test_motion_moves_the_content_and_reflects_it_at_the_border() -> None:
    grid = torch.arange(20.0).view(1, 4, 5)
    right = warp(grid, 1, 0)[0]
    assert torch.equal(right[:, 1:], grid[0, :, :-1])
    assert torch.equal(right[:, 0], grid[0, :, 0])
    down = warp(grid, 0, 2)[0]
    assert torch.equal(down[2:], grid[0, :2])
    assert torch.equal(down[:2], grid[0, [1, 0]])
    assert torch.equal(warp(grid, 0.4, -0.4), grid)
    assert torch.equal(warp(grid, -0.6, 0), warp(grid, -1, 0))
    assert torch.equal(warp(grid, 10, 8), grid), "twice the size is where it began"


def test_the_noise_between_the_two_timesteps_is_ddpms(models: dict[str, Any]) -> None:
    schedule = models["text2video_zero"].schedule
    one, none = torch.ones(1), torch.zeros(1)
    assert schedule.renoise(one, 941, 881, none).item() ** 2 == pytest.approx(0.530534, abs=1e-6)
    assert schedule.renoise(none, 941, 881, one).item() ** 2 == pytest.approx(1 - 0.530534, abs=1e-6)


def test_few_steps_take_the_nearest_timesteps_and_too_few_are_refused() -> None:
    params = asked("text2video_zero", num_inference_steps=25, motion_t0=881, motion_t1=941).params
    assert 881 in timesteps(params)
    assert motion_pair(params) == (881, 961)
    with pytest.raises(InputError, match=r"num_inference_steps is 5.*801 is the nearest to motion_t0, 881, and 801 to"):
        motion_pair(asked("text2video_zero", motion_t0=881, motion_t1=941).params)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_attends_to_the_frames_that_its_table_names(tmp_path: Path, attention: str) -> None:
    model: Any = load_model(read_info(str(write_tiny_image_model(tmp_path, kind="control"))), attention=attention)
    random = torch.Generator().manual_seed(0)
    x, text = torch.randn(3, 4, 4, 4, generator=random), torch.randn(3, 77, 16, generator=random)
    control = torch.rand(3, 3, SIZE, SIZE, generator=random)
    alone, keys = model.predict_frames(x, 301, text, control_RCHW=control)
    own, _ = model.predict_frames(x, 301, text, keys.gather([[0], [1], [2]]), control)
    assert torch.allclose(own, alone, atol=1e-5), "a frame that looks at itself is as it is alone"
    twice, _ = model.predict_frames(x, 301, text, keys.gather([[0, 0], [1, 1], [2, 2]]), control)
    assert torch.allclose(twice, alone, atol=1e-5), "what stands there twice weighs as once"
    first, _ = model.predict_frames(x, 301, text, keys.gather([[0], [0], [0]]), control)
    assert torch.allclose(first[0], alone[0], atol=1e-5)
    assert not torch.allclose(first[1], alone[1], atol=1e-3)
    two, _ = model.predict_frames(x, 301, text, keys.gather([[0, 2], [2, 0], [1, 1]]), control)
    assert not torch.allclose(two[0], alone[0], atol=1e-3)
    assert not torch.allclose(two[0], first[0], atol=1e-3)
    # The library's own processors say the same of frames by themselves.
    for network in (model._unet, model._control):
        network.set_attn_processor(AttnProcessor())
    plain, _ = model.predict_frames(x, 301, text, control_RCHW=control)
    assert torch.allclose(plain, alone, atol=1e-5)


def test_keys_are_gathered_by_rows() -> None:
    rows = torch.arange(6.0).view(3, 2, 1)
    keys = FrameKeys(((rows, -rows),)).gather([[0, 2], [1, 1]])
    ((key, value),) = keys.layers
    assert key.tolist() == [[[0], [1], [4], [5]], [[2], [3], [2], [3]]]
    assert torch.equal(value, -key)


@pytest.mark.parametrize("sampler", KINDS)
def test_chunks_of_any_size_are_the_same_frames(models: dict[str, Any], sampler: str) -> None:
    engine = Engine(models[sampler], slots=2)
    whole = made(engine, asked(sampler, 25, chunk_frames=24))
    assert whole.std() > 0.1
    for size in (2, 5):
        assert np.array_equal(made(engine, asked(sampler, 25, chunk_frames=size)), whole), size
    assert len({frame.tobytes() for frame in whole}) == 24


def test_a_given_image_is_frame_0_and_chunks_of_any_size_are_the_same(models: dict[str, Any]) -> None:
    engine = Engine(models["text2video_zero"], slots=2)
    whole = made(engine, asked("text2video_zero", 9, image="/x.png", chunk_frames=8))
    assert np.array_equal(made(engine, asked("text2video_zero", 9, image="/x.png", chunk_frames=3)), whole)
    encoded = engine.encode(asked("text2video_zero", image="/x.png"), pictures(1, 5)[0])
    assert np.array_equal(encoded.image_HWC, pictures(1, 5)[0])
    assert encoded.anchor_NCHW is not None
    assert np.array_equal(encoded.anchor_NCHW[2], encoded.latent_CHW)
    assert not np.array_equal(whole, made(engine, asked("text2video_zero", 9, chunk_frames=8)))


@pytest.mark.parametrize("sampler", KINDS)
def test_a_video_depends_neither_on_its_neighbours_nor_on_its_slot(models: dict[str, Any], sampler: str) -> None:
    engine = Engine(models[sampler], slots=3)
    images = ["", "" if SAMPLERS[sampler].source else "/x.png", ""]
    own: list[dict[str, Any]] = [{"motion_dx": 8.0}, {"motion_dx": -8.0}, {}]
    if SAMPLERS[sampler].source:
        own = [{}, {"image_guidance_scale": 2.0} if "image_guidance_scale" in SAMPLERS[sampler].reads else {}, {}]
    requests = [
        asked(sampler, 4, id=str(i), prompt=prompt, seed=i, chunk_frames=3, image=image, **own[i])
        for i, (prompt, image) in enumerate(zip(["a red ball", "sky", "a dog"], images, strict=True))
    ]
    states = [begun(engine, request) for request in requests]
    together = advanced(engine, states)
    turned = advanced(engine, states[::-1])[::-1]
    for state, one, other in zip(states, together, turned, strict=True):
        (alone,) = advanced(engine, [state])
        assert np.array_equal(one.latents_FCHW, alone.latents_FCHW), state.request.id
        assert np.array_equal(one.latents_FCHW, other.latents_FCHW), state.request.id


@pytest.mark.parametrize("sampler", ["text2video_zero_control", "instruct_pix2pix_video"])
def test_a_frame_depends_on_its_own_source_frame_and_the_first(models: dict[str, Any], sampler: str) -> None:
    engine, frames = Engine(models[sampler]), pictures(9)
    whole = made(engine, asked(sampler, 9, chunk_frames=8))
    request = asked(sampler, 9, chunk_frames=1)
    state = begun(engine, request)
    for k in (5, 8):
        at_k = replace(state, frame=k - 1)
        (alone,) = engine.advance([at_k], [frames[[0, k]]])
        assert isinstance(alone, Chunk)
        assert np.array_equal(alone.latents_FCHW[0], whole[k - 1])
        (other,) = engine.advance([at_k], [frames[[0, k - 1]]])
        assert isinstance(other, Chunk)
        assert not np.array_equal(other.latents_FCHW, alone.latents_FCHW)
    assert engine.source_frames(replace(state, frame=7)) == [0, 8]
    longer = replace(state, frame=7, request=asked(sampler, 9, chunk_frames=3))
    assert engine.source_frames(longer) == [0, 8, 8, 8], "what lies beyond the source is shown by no video"


class Counted:
    """A model that counts its calls, and what each of them was given."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict_frames(self, x: Tensor, t: int, text: Tensor, keys: Any = None, *more: Any) -> Any:
        self.calls.append((len(x), keys is not None))
        return self.model.predict_frames(x, t, text, keys, *more)


def test_a_frame_costs_48_evaluations_and_the_anchor_as_many_a_chunk(models: dict[str, Any]) -> None:
    """By the paper's chunks, each of which makes frame 0 again, it is (50 + 8 * 48) / 7 = 62."""
    counted = Counted(models["text2video_zero"])
    engine = Engine(counted, slots=2)  # type: ignore[arg-type]
    many: dict[str, Any] = {"num_inference_steps": 50, "motion_t0": 881, "motion_t1": 941}
    state = begun(engine, asked("text2video_zero", 9, chunk_frames=8, **many))
    assert counted.calls == [(2, False)] * 50
    counted.calls.clear()
    advanced(engine, [state])
    assert counted.calls.count((4, True)) == 8 * 48
    assert counted.calls.count((4, False)) == 48
    assert len(counted.calls) / 8 == 54


def test_the_background_is_smoothed_and_the_foreground_is_not(models: dict[str, Any]) -> None:
    engine = Engine(models["text2video_zero"], slots=2)
    chosen: dict[str, Any] = {"size": 2 * SIZE, "motion_dx": 8.0, "motion_dy": 0.0}
    smoothed = {**chosen, "smoothing": 0.6, "subject": "ball"}
    whole = made(engine, asked("text2video_zero", 7, chunk_frames=6, **smoothed))
    assert np.array_equal(made(engine, asked("text2video_zero", 7, chunk_frames=2, **smoothed)), whole)
    assert not np.array_equal(whole, made(engine, asked("text2video_zero", 7, chunk_frames=6, **chosen)))
    states = [begun(engine, asked("text2video_zero", 7, chunk_frames=6, **one)) for one in (chosen, smoothed)]
    assert np.array_equal(advanced(engine, states)[1].latents_FCHW, whole), "a neighbour may have none"
    map_RLHW = models["text2video_zero"].text_attention(torch.randn(2, 4, 4, 4), 301, torch.randn(2, 77, 16))
    assert map_RLHW.shape == (2, 77, 4, 4)
    assert torch.allclose(map_RLHW.sum(1), torch.ones(2, 4, 4), atol=1e-5)
    assert models["text2video_zero"].tokens_of("a red ball, of red", "red") != []
    mask, x, moved = torch.zeros(1, 4, 4), torch.ones(4, 4, 4), torch.zeros(4, 4, 4)
    mask[:, 1:3, 0:2] = 1
    request: Any = asked("text2video_zero", 7, **smoothed)
    mixed = _smoothed(models["text2video_zero"], x, moved, mask, request, 1)
    assert torch.equal(mixed[0, 1], torch.tensor([1.0, 1.0, 1.0, 0.4])), "the mask moves as the frame does"
    assert torch.allclose(mixed[0, 0], torch.full((4,), 0.4))
    with pytest.raises(InputError, match="give subject too"):
        asked("text2video_zero", smoothing=0.6)
    with pytest.raises(InputError, match="subject is 'dog'; prompt 'a red ball' has no dog"):
        asked("text2video_zero", smoothing=0.6, subject="dog")


@pytest.mark.parametrize("sampler", KINDS)
def test_an_engine_warms_up_with_every_sampler(models: dict[str, Any], sampler: str) -> None:
    try_out(Engine(models[sampler], slots=2), asked(sampler, 9, num_inference_steps=5))


def test_the_last_frame_may_be_the_next_anchor(models: dict[str, Any]) -> None:
    engine = Engine(models["text2video_zero"])
    last, first = (
        asked("text2video_zero", 9, chunk_frames=4, anchor=anchor, motion_dx=8.0) for anchor in ("last", "first")
    )
    state = begun(engine, last)
    (one,) = advanced(engine, [state])
    assert np.array_equal(one.latents_FCHW, advanced(engine, [begun(engine, first)])[0].latents_FCHW)
    assert one.context_FCHW is not None
    assert one.context_FCHW.shape == (3, 4, 4, 4)
    assert np.array_equal(one.context_FCHW[2], one.latents_FCHW[-1])
    moved_on = state.push(one)
    assert np.array_equal(moved_on.queue.latents_KCHW, one.context_FCHW)
    (two,) = advanced(engine, [moved_on])
    assert not np.array_equal(two.latents_FCHW, made(engine, first)[4:])


def test_a_chunk_is_made_under_the_text_of_its_first_frame(models: dict[str, Any]) -> None:
    engine = Engine(models["text2video_zero"])
    plain = made(engine, asked("text2video_zero", 17, chunk_frames=8))
    schedule = [{"from_frame": 0, "prompt": "a red ball"}, {"from_frame": 9, "prompt": "a dog"}]
    changed = made(engine, asked("text2video_zero", 17, chunk_frames=8, prompt=schedule))
    assert np.array_equal(changed[:8], plain[:8])
    assert not np.array_equal(changed[8:], plain[8:])
    crooked = asked("text2video_zero", 17, chunk_frames=8, prompt=[schedule[0], {"from_frame": 10, "prompt": "a dog"}])
    with pytest.raises(InputError, match="prompt begins at frame 10, in the middle of a chunk of 8"):
        crooked.check_against_model(models["text2video_zero"].info)


def test_what_a_sampler_and_a_model_need_of_each_other_is_said(models: dict[str, Any]) -> None:
    info = models["text2video_zero"].info
    with pytest.raises(InputError, match="the model has no control: choose one of text2video_zero"):
        asked("text2video_zero_control").check_against_model(info)
    video = SamplingParams("ti2v_zero", context_frames=3)
    request = VideoRequest(id="a", image="/x.png", prompt="x", seed=0, height=SIZE, width=SIZE, params=video)
    with pytest.raises(InputError, match="the model has no window: choose one of text2video_zero"):
        request.check_against_model(info)
    with pytest.raises(InputError, match=r"image is '/x\.png'; sampler .* makes the first frame"):
        asked("text2video_zero_control", image="/x.png")
    several = asked("text2video_zero", image="/x.png")
    with pytest.raises(InputError, match="images are 2; sampler 'text2video_zero' goes on from one"):
        replace(several, given=(Given(1, "/y.png", "y.png"),))
    with pytest.raises(InputError, match="frame 9 is missing"):
        replace(asked("instruct_pix2pix_video", 9), num_frames=12)
    with pytest.raises(InputError, match=r"motion_dx is 3\.0; sampler 'ti2v_zero' does not read it"):
        SamplingParams("ti2v_zero", motion_dx=3)
