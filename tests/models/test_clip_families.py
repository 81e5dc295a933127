"""Every family of pipelines that make clips, in tiny: a chunk is a pure function of what it is made from."""

import inspect
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support.clip_arguments import ARGUMENTS
from tests.support.clip_models import PIPELINES, SIZE, write_clip_model
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.latents import Chunk, NonFiniteLatents, Piece, VideoState
from ti2v_dist.models import ModelFolderError, load_model, read_info
from ti2v_dist.models.base import ClipModel
from ti2v_dist.models.clips.ltx_pipelines import DECODE_NOISE_SCALE, DECODE_TIMESTEP
from ti2v_dist.models.clips.pipeline import ClipPipeline, UndeclaredNoise, keyed_seed
from ti2v_dist.models.clips.svd_pipelines import DECODE_CHUNK_SIZE
from ti2v_dist.models.lost_words import lost_words
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.noise import KeyedNoise, Purpose
from ti2v_dist.state.record import Record
from ti2v_dist.trial import try_out
from ti2v_dist.video import VideoRequest

CHUNKS = 3
OPTIONS = {
    "guidance_scale_2": 1.5,
    "conditioning_scale": 0.5,
    "frame_rate": 8,
    "guidance_rescale": 0.7,
    "image_cond_noise_scale": 0.5,
    "fps": 12,
    "motion_bucket_id": 20,
    "noise_aug_strength": 0.3,
}
TAILS = ("wan-vace", "ltx-condition", "ltx-distilled")
"""Those that go on from several frames."""


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def scramble() -> None:
    """What a process has drawn before is nobody's business."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(random.SystemRandom().randrange(2**32))


@dataclass
class Tried:
    """A pipeline's folder, and the first chunks that a model of it made."""

    name: str
    folder: Path

    @cached_property
    def engine(self) -> Engine:
        return Engine(str(self.folder))

    @property
    def pipe(self) -> Any:
        """What the model runs."""
        assert isinstance(self.engine.model, ClipPipeline)
        return self.engine.model.pipe

    @cached_property
    def chain(self) -> list[tuple[VideoState, Chunk]]:
        """The chunks, and what each was made from."""
        state, chain = self.start("v0", 0, "a cat walks"), []
        for _ in range(CHUNKS):
            chunk = self.made(state)
            chain.append((state, chunk))
            state = state.push(chunk)
        return chain

    def request(self, video_id: str, seed: int, prompt: str, **params: Any) -> VideoRequest:
        clip, r = self.engine.model.info.clip, self.engine.model.info.frames_per_latent
        assert clip is not None
        chosen = {
            "num_inference_steps": 2,
            "context_frames": 1,
            "guidance_scale": 3.0,
            "clip_frames": 1 + 2 * max(r, 4),
            "tail_frames": 1 + clip.tail_step,
            **params,
        }
        sampling = SamplingParams(sampler="clip", **chosen)
        return VideoRequest(video_id, "/a.png", prompt, seed, SIZE, SIZE, sampling, num_frames=100)

    def start(self, video_id: str, seed: int, prompt: str, engine: Engine | None = None) -> VideoState:
        request = self.request(video_id, seed, prompt)
        return VideoState.start(request, (engine or self.engine).encode(request, pixels(seed)))

    def made(self, state: VideoState, engine: Engine | None = None) -> Chunk:
        (chunk,) = (engine or self.engine).advance([state])
        assert isinstance(chunk, Chunk)
        return chunk


@pytest.fixture(scope="module", params=PIPELINES)
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried(request.param, write_clip_model(request.param, tmp_path_factory.mktemp(request.param)))


def record(chunk: Chunk) -> bytes:
    return Record.of_chunk(chunk, "r" * 64, "p" * 64).to_bytes()


def test_a_chunk_is_the_same_wherever_and_whenever_it_is_made(tried: Tried) -> None:
    wanted = [record(chunk) for _, chunk in tried.chain]
    fresh = Engine(load_model(tried.engine.model.info), slots=2)
    other = tried.start("other", 7, "red square", fresh)
    again = tried.start("v0", 0, "a cat walks", fresh)
    np.testing.assert_array_equal(again.text_LD, tried.chain[0][0].text_LD)
    found = []
    for state, _ in reversed(tried.chain):
        scramble()
        _, chunk = fresh.advance([other, state])  # after and beside another one, in another slot
        assert isinstance(chunk, Chunk)
        found.append(record(chunk))
    assert found[::-1] == wanted


def test_all_that_a_chunk_is_made_from_decides_it(tried: Tried) -> None:
    state, chunk = tried.chain[1]
    assert state.tail_THWC is not None
    other_text = tried.start("v0", 0, "blue circle moving left").text_LD
    changes = {
        "tail": replace(state, tail_THWC=255 - state.tail_THWC),
        "seed": replace(state, request=replace(state.request, seed=1)),
        "frame": replace(state, frame=state.frame + 1),
        "prompt": replace(state, text_LD=other_text),
    }
    changed = {what for what, other in changes.items() if differ(tried.made(other).latents_FCHW, chunk.latents_FCHW)}
    clip = tried.engine.model.info.clip
    assert clip is not None
    assert changed == (changes.keys() if clip.reads_text else changes.keys() - {"prompt"})


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return not np.array_equal(one, other)


def shown_by(tried: Tried, state: VideoState, chunk: Chunk) -> np.ndarray:
    """uint8 frames_FHWC of the whole clip."""
    model = tried.engine.model
    assert isinstance(model, ClipModel)
    return model.show(torch.from_numpy(chunk.latents_FCHW), state.request, chunk.first_frame, pixels(0)).numpy()


def test_what_is_stored_shows_the_tail(tried: Tried) -> None:
    state, chunk = tried.chain[1]
    T, frames = state.request.params.tail_frames, state.request.params.clip_frames
    assert state.tail_THWC is not None
    assert chunk.tail_THWC is not None
    assert frames is not None
    assert T is not None
    scramble()
    shown = shown_by(tried, state, chunk)
    assert (len(shown), chunk.frames) == (frames, frames - T)
    assert len(state.tail_THWC) == len(chunk.tail_THWC) == T
    np.testing.assert_array_equal(shown[-T:], chunk.tail_THWC)
    piece = Piece(chunk.first_frame, chunk.frames, chunk.latents_FCHW)
    ((first, new),) = tried.engine.decoder.frames(state.request, pixels(0), iter([piece]))
    assert first == chunk.first_frame
    np.testing.assert_array_equal(new, shown[T:])


def test_each_frame_of_a_tail_counts(tried: Tried) -> None:
    state, chunk = tried.chain[1]
    assert state.tail_THWC is not None
    assert (len(state.tail_THWC) > 1) is (tried.name in TAILS)
    for number in range(len(state.tail_THWC)):
        tail_THWC = state.tail_THWC.copy()
        tail_THWC[number] = 255 - tail_THWC[number]
        assert differ(tried.made(replace(state, tail_THWC=tail_THWC)).latents_FCHW, chunk.latents_FCHW), number


def test_each_option_is_read(tried: Tried) -> None:
    state, chunk = tried.chain[0]
    info = tried.engine.model.info
    assert info.clip is not None
    for name in sorted(info.clip.options):
        request = tried.request("v0", 0, "a cat walks", clip_options=f"{name}={OPTIONS[name]}")
        request.check_against_model(info)
        assert differ(tried.made(replace(state, request=request)).latents_FCHW, chunk.latents_FCHW), name
    unknown = tried.request("v0", 0, "a cat walks", clip_options="sharpness=2")
    with pytest.raises(InputError, match=r"clip_options has sharpness; the model's are"):
        unknown.check_against_model(info)


def vace_arguments(tail: list[Image.Image], frames: int) -> dict[str, Any]:
    made = frames - len(tail)
    gray, black, white = (Image.new("RGB", (SIZE, SIZE), (level,) * 3) for level in (128, 0, 255))
    return {"video": tail + [gray] * made, "mask": [black] * len(tail) + [white] * made}


def plain_arguments(tried: Tried, tail: list[Image.Image], noise_CFHW: torch.Tensor, frames: int) -> dict[str, Any]:
    """What somebody gives to the pipeline who has its documentation before him."""
    latents, texts = {"latents": noise_CFHW[None]}, {"prompt": "a cat walks", "negative_prompt": ""}
    sharp = {"decode_timestep": DECODE_TIMESTEP, "decode_noise_scale": DECODE_NOISE_SCALE}
    video = diffusers.pipelines.ltx.pipeline_ltx_condition.LTXVideoCondition(video=tail)
    return {
        "WanImageToVideoPipeline": lambda: {"image": tail[-1], **latents, **texts, "guidance_scale": 3.0},
        "WanVACEPipeline": lambda: {**vace_arguments(tail, frames), **latents, **texts, "guidance_scale": 3.0},
        "LTXImageToVideoPipeline": lambda: {"image": tail[-1], **texts, **sharp, "guidance_scale": 3.0},
        "LTXConditionPipeline": lambda: {"conditions": video, **texts, **sharp, "guidance_scale": 3.0},
        "CogVideoXImageToVideoPipeline": lambda: {
            "image": tail[-1],
            "latents": noise_CFHW.transpose(0, 1)[None],
            "max_sequence_length": 16,
            **texts,
            "guidance_scale": 3.0,
        },
        "StableVideoDiffusionPipeline": lambda: {
            "image": tail[-1],
            "latents": noise_CFHW.transpose(0, 1)[None],
            "max_guidance_scale": 3.0,
            "decode_chunk_size": DECODE_CHUNK_SIZE,
        },
    }[type(tried.pipe).__name__]()


def test_the_pipeline_itself_makes_the_same_pixels(tried: Tried) -> None:
    state, chunk = tried.chain[1]
    request, frame, frames = state.request, chunk.first_frame, state.request.params.clip_frames
    assert state.tail_THWC is not None
    assert frames is not None
    F, C, H, W = chunk.latents_FCHW.shape
    noise_CFHW = KeyedNoise([0], [frame], (C, H, W)).draw(Purpose.INIT, 0, 0, F)[0]
    generator = torch.Generator().manual_seed(keyed_seed(0, frame))
    if tried.name == "cogvideox-patched":  # which is filled up with a latent that is let go
        filling = torch.randn((1, C, H, W), generator=generator)
        noise_CFHW = torch.cat([filling.transpose(0, 1), noise_CFHW], 1)

    def at_last(pipe: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """A clip may be shown long after it was made: what its decoder draws has a key of its own."""
        if step == request.params.num_inference_steps - 1:
            generator.manual_seed(keyed_seed(0, frame, "show"))
            torch.manual_seed(keyed_seed(0, frame, "show"))
        return tensors

    with torch.random.fork_rng(devices=[]):
        plain: Any = type(tried.pipe).from_pretrained(tried.folder, local_files_only=True)
        plain.set_progress_bar_config(disable=True)
        torch.manual_seed(keyed_seed(0, frame))
        tail = [Image.fromarray(image) for image in state.tail_THWC]
        found = plain(
            **plain_arguments(tried, tail, noise_CFHW, frames),
            height=SIZE,
            width=SIZE,
            num_frames=frames,
            num_inference_steps=request.params.num_inference_steps,
            generator=generator,
            callback_on_step_end=at_last,
            output_type="np",
        ).frames[0]
    np.testing.assert_array_equal(np.round(found * 255).astype(np.uint8), shown_by(tried, state, chunk))


def test_other_numbers_and_another_attention(tried: Tried) -> None:
    engine = Engine(load_model(tried.engine.model.info, dtype="bfloat16", attention="eager"))
    chunk = tried.made(tried.start("v0", 0, "a cat walks", engine), engine)
    wanted = tried.chain[0][1]
    assert differ(chunk.latents_FCHW, wanted.latents_FCHW)
    assert np.abs(chunk.latents_FCHW - wanted.latents_FCHW).mean() < 0.1 * np.abs(wanted.latents_FCHW).mean()


def test_what_is_not_read_of_a_text_is_said(tried: Tried) -> None:
    info = tried.engine.model.info
    assert info.clip is not None
    prompt = "cat dog " * info.clip.tokens
    warnings = list(lost_words(info, ["a cat walks", prompt, ""]))
    if info.clip.reads_text:
        (warning,) = warnings
        assert f"is longer than the model's {info.clip.tokens} tokens; dropped: 'dog cat" in warning
        assert len(tried.start("v0", 0, "a cat walks").text_LD) == info.clip.tokens
    else:
        assert [" is not read: " in warning for warning in warnings] == [True, True]


def test_it_can_be_tried_out(tried: Tried) -> None:
    try_out(tried.engine, tried.request("v0", 0, "a cat walks"))


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_a_pipeline_takes_what_it_took(name: str) -> None:
    taken = list(inspect.signature(getattr(diffusers, name).__call__).parameters)[1:]
    for number, (now, then) in enumerate(zip(taken, ARGUMENTS[name], strict=False)):
        assert now == then, (
            f"argument {number} of {name} is {now}, and was {then}: does `run` still give all it should?"
        )
    assert len(taken) == len(ARGUMENTS[name]), f"{name}: {set(taken) ^ set(ARGUMENTS[name])}"


def draw_in_secret(tried: Tried, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = tried.pipe.transformer
    forward = transformer.forward

    def drawing(hidden_states: torch.Tensor, **given: Any) -> Any:
        return forward(hidden_states=hidden_states + weight * torch.randn(hidden_states.shape), **given)

    monkeypatch.setattr(transformer, "forward", drawing)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried("wan-experts", write_clip_model("wan-experts", tmp_path_factory.mktemp("one")))


def test_pictures_that_overflow_are_no_tail(one: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    state, model = one.start("v0", 0, "a cat walks"), one.engine.model
    assert isinstance(model, ClipPipeline)
    pixels = type(model).pixels
    monkeypatch.setattr(type(model), "pixels", lambda *given: pixels(*given) / 0)
    (broken,) = one.engine.advance([state])
    assert isinstance(broken, NonFiniteLatents)
    assert broken.frame == 1


def test_noise_that_nobody_declared_is_refused(one: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    state = one.start("v0", 0, "a cat walks")
    draw_in_secret(one, 0.0, monkeypatch)
    with pytest.raises(UndeclaredNoise, match=r'WanImageToVideoPipeline draws from .* "global_noise": true'):
        one.engine.advance([state])


def test_noise_that_is_declared_is_keyed(one: Tried, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(one.folder, tmp_path / "m")
    (tmp_path / "m" / "ti2v.json").write_text('{"global_noise": true}')
    noisy, made = Tried(one.name, tmp_path / "m"), []
    draw_in_secret(noisy, 0.1, monkeypatch)
    state = noisy.start("v0", 0, "a cat walks")
    for seed in (0, 0, 1):
        scramble()
        made.append(noisy.made(replace(state, request=replace(state.request, seed=seed))))
    assert record(made[0]) == record(made[1])
    assert differ(made[0].latents_FCHW, one.made(state).latents_FCHW)


def config(name: str, **entries: Any) -> Callable[[Path], None]:
    """An edit of a JSON file; None takes an entry out."""

    def edit(folder: Path) -> None:
        held = json.loads((folder / name).read_text()) | entries
        (folder / name).write_text(json.dumps({name: value for name, value in held.items() if value is not None}))

    return edit


def pickled(folder: Path) -> None:
    for path in (folder / "transformer").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))


def settings(**entries: Any) -> Callable[[Path], Any]:
    return lambda folder: (folder / "ti2v.json").write_text(json.dumps(entries))


index = partial(config, "model_index.json")
FOREIGN = r"transformer is \['my_code', 'Net'\] in model_index.json; only classes of diffusers and transformers are run"
REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "unknown": ("wan-experts", index(_class_name="MochiPipeline"), r"'MochiPipeline'; known are CogVideoX.*, WanVACE"),
    "foreign": ("wan-experts", index(transformer=["my_code", "Net"]), FOREIGN),
    "pickled": ("wan-experts", pickled, r"transformer/ has only pickled weights \(.*\.bin\), which are never read"),
    "missing": ("wan-experts", index(vae=None), "model_index.json has no vae"),
    "no folder": ("wan-experts", lambda folder: shutil.rmtree(folder / "vae"), "vae/ has no config.json"),
    "other class": (
        "wan-experts",
        index(vae=["diffusers", "AutoencoderKL"]),
        "vae in model_index.json is 'AutoencoderKL'; only AutoencoderKLWan can be used",
    ),
    "text to video": (
        "wan-ti2v",
        index(expand_timesteps=False),
        "in_channels in transformer/config.json is 4; this pipeline can only be used with 12",
    ),
    "one expert": ("wan-experts", index(transformer_2=None), "boundary_ratio in model_index.json is 0.9, and there is"),
    "blind": ("wan-image", index(image_encoder=None), "model_index.json has no image_encoder, and transformer/"),
    "last frame": (
        "wan-image",
        config("transformer/config.json", pos_embed_seq_len=514),
        "pos_embed_seq_len .* is 514",
    ),
    "no vace": ("wan-vace", config("transformer/config.json", vace_in_channels=96), "vace_in_channels .* is 96; .* 72"),
    "other latents": ("ltx-image", config("transformer/config.json", in_channels=16), "in_channels .* is 16; .* 8"),
    "shifting": (
        "ltx-condition",
        config("scheduler/scheduler_config.json", use_dynamic_shifting=True),
        "use_dynamic_shifting in scheduler/scheduler_config.json is True; .* False",
    ),
    "no image": ("cogvideox", config("transformer/config.json", in_channels=4), "in_channels .* is 4; .* 8"),
    "no image either": ("svd", config("unet/config.json", in_channels=4), "in_channels in unet/.* is 4; .* 8"),
    "no tokenizer": ("ltx-image", index(tokenizer=None), "model_index.json has no tokenizer"),
    "no scheduler": ("ltx-image", index(scheduler=None), "model_index.json has no scheduler"),
    "no processor": ("svd", index(feature_extractor=None), "model_index.json has no feature_extractor"),
    "the image alone": ("wan-vace", settings(clip_frames=1), "clip_frames is 1, .* must be at least 5"),
    "too fast": ("wan-vace", settings(fps=1000), "fps is 1000; it must be a number from 1 to 240"),
    "half a latent": ("wan-vace", settings(clip_frames=80), "clip_frames is 80, .*: choose 77 or 81"),
    "no setting": ("svd", settings(steps=3), "has steps; it may state guidance_scale, fps"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_folder_that_cannot_work_is_refused(what: str, tmp_path: Path) -> None:
    name, edit, message = REFUSED[what]
    folder = write_clip_model(name, tmp_path / "m")
    edit(folder)
    with pytest.raises(InputError, match=message):
        read_info(str(folder))


@pytest.mark.parametrize(
    "entries", [{"requires_safety_checker": True}, {"upsampler": ["diffusers", "AutoencoderKLWan"]}]
)
def test_what_a_pipeline_does_not_take_is_refused_before_its_weights_are_read(
    one: Tried, tmp_path: Path, entries: dict[str, Any]
) -> None:
    shutil.copytree(one.folder, tmp_path / "m")
    shutil.copytree(tmp_path / "m" / "vae", tmp_path / "m" / "upsampler")
    index(**entries)(tmp_path / "m")
    next((tmp_path / "m" / "vae").glob("*.safetensors")).write_bytes(b"")
    (name,) = entries
    with pytest.raises(ModelFolderError, match=f"has {name}, which WanImageToVideoPipeline does not take"):
        load_model(read_info(str(tmp_path / "m")))


def test_a_projection_that_nothing_reads_is_no_fault_of_a_vision_model(tmp_path: Path) -> None:
    folder = write_clip_model("wan-image", tmp_path)
    weights = load_file(path := folder / "image_encoder" / "model.safetensors")
    save_file({**weights, "visual_projection.weight": torch.zeros(8, 16)}, path, {"format": "pt"})
    load_model(read_info(str(folder)))


def test_a_text_that_could_not_be_read_leaves_the_encoder_where_it_was(
    one: Tried, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = load_model(one.engine.model.info)
    with monkeypatch.context() as patch:
        patch.setattr(model, "text", lambda prompts: torch.randn(1))
        with pytest.raises(UndeclaredNoise):
            model.encode_text(["a cat walks"])
    assert model.pipe.text_encoder is None
    assert model.weights_sha256() == one.engine.model.weights_sha256()


@pytest.mark.parametrize(
    ("more", "asked"),
    [({"height": 2 * SIZE}, "width 32, height 64 and clip_frames 9"), ({}, "width 32, height 32 and clip_frames 13")],
)
def test_places_that_were_not_learned_are_refused(tmp_path: Path, more: dict[str, int], asked: str) -> None:
    cogvideox = Tried("cogvideox", write_clip_model("cogvideox", tmp_path))
    request = replace(cogvideox.request("v0", 0, "a cat walks", clip_frames=9 if more else 13), **more)
    image = np.concatenate([pixels(0), pixels(1)]) if more else pixels(0)
    state = VideoState.start(request, cogvideox.engine.encode(request, image))
    with pytest.raises(InputError, match=f"{asked} are asked for; .* width 32, height 32 and clip_frames 9 alone"):
        cogvideox.engine.advance([state])
