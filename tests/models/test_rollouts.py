"""Models that go on from stored latents: the pipeline's own bits, in any order, after any end."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.clip_models import SIZE
from tests.support.rollout_models import ROLLOUT_FRAMES, write_rollout_model
from ti2v_dist.decoder import Decoder
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, LatentQueue, Piece, VideoState
from ti2v_dist.models import ModelFolderError, load_model, read_info
from ti2v_dist.models.base import ClipModel, StreamingModel
from ti2v_dist.models.causal_vae import as_frames
from ti2v_dist.models.clips.framepack_pipelines import SECTION, FramePack
from ti2v_dist.models.clips.skyreels_pipelines import SkyReelsForcing
from ti2v_dist.models.lost_words import lost_words
from ti2v_dist.operations import edit
from ti2v_dist.operations.generate import generate
from ti2v_dist.operations.verify import verify
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Batch
from ti2v_dist.samplers.diffusion_forcing import sample_diffusion_forcing
from ti2v_dist.samplers.noise import KeyedNoise, Purpose
from ti2v_dist.state.checkpoint import CheckpointStore
from ti2v_dist.trial import try_out
from ti2v_dist.video import VideoRequest

WINDOW, K, STEPS = 1 + (ROLLOUT_FRAMES - 1) // 4, 2, 3
SAMPLING: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 3.0, "context_frames": K}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rollout_model("skyreels-image", tmp_path_factory.mktemp("rollouts") / "skyreels")


@pytest.fixture(scope="module")
def model(folder: Path) -> SkyReelsForcing:
    model: Any = load_model(read_info(str(folder)))
    assert isinstance(model, SkyReelsForcing)
    return model


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> FramePack:
    folder = write_rollout_model("framepack", tmp_path_factory.mktemp("rollouts") / "framepack")
    model: Any = load_model(read_info(str(folder)))
    assert isinstance(model, FramePack)
    return model


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.fromarray(pixels()).save(path)
    return path


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def asked(num_frames: int = 45, seed: int = 1, prompt: Any = "a cat walks", **sampling: Any) -> VideoRequest:
    params = SamplingParams("diffusion_forcing", **{**SAMPLING, **sampling})
    return VideoRequest("a", "/a.png", prompt, seed, SIZE, SIZE, params, num_frames=num_frames)


def chain(engine: Engine, request: VideoRequest, count: int = 3) -> list[Chunk]:
    """The first chunks of a video."""
    state, made = VideoState.start(request, engine.encode(request, pixels())), []
    for _ in range(count):
        (chunk,) = engine.advance([state])
        assert isinstance(chunk, Chunk)
        made.append(chunk)
        state = state.push(chunk)
    return made


class Theirs(KeyedNoise):
    """What the pipeline draws: the windows from its generator, what is mixed into the context from the global one.

    `before` are the draws of a step in each window that was made before; each has the latents of its context.
    """

    def __init__(self, before: dict[int, int]) -> None:
        self.windows, self.contexts = torch.Generator().manual_seed(3), torch.Generator().manual_seed(5)
        for context, steps in before.items():
            self.draw(Purpose.INIT, 0, 0, WINDOW)
            for step in range(steps):
                self.draw(Purpose.CONTEXT, step, 0, context)

    def draw(self, purpose: Purpose, step: int, iteration: int, frames: int) -> Tensor:
        generator = self.windows if purpose == Purpose.INIT else self.contexts
        return torch.randn(1, 4, frames, SIZE // 8, SIZE // 8, generator=generator)


@pytest.mark.parametrize(
    ("sampling", "dtype", "steps"),
    [
        ({"addnoise_condition": 20}, "float32", STEPS),
        ({"addnoise_condition": 0}, "float32", 0),
        ({"addnoise_condition": 20}, "bfloat16", STEPS),
        ({"addnoise_condition": 20, "guidance_scale": 1.0}, "float32", STEPS),
        ({"addnoise_condition": 20, "ar_step": 2}, "float32", STEPS + 2 * (WINDOW - 2)),
        ({"addnoise_condition": 0, "ar_step": 1, "causal_block_size": 2}, "float32", 0),
    ],
    ids=str,
)
def test_a_window_is_the_pipelines_own(folder: Path, sampling: dict[str, Any], dtype: str, steps: int) -> None:
    model: Any = load_model(read_info(str(folder)), dtype=dtype)
    params = SamplingParams("diffusion_forcing", **{**SAMPLING, **sampling})
    pipe: Any = diffusers.SkyReelsV2DiffusionForcingImageToVideoPipeline.from_pretrained(
        folder, torch_dtype=getattr(torch, dtype)
    )
    text_2LD = model.encode_text(["a cat walks", "blurry"])
    texts = {
        name: text_2LD[n : n + 1].to(model.dtype) for n, name in enumerate(("prompt_embeds", "negative_prompt_embeds"))
    }
    pipe.vae.float()
    torch.manual_seed(5)
    theirs_1CFHW = pipe(
        image=Image.fromarray(pixels()),
        height=SIZE,
        width=SIZE,
        num_frames=1 + (2 * WINDOW - K - 1) * 4,
        base_num_frames=ROLLOUT_FRAMES,
        overlap_history=1 + (K - 1) * 4,
        num_inference_steps=STEPS,
        guidance_scale=params.guidance_scale,
        generator=torch.Generator().manual_seed(3),
        addnoise_condition=params.addnoise_condition,
        ar_step=params.ar_step,
        causal_block_size=params.causal_block_size,
        output_type="latent",
        **texts,
    ).frames
    assert theirs_1CFHW.shape[2] == 2 * WINDOW - K

    def ours(context: Tensor, noise: KeyedNoise) -> Tensor:
        batch = Batch(context, text_2LD[:1], text_2LD[1:], torch.tensor([params.guidance_scale]), noise, [None])
        return sample_diffusion_forcing(model, batch, params).latents_BCFHW

    second = ours(theirs_1CFHW[:, :, WINDOW - K : WINDOW], Theirs({1: steps}))
    assert torch.equal(second, theirs_1CFHW[:, :, WINDOW:])
    if params.causal_block_size == 1:  # else the pipeline makes another picture of the image
        first = ours(theirs_1CFHW[:, :, :1], Theirs({}))
        assert torch.equal(first, theirs_1CFHW[:, :, 1:WINDOW])


def test_it_begins_with_the_latent_of_the_image(model: SkyReelsForcing) -> None:
    pipe: Any = model.pipe
    image = as_image()
    prepared = pipe.prepare_latents(image, 1, 4, SIZE, SIZE, 1, torch.float32, "cpu", None)
    assert torch.equal(model.encode_image(image), prepared[2][:, :, 0])


def test_frames_are_those_of_the_whole_decode_wherever_it_is_cut(model: SkyReelsForcing) -> None:
    latents = torch.randn(5, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(1))
    assert isinstance(model, StreamingModel)
    assert not isinstance(model, ClipModel)
    for length in range(2, 6):
        with torch.inference_mode():
            whole = model.loaded.pixels(latents[:length].transpose(0, 1)[None], torch.Generator())[0]
        expected = (whole * 127.5 + 127.5).round().clamp(0, 255).permute(1, 2, 3, 0).numpy()
        pieces = (Piece(frame, 1, latent[None]) for frame, latent in enumerate(latents[:length].numpy()))
        found = [*Decoder(model).frames(asked(), pixels(), pieces)]  # type: ignore[arg-type]
        assert [frame for frame, _ in found] == [*range(1, 4 * length - 3, 4)]
        assert np.array_equal(np.concatenate([frames for _, frames in found]), expected[1:])


def test_each_thing_that_decides_a_chunk_changes_it(model: SkyReelsForcing) -> None:
    engine: Any = Engine(model)  # type: ignore[arg-type]
    request = asked()
    made = chain(engine, request)
    assert [(chunk.first_frame, chunk.frames, len(chunk.latents_FCHW)) for chunk in made] == [
        (1, 20, 5),
        (21, 16, 4),
        (37, 16, 4),
    ]
    state = VideoState.start(request, engine.encode(request, pixels())).push(made[0])
    assert len(state.queue.latents_KCHW) == K, "it has grown"

    def next_of(state: VideoState) -> bytes:
        return engine.advance([state])[0].latents_FCHW.tobytes()

    other_text = engine.model.encode_text(["a dog sleeps"])[0].numpy()
    moved = replace(made[0], latents_FCHW=made[0].latents_FCHW + np.float32(0.5))
    started = VideoState.start(request, engine.encode(request, pixels()))
    variants = {
        "as it is": state,
        "seed": replace(state, request=replace(request, seed=2)),
        "text": replace(state, text_LD=other_text),
        "negative text": replace(state, negative_text_LD=other_text),
        "context": started.push(moved),
        "frame": replace(state, frame=state.frame + 16),
        "noise of the context": replace(state, request=asked(addnoise_condition=40)),
        "steps": replace(state, request=asked(num_inference_steps=2)),
        "order": replace(state, request=asked(ar_step=1)),
        "blocks": replace(state, request=asked(ar_step=1, causal_block_size=2)),
    }
    found = {name: next_of(state) for name, state in variants.items()}
    assert found["as it is"] == made[1].latents_FCHW.tobytes(), "whatever was computed before"
    assert len(set(found.values())) == len(variants)
    assert next_of(state) == found["as it is"], "nothing of the other calls is left in the model"


class Killed(Exception):
    pass


def killed_after(frame: int) -> Callable[[int, int], None]:
    def listener(last: int, of: int) -> None:
        if last >= frame:
            raise Killed

    return listener


def latents(store: CheckpointStore, video_id: str) -> list[bytes]:
    return [piece.latents_FCHW.tobytes() for piece in store.pieces(video_id)]


def go_on(store: CheckpointStore, request: VideoRequest, model: Any) -> list[bytes]:
    """Make what a video of the store lacks, loaded anew for each chunk; returns its latents."""
    engine = Engine(model)
    fingerprint = store.claim_fingerprint(store.read_fingerprint() or {})
    if store.load(request, fingerprint) is None:
        store.begin(request, engine.encode(request, pixels()), fingerprint)
    while (loaded := store.load(request, fingerprint)) and not loaded[0].is_complete:
        (chunk,) = engine.advance([loaded[0]])
        assert isinstance(chunk, Chunk)
        store.commit(chunk, loaded[1])
    return latents(store, request.id)


@pytest.mark.parametrize(
    ("sampler", "settings", "ends"),
    [("diffusion_forcing", {"context_frames": K}, (20, 36, 52)), ("framepack_f1", {}, (36, 72, 108))],
)
def test_a_video_that_was_killed_and_one_that_grew_are_the_one_made_at_once(
    sampler: str,
    settings: dict[str, Any],
    ends: tuple[int, int, int],
    request: pytest.FixtureRequest,
    picture: Path,
    tmp_path: Path,
) -> None:
    model: Any = request.getfixturevalue("model" if sampler == "diffusion_forcing" else "packed")
    chosen = {**SAMPLING, "context_frames": None, **settings, "sampler": sampler}
    plain = {f"sampling.{name}": value for name, value in chosen.items() if value is not None}

    def made(place: str, num_frames: int, prompt: Any = "a cat walks", **more: Any) -> dict[str, Any]:
        output = tmp_path / place / "a.mp4"
        output.parent.mkdir(exist_ok=True)
        config = {**plain, "model.id": model.info.model_id, "sampling.num_frames": num_frames}
        return generate(picture, prompt, output, config=config, seed=7, **more)

    def store_of(place: str) -> CheckpointStore:
        return CheckpointStore(str(tmp_path / place / "a.mp4.ti2v"))

    def chunks(place: str) -> list[tuple[int, bytes]]:
        return [(tip.frame, record.to_bytes()) for record, tip in store_of(place).records("a", 1)]

    end, middle, last = ends
    whole = made("whole", last - 7)
    assert [frame for frame, _ in chunks("whole")] == [*ends]
    for frame in (1, end + 1):
        with pytest.raises(Killed):
            made("killed", last - 7, listener=killed_after(frame))
    assert made("killed", last - 7)["frames_sha256"] == whole["frames_sha256"]
    assert chunks("killed") == chunks("whole")
    made("short", 10)
    made("longer", middle - 6)
    extended = go_on(store_of("short"), edit.extend(store_of("short"), "a", str(middle - 6)), model)
    assert extended == latents(store_of("longer"), "a") == latents(store_of("whole"), "a")[:2]
    forked = go_on(store_of("whole"), edit.fork(store_of("whole"), "a", end, "a dog sleeps", "b"), model)
    schedule = [{"from_frame": 0, "prompt": "a cat walks"}, {"from_frame": end + 1, "prompt": "a dog sleeps"}]
    made("schedule", last - 7, schedule)
    assert forked == latents(store_of("schedule"), "a")
    assert forked[:1] == latents(store_of("whole"), "a")[:1]
    assert set(forked[1:]).isdisjoint(latents(store_of("whole"), "a"))
    assert verify(str(tmp_path / "whole" / "a.mp4.ti2v"), deep=True)["problems"] == []


def test_a_first_latent_that_fills_no_block_stays_what_it_is(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, predict = list[Tensor](), model.predict
    monkeypatch.setattr(model, "predict", lambda x, *given: seen.append(x[0, :, 0].clone()) or predict(x, *given))
    context, noise = torch.full((4, 1, 4, 4), 0.25), torch.zeros(4, WINDOW, 4, 4)
    texts = model.encode_text(["a cat walks", ""])
    params = asked(addnoise_condition=0, ar_step=1, causal_block_size=2).params
    model.go_on(context, *texts, noise, lambda step: context, params)
    assert len(seen) >= STEPS
    assert all(torch.equal(latent, context[:, 0]) for latent in seen)


def test_as_many_tokens_of_a_text_are_read_as_is_said(packed: Any) -> None:
    assert packed.encode_text(["a cat walks"]).shape[1] == packed.info.clip.tokens + 1, "and one of CLIP's"


def test_the_largest_video_is_tried_out(model: Any, packed: Any) -> None:
    try_out(Engine(model, slots=2), asked())
    decoded, decode = list[int](), packed._decoded

    def counted(latents_1CFHW: Tensor) -> Tensor:
        decoded.append(latents_1CFHW.shape[2])
        return decode(latents_1CFHW)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed, "_decoded", counted)
        try_out(Engine(packed, slots=2), asked_packed())
    assert decoded == [1, 1 + SECTION, 2 * SECTION], "the most that is ever decoded at once"


def asked_packed() -> VideoRequest:
    params = SamplingParams("framepack_f1", num_inference_steps=STEPS, guidance_scale=3.0, context_frames=20)
    return VideoRequest("a", "/a.png", "a cat walks", 1, SIZE, SIZE, params, num_frames=200)


@pytest.fixture(scope="module")
def their_sections(packed: FramePack) -> Callable[..., Any]:
    """FramePack's pipeline makes a video of some sections, decoded or not."""

    def made(sections: int, output_type: str) -> Any:
        pipe: Any = diffusers.HunyuanVideoFramepackPipeline.from_pretrained(packed.info.folder)
        pipe.vae.float()
        pipe.prepare_image_latents = lambda *_, **more: packed.encode_image(as_image())[:, :, None]
        pipe.video_processor.postprocess_video = lambda video, output_type: video
        return pipe(
            image=Image.fromarray(pixels()),
            prompt="a cat walks",
            height=SIZE,
            width=SIZE,
            num_frames=33 * sections,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(3),
            sampling_type="vanilla",
            output_type=output_type,
        ).frames

    return made


def as_image() -> Tensor:
    return torch.from_numpy(pixels()).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_a_section_is_the_pipelines_own(packed: FramePack, their_sections: Callable[..., Any]) -> None:
    theirs_1CFHW = their_sections(3, "latent")[-1]
    assert theirs_1CFHW.shape[2] == 1 + 3 * SECTION
    text_LD, noise, params = packed.encode_text(["a cat walks"])[0], Theirs({}), asked_packed().params
    queue = LatentQueue(theirs_1CFHW[0, :, :1].transpose(0, 1).numpy())
    for first in range(1, 1 + 3 * SECTION, SECTION):
        context_CKHW = torch.from_numpy(queue.latents_KCHW).transpose(0, 1)
        windows = noise.draw(Purpose.INIT, 0, 0, SECTION)[0]
        ours_CFHW = packed.next_section(context_CKHW, torch.from_numpy(pixels()), text_LD, windows, params)
        assert torch.equal(ours_CFHW, theirs_1CFHW[0, :, first : first + SECTION]), first
        queue = queue.push(ours_CFHW.transpose(0, 1).numpy(), params.context_frames, keeps_first=True)
    assert len(queue.latents_KCHW) == 20


def test_sections_are_decoded_as_the_pipeline_does_but_for_what_it_fades(
    packed: Any, their_sections: Callable[..., Any]
) -> None:
    latents_FCHW = their_sections(2, "latent")[-1][0].transpose(0, 1).numpy()
    theirs_FHWC = as_frames(their_sections(2, "pt"))[0].numpy()
    pieces = [Piece(0, 1, latents_FCHW[:1])]
    pieces += [Piece(1 + 36 * n, 36, latents_FCHW[1 + 9 * n : 10 + 9 * n]) for n in range(2)]
    found = [*Decoder(packed).frames(asked_packed(), pixels(), iter(pieces))]
    assert [(frame, len(frames)) for frame, frames in found] == [(1, 36), (37, 36)]
    assert np.array_equal(found[1][1], theirs_FHWC[37:])
    assert np.array_equal(found[0][1][:3], theirs_FHWC[1:4]), "of 33 frames the pipeline makes others"
    shorter = [*Decoder(packed).frames(asked_packed(), pixels(), iter(pieces[:2]))]
    assert np.array_equal(shorter[0][1], found[0][1]), "what comes later changes no picture"


def test_each_thing_that_decides_a_section_changes_it(packed: Any) -> None:
    engine, request = Engine(packed), asked_packed()
    made = chain(engine, request)
    assert [(chunk.first_frame, chunk.frames, len(chunk.latents_FCHW)) for chunk in made] == [
        (1, 36, 9),
        (37, 36, 9),
        (73, 36, 9),
    ]
    started = VideoState.start(request, engine.encode(request, pixels()))
    state = started.push(made[0]).push(made[1])
    assert len(state.queue.latents_KCHW) == 1 + 2 * SECTION
    assert len(state.push(made[2]).queue.latents_KCHW) == 20
    other = packed.encode_text(["a dog sleeps"])[0].numpy()
    short = replace(request, params=replace(request.params, context_frames=9))
    assert state.image_HWC is not None
    variants = {
        "as it is": state,
        "seed": replace(state, request=replace(request, seed=2)),
        "text": replace(state, text_LD=other),
        "image": replace(state, image_HWC=255 - state.image_HWC),
        "first": replace(
            state, queue=LatentQueue(state.queue.latents_KCHW + np.eye(1, 19, dtype=np.float32)[0, :, None, None, None])
        ),
        "context": started.push(made[0]).push(replace(made[1], latents_FCHW=made[0].latents_FCHW)),
        "frame": replace(state, frame=state.frame + 36),
        "queue": VideoState.start(short, engine.encode(short, pixels())).push(made[0]).push(made[1]),
    }
    found = {name: engine.advance([one])[0].latents_FCHW.tobytes() for name, one in variants.items()}  # type: ignore
    assert found["as it is"] == made[2].latents_FCHW.tobytes()
    assert len(set(found.values())) == len(variants)


def test_what_framepack_does_not_read_of_a_text_is_said(packed: FramePack) -> None:
    kept, lost = "cat " * 200, "cat " * 290
    assert not [*lost_words(packed.info, [kept])]
    (told,) = lost_words(packed.info, [lost + "dog"])
    assert "longer than the model's 256 tokens" in told
    one, other, shorter = packed.encode_text([lost + "dog", lost + "red", kept])
    assert torch.equal(one[:-1], other[:-1]), "but for CLIP's word, which tells of the first 77"
    assert not torch.equal(one, shorter)


def test_a_model_is_not_asked_to_go_on_in_the_others_way(folder: Path, packed: FramePack) -> None:
    with pytest.raises(ValueError, match="the model has no rollout: choose one of framepack_f1"):
        asked().check_against_model(packed.info)
    with pytest.raises(ValueError, match="the model has no packed: choose one of diffusion_forcing"):
        asked_packed().check_against_model(read_info(str(folder)))


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"causal_block_size": 4}, "causal_block_size is 4; the model's window is 6, which must be a multiple of it"),
        ({"causal_block_size": 3}, "causal_block_size is 3; context_frames is 2, which must be a multiple of it"),
        ({"context_frames": 6}, "context_frames is 6; it must be 1 to 5"),
    ],
)
def test_what_fits_no_window_is_refused(folder: Path, sampling: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        asked(**sampling).check_against_model(read_info(str(folder)))


def test_prompts_change_where_a_chunk_begins(folder: Path) -> None:
    info = read_info(str(folder))
    asked(prompt=[{"from_frame": 0, "prompt": "a"}, {"from_frame": 37, "prompt": "b"}]).check_against_model(info)
    with pytest.raises(ValueError, match="prompt begins at frame 36, in the middle of a chunk of 16 frames: choose 21"):
        asked(prompt=[{"from_frame": 0, "prompt": "a"}, {"from_frame": 36, "prompt": "b"}]).check_against_model(info)


@pytest.mark.parametrize(
    ("name", "part", "old", "new", "said"),
    [
        (
            "skyreels",
            "scheduler",
            '"UniPCMultistepScheduler"',
            '"EulerDiscreteScheduler"',
            "only UniPCMultistepScheduler can be",
        ),
        (
            "skyreels",
            "transformer",
            '"num_frame_per_block": 1',
            '"num_frame_per_block": 5',
            "is 5; it must be 1, and causal_block",
        ),
        (
            "framepack",
            "scheduler",
            '"stochastic_sampling": false',
            '"stochastic_sampling": true',
            "scheduler is stochas",
        ),
        (
            "framepack",
            "",
            '"width": 32',
            '"clip_frames": 9',
            "clip_frames is 9; FramePack sees 29 latents, and no others",
        ),
    ],
)
def test_a_folder_that_would_be_another_model_is_refused(
    tmp_path: Path, name: str, part: str, old: str, new: str, said: str
) -> None:
    folder = write_rollout_model(name, tmp_path / "model")
    assert read_info(str(folder)).window == (WINDOW if name == "skyreels" else 29)
    (config,) = (folder / part).glob("*config.json" if part else "ti2v.json")
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ModelFolderError, match=said):
        read_info(str(folder))
