"""The engine on a real, tiny UNet3D: bits that depend on a video alone, and errors that stay with their video."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import SIZE, WINDOW, write_tiny_model
from ti2v_dist.decoder import DECODE_BATCH
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, NonFiniteLatents, VideoState
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.base import VideoModel
from ti2v_dist.params import SamplingParams
from ti2v_dist.prompts import Prompt, PromptFrom
from ti2v_dist.samplers import load_sampler
from ti2v_dist.samplers.base import Batch
from ti2v_dist.samplers.noise import KeyedNoise
from ti2v_dist.specs import WINDOW as WINDOWED
from ti2v_dist.trial import try_out
from ti2v_dist.video import VideoRequest

K = WINDOW - 1
PARAMS = SamplingParams(num_inference_steps=2, resample_iterations=2, guidance_scale=3.0, context_frames=K)
PROMPTS = ("a red circle moving left", "a blue square moving up", "a still green triangle", "an orange circle")


class Wrapped:
    """A model whose noise prediction goes through a function of the test's; it notes the rows of each call."""

    def __init__(self, model: VideoModel, change: Callable[[Tensor, int, Tensor], Tensor] | None = None) -> None:
        self.info, self.device, self.schedule = model.info, model.device, model.schedule
        self.dtype, self.attention = model.dtype, model.attention
        self.encode_text, self.encode_image = model.encode_text, model.encode_image
        self.decode, self.weights_sha256 = model.decode, model.weights_sha256
        self._model, self._change = model, change
        self.rows: list[int] = []

    def predict(self, x_BCFHW: Tensor, t: int, text_BLD: Tensor) -> Tensor:
        self.rows.append(len(x_BCFHW))
        eps = self._model.predict(x_BCFHW, t, text_BLD)
        return eps if self._change is None else self._change(eps, t, text_BLD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), seed=3)


@pytest.fixture(scope="module")
def model(folder: Path) -> VideoModel:
    return load_model(read_info(str(folder)))


@pytest.fixture(scope="module")
def engine(model: VideoModel) -> Engine:
    return Engine(model, slots=4)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def request(i: int = 0, params: SamplingParams = PARAMS, num_frames: int = 4) -> VideoRequest:
    guidance = replace(params, guidance_scale=params.guidance_scale + i)
    return VideoRequest(f"v{i}", f"/{i}.png", PROMPTS[i], 100 + i, SIZE, SIZE, guidance, num_frames)


def start(engine: Engine, i: int = 0, **more: Any) -> VideoState:
    asked = request(i, **more)
    return VideoState.start(asked, engine.encode(asked, image(i)))


def ok(results: Sequence[Chunk | NonFiniteLatents]) -> list[Chunk]:
    assert all(isinstance(result, Chunk) for result in results), results
    return [result for result in results if isinstance(result, Chunk)]


def finish(engine: Engine, state: VideoState) -> np.ndarray:
    """All new latents of a video, alone in its batch."""
    made = []
    while not state.is_complete:
        (chunk,) = ok(engine.advance([state]))
        made.append(chunk.latents_FCHW)
        state = state.push(chunk)
    return np.concatenate(made)


def test_a_warm_up_has_the_shape_of_every_later_batch_in_fewer_steps(model: VideoModel) -> None:
    wrapped = Wrapped(model)
    engine = Engine(wrapped, slots=3)
    try_out(engine, request())
    warm, wrapped.rows = wrapped.rows, []
    ok(engine.advance([start(engine)]))
    assert set(warm) == set(wrapped.rows)
    assert len(warm) < len(wrapped.rows)


def test_bits_depend_neither_on_neighbours_nor_on_the_slot(engine: Engine) -> None:
    videos = [start(engine, i) for i in range(4)]
    videos[2] = videos[2].push(ok(engine.advance([videos[2]]))[0])  # frame index differs too
    together = ok(engine.advance(videos))
    assert [chunk.video_id for chunk in together] == ["v0", "v1", "v2", "v3"]
    assert [chunk.first_frame for chunk in together] == [1, 1, 2, 1]
    for video, chunk in zip(videos, together, strict=True):
        assert np.array_equal(ok(engine.advance([video]))[0].latents_FCHW, chunk.latents_FCHW)
    backwards = ok(engine.advance(videos[::-1]))[::-1]
    pair = ok(engine.advance([videos[3], videos[1]]))
    for moved, chunk in [*zip(backwards, together, strict=True), (pair[0], together[3]), (pair[1], together[1])]:
        assert np.array_equal(moved.latents_FCHW, chunk.latents_FCHW)
    assert len({chunk.latents_FCHW.tobytes() for chunk in together}) == 4


@pytest.mark.parametrize("sampler", ["ti2v_zero_reference", "replace"])
def test_the_other_samplers_keep_the_contract_too(engine: Engine, sampler: str) -> None:
    videos = [start(engine, i, params=replace(PARAMS, sampler=sampler)) for i in range(3)]
    together, alone = ok(engine.advance(videos)), ok(engine.advance([videos[1]]))
    assert np.array_equal(together[1].latents_FCHW, alone[0].latents_FCHW)
    if sampler == "replace":
        assert together[1].last_frame == WINDOW - 1
    else:
        context = together[1].context_FCHW
        assert context is not None
        assert np.array_equal(videos[1].push(together[1]).queue.latents_KCHW[-1:], context)


def test_two_engines_agree_and_a_run_goes_on_from_any_state(folder: Path, engine: Engine) -> None:
    state = start(engine, 1, num_frames=5)
    whole = finish(engine, state)
    for _ in range(2):
        state = state.push(ok(engine.advance([state]))[0])
    other = Engine(load_model(read_info(str(folder))), slots=4)
    assert np.array_equal(finish(other, state), whole[2:])
    assert np.array_equal(finish(other, start(other, 1, num_frames=5)), whole)
    assert other.report() == engine.report()


def test_advance_and_encode_are_pure(engine: Engine) -> None:
    state = start(engine)
    before = [array.copy() for array in (state.queue.latents_KCHW, state.text_LD, state.negative_text_LD)]
    first, second = ok(engine.advance([state]) + engine.advance([state]))
    assert np.array_equal(first.latents_FCHW, second.latents_FCHW)
    after = (state.queue.latents_KCHW, state.text_LD, state.negative_text_LD)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert (first.latents_FCHW.dtype, first.latents_FCHW.shape) == (np.float32, (1, 4, SIZE // 8, SIZE // 8))


def test_guidance_prompt_and_seed_are_values_per_slot(engine: Engine) -> None:
    state = start(engine)
    asked = state.request
    other_text = engine.encode(replace(asked, prompt=PROMPTS[1]), image(0)).text_LD
    changed = [
        replace(state, request=replace(asked, params=replace(asked.params, guidance_scale=1.0))),
        replace(state, request=replace(asked, seed=5)),
        replace(state, text_LD=other_text),
    ]
    chunks = ok(engine.advance([state, *changed]))
    assert len({chunk.latents_FCHW.tobytes() for chunk in chunks}) == 4
    for video, chunk in zip(changed, chunks[1:], strict=True):
        assert np.array_equal(ok(engine.advance([video]))[0].latents_FCHW, chunk.latents_FCHW)


def test_length_decides_no_frame(engine: Engine) -> None:
    params = replace(PARAMS, sampler="replace")
    short, long = (ok(engine.advance([start(engine, params=params, num_frames=n)]))[0] for n in (3, WINDOW))
    assert len(short.latents_FCHW) == WINDOW - 1
    assert np.array_equal(short.latents_FCHW, long.latents_FCHW)


def test_noise_is_keyed_by_the_seed_and_the_new_frame(model: VideoModel) -> None:
    """Against the sampler called by hand."""
    engine = Engine(model)
    state = start(engine, 1)
    state = state.push(ok(engine.advance([state]))[0])
    queue, text, negative = (
        torch.from_numpy(array)[None] for array in (state.queue.latents_KCHW, state.text_LD, state.negative_text_LD)
    )
    noise, guidance = KeyedNoise([101], [2], (4, SIZE // 8, SIZE // 8)), torch.tensor([4.0])
    queue = queue.transpose(1, 2).contiguous()
    batch = Batch(queue, text, negative, guidance, noise, [{}])
    sample = load_sampler("ti2v_zero")(model, batch, state.request.params)
    (chunk,) = ok(engine.advance([state]))
    assert np.array_equal(chunk.latents_FCHW[0], sample.latents_BCFHW[0, :, 0].numpy())


@pytest.mark.parametrize("videos", [1, 4])
def test_a_frame_at_10_by_4_is_37_calls_of_8_rows(model: VideoModel, videos: int) -> None:
    wrapped = Wrapped(model)
    engine = Engine(wrapped, slots=4)
    params = replace(PARAMS, num_inference_steps=10, resample_iterations=4)
    engine.advance([start(engine, i, params=params) for i in range(videos)])
    assert wrapped.rows == [8] * 37


@pytest.mark.parametrize("field", ["queue", "text_LD", "negative_text_LD"])
def test_a_non_finite_input_is_an_error_of_its_video_alone(engine: Engine, field: str) -> None:
    videos = [start(engine, i) for i in range(3)]
    clean = ok(engine.advance(videos))
    if field == "queue":
        latents = videos[1].queue.latents_KCHW.copy()
        latents[0, 0, 0, 0] = np.nan
        videos[1] = replace(videos[1], queue=type(videos[1].queue)(latents))
    else:
        videos[1] = replace(videos[1], **{field: np.full_like(videos[1].text_LD, np.inf)})
    results = engine.advance(videos)
    error = results[1]
    assert isinstance(error, NonFiniteLatents)
    assert (error.video_id, error.frame) == ("v1", 1)
    for i in (0, 2):
        assert np.array_equal(ok([results[i]])[0].latents_FCHW, clean[i].latents_FCHW)
    assert isinstance(engine.advance([videos[1]])[0], NonFiniteLatents)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_output_is_an_error_of_its_video_alone(model: VideoModel, value: float) -> None:
    def break_row_1(eps: Tensor, t: int, text: Tensor) -> Tensor:
        eps[1, :, -1, 0, 0] = value
        return eps

    engine, broken = Engine(model, slots=2), Engine(Wrapped(model, break_row_1), slots=2)
    videos = [start(engine, i) for i in range(2)]
    clean, results = ok(engine.advance(videos)), broken.advance(videos)
    assert isinstance(results[1], NonFiniteLatents)
    assert np.array_equal(ok(results[:1])[0].latents_FCHW, clean[0].latents_FCHW)


def test_a_chunk_of_many_frames_names_its_first_bad_frame(model: VideoModel) -> None:
    def break_frame_2(eps: Tensor, t: int, text: Tensor) -> Tensor:
        eps[:, :, 2] = float("nan")
        return eps if t == 1 else torch.zeros_like(eps)

    engine = Engine(Wrapped(model, break_frame_2))
    (error,) = engine.advance([start(engine, params=replace(PARAMS, sampler="replace"))])
    assert isinstance(error, NonFiniteLatents)
    assert error.frame == 2  # of the window's frames 0 to 3


def test_encode_gives_the_state_of_a_new_video(engine: Engine, model: VideoModel) -> None:
    asked = request()
    encoded = engine.encode(asked, image(0))
    x = torch.from_numpy(image(0)).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert np.array_equal(encoded.latent_CHW, model.encode_image(x)[0].numpy())
    assert np.array_equal(encoded.image_HWC, image(0))
    text = model.encode_text([*asked.texts, asked.negative_prompt]).numpy()
    assert np.array_equal(np.stack([encoded.text_LD, encoded.negative_text_LD]), text)
    assert {array.dtype for array in (encoded.latent_CHW, encoded.text_LD)} == {np.dtype(np.float32)}


def test_a_frame_decodes_alike_among_any_others(engine: Engine) -> None:
    latents = np.random.default_rng(0).normal(size=(2 * DECODE_BATCH + 1, 4, 4, 4)).astype(np.float32)
    frames = engine.decode(latents)
    assert (frames.dtype, frames.shape) == (np.uint8, (9, SIZE, SIZE, 3))
    for first, last in [(0, 1), (3, 5), (8, 9), (1, 8)]:
        assert np.array_equal(engine.decode(latents[first:last]), frames[first:last])
    assert len({frame.tobytes() for frame in frames}) == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": SIZE + 4}, f"height is {SIZE + 4}; it must be a multiple of 8"),
        ({"width": 9}, "width is 9; it must be a multiple of 8"),
        ({"params": replace(PARAMS, context_frames=WINDOW)}, "context_frames is 4; it must be 1 to 3"),
        ({"params": replace(PARAMS, sampler="replace"), "num_frames": 5}, "num_frames is 5; .* 2 to 4 frames"),
    ],
)
def test_requests_that_the_model_cannot_make_are_refused(model: VideoModel, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(request(), **change).check_against_model(model.info)
    request().check_against_model(model.info)
    with pytest.raises(ValueError, match="height is 31; it must be a multiple of 2"):
        replace(request(), height=31).check_against_model(replace(model.info, vae_factor=1))
    blind = replace(model.info, capabilities=frozenset({WINDOWED}))
    reference = replace(request(), params=replace(PARAMS, sampler="ti2v_zero_reference"))
    with pytest.raises(ValueError, match="the model has no pictures: choose one of ti2v_zero, replace"):
        reference.check_against_model(blind)


def test_a_prompt_changes_where_a_chunk_begins(model: VideoModel) -> None:
    fours = replace(model.info, frames_per_latent=4)
    for frame, near in ((1, ""), (5, ""), (9, ""), (2, "1 or 5"), (8, "5 or 9")):
        asked = replace(request(), prompt=[{"from_frame": 0, "prompt": "a"}, {"from_frame": frame, "prompt": "b"}])
        asked.check_against_model(model.info)
        if near:
            message = f"prompt begins at frame {frame}, in the middle of a chunk of 4 frames: choose {near}"
            with pytest.raises(ValueError, match=message):
                asked.check_against_model(fours)
        else:
            asked.check_against_model(fours)


def test_batches_that_do_not_fit_are_refused(engine: Engine) -> None:
    state = start(engine, num_frames=2)
    with pytest.raises(ValueError, match="5 videos were given to an engine of 4 slots"):
        engine.advance([state] * 5)
    with pytest.raises(ValueError, match="2 batch groups"):
        engine.advance([state, start(engine, params=replace(PARAMS, resample_iterations=3))])
    with pytest.raises(ValueError, match="'v0' is complete at frame 1"):
        engine.advance([state.push(ok(engine.advance([state]))[0])])
    whole = start(engine, params=replace(PARAMS, sampler="replace"))
    with pytest.raises(ValueError, match="'replace' makes a whole window"):
        engine.advance([replace(whole, frame=1)])
    with pytest.raises(ValueError, match=r"uint8 \(16, 16, 3\)"):
        engine.encode(request(), np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="0 latents"):
        engine.decode(np.zeros((0, 4, 4, 4), np.float32))
    assert engine.advance([]) == []


def test_an_engine_pins_its_threads_and_reports_what_decides_bits(model: VideoModel) -> None:
    before = torch.get_num_threads()
    try:
        report = Engine(model, slots=3, threads=2).report()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert (report["slots"], report["threads"], report["dtype"]) == (3, 2, "float32")
    assert report["weights_sha256"] == model.weights_sha256()
    assert torch.backends.cpu.get_cpu_capability() in str(report["device"])
    with pytest.raises(ValueError, match="slots is 0"):
        Engine(model, slots=0)


def test_a_prompt_schedule_changes_the_text_from_its_frame_and_nothing_before(engine: Engine) -> None:
    """Each frame is that of a plain video whose text was exchanged by hand at the right moment."""
    schedule: list[PromptFrom] = [{"from_frame": 0, "prompt": PROMPTS[0]}, {"from_frame": 3, "prompt": PROMPTS[1]}]

    def begin(prompt: Prompt) -> VideoState:
        asked = replace(request(num_frames=6), prompt=prompt)
        return VideoState.start(asked, engine.encode(asked, image(0)))

    planned, by_hand, unchanged = begin(schedule), begin(PROMPTS[0]), begin(PROMPTS[0])
    for frame in range(1, 6):
        if frame == 3:
            by_hand = replace(by_hand, text_LD=begin(PROMPTS[1]).text_LD)
        ours, expected, plain = ok(engine.advance([planned, by_hand, unchanged]))
        assert np.array_equal(ours.latents_FCHW, expected.latents_FCHW)
        assert np.array_equal(ours.latents_FCHW, plain.latents_FCHW) == (frame < 3)
        planned, by_hand, unchanged = planned.push(ours), by_hand.push(expected), unchanged.push(plain)
