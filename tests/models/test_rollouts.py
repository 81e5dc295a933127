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

from tests.support.clip_models import ROLLOUT_FRAMES, SIZE, write_rollout_model
from ti2v_dist.decoder import Decoder
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, Piece, VideoState
from ti2v_dist.models import ModelFolderError, load_model, read_info
from ti2v_dist.models.base import ClipModel, RolloutModel, StreamingModel
from ti2v_dist.models.clips.skyreels_pipelines import SkyReelsForcing
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
    pipe: Any = model._pipe
    image = torch.from_numpy(pixels()).permute(2, 0, 1)[None].float() / 127.5 - 1
    prepared = pipe.prepare_latents(image, 1, 4, SIZE, SIZE, 1, torch.float32, "cpu", None)
    assert torch.equal(model.encode_image(image), prepared[2][:, :, 0])


def test_frames_are_those_of_the_whole_decode_wherever_it_is_cut(model: SkyReelsForcing) -> None:
    latents = torch.randn(5, 4, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(1))
    assert isinstance(model, StreamingModel | RolloutModel)
    assert not isinstance(model, ClipModel)
    for length in range(2, 6):
        with torch.inference_mode():
            whole = model._loaded.pixels(latents[:length].transpose(0, 1)[None], torch.Generator())[0]
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


def go_on(store: CheckpointStore, request: VideoRequest, model: SkyReelsForcing) -> list[bytes]:
    """Make what a video of the store lacks, loaded anew for each chunk; returns its latents."""
    engine: Any = Engine(model)  # type: ignore[arg-type]
    fingerprint = store.claim_fingerprint(store.read_fingerprint() or {})
    if store.load(request, fingerprint) is None:
        store.begin(request, engine.encode(request, pixels()), fingerprint)
    while (loaded := store.load(request, fingerprint)) and not loaded[0].is_complete:
        (chunk,) = engine.advance([loaded[0]])
        store.commit(chunk, loaded[1])
    return latents(store, request.id)


def test_a_video_that_was_killed_and_one_that_grew_are_the_one_made_at_once(
    folder: Path, model: SkyReelsForcing, picture: Path, tmp_path: Path
) -> None:
    settings = {f"sampling.{name}": value for name, value in SAMPLING.items()}
    settings |= {"model.id": str(folder), "sampling.sampler": "diffusion_forcing"}

    def made(place: str, num_frames: int, prompt: Any = "a cat walks", **more: Any) -> dict[str, Any]:
        output, config = tmp_path / place / "a.mp4", {**settings, "sampling.num_frames": num_frames}
        output.parent.mkdir(exist_ok=True)
        return generate(picture, prompt, output, config=config, seed=7, **more)

    def store_of(place: str) -> CheckpointStore:
        return CheckpointStore(str(tmp_path / place / "a.mp4.ti2v"))

    def chunks(place: str) -> list[tuple[int, int, bytes]]:
        return [(record.frame, record.frames, record.to_bytes()) for record, _ in store_of(place).records("a", 1)]

    whole = made("whole", 45)
    assert [(frame, frames) for frame, frames, _ in chunks("whole")] == [(1, 20), (21, 16), (37, 16)]
    for frame in (1, 21):
        with pytest.raises(Killed):
            made("killed", 45, listener=killed_after(frame))
    assert made("killed", 45)["frames_sha256"] == whole["frames_sha256"]
    assert chunks("killed") == chunks("whole")
    made("short", 10)
    assert made("to thirty", 30)["num_frames"] == 30
    extended = go_on(store_of("short"), edit.extend(store_of("short"), "a", "30"), model)
    assert extended == latents(store_of("to thirty"), "a") == latents(store_of("whole"), "a")[:2]
    forked = go_on(store_of("whole"), edit.fork(store_of("whole"), "a", 20, "a dog sleeps", "b"), model)
    schedule = [{"from_frame": 0, "prompt": "a cat walks"}, {"from_frame": 21, "prompt": "a dog sleeps"}]
    made("schedule", 45, schedule)
    assert forked == latents(store_of("schedule"), "a")
    assert [one == other for one, other in zip(forked, latents(store_of("whole"), "a"), strict=True)] == [
        True,
        False,
        False,
    ]
    assert verify(str(tmp_path / "whole" / "a.mp4.ti2v"), deep=True)["problems"] == []


def test_the_largest_video_is_tried_out(model: SkyReelsForcing) -> None:
    try_out(Engine(model, slots=2), asked())  # type: ignore[arg-type]


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
    ("part", "old", "new", "said"),
    [
        ("scheduler", '"UniPCMultistepScheduler"', '"EulerDiscreteScheduler"', "only UniPCMultistepScheduler can be"),
        ("transformer", '"num_frame_per_block": 1', '"num_frame_per_block": 5', "is 5; it must be 1, and causal_block"),
    ],
)
def test_a_folder_that_would_be_another_model_is_refused(
    tmp_path: Path, part: str, old: str, new: str, said: str
) -> None:
    folder = write_rollout_model("skyreels", tmp_path / "model")
    assert read_info(str(folder)).window == WINDOW
    (config,) = [path for path in (folder / part).glob("*.json") if "config" in path.name]
    assert old in config.read_text()
    config.write_text(config.read_text().replace(old, new))
    with pytest.raises(ModelFolderError, match=said):
        read_info(str(folder))
