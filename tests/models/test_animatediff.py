"""AnimateDiff: the numbers of diffusers' own pipeline, and the engine's properties, from both layouts of a folder."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import inspect
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AnimateDiffPipeline, DDIMScheduler, MotionAdapter, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support import one_chain
from tests.support.cli_runs import Killed, environment, generate_arguments
from tests.support.places import ROOT
from tests.support.tiny_models import POSITIONS, SIZE, WINDOW, write_tiny_animatediff
from ti2v_dist.config import load_config
from ti2v_dist.engine import Engine
from ti2v_dist.latents import Chunk, NonFiniteLatents, VideoState
from ti2v_dist.models import ModelFolderError, load_model, read_info
from ti2v_dist.models.animatediff import BLOCKS, MOTION_UNET, SCHEDULERS
from ti2v_dist.models.base import VideoModel
from ti2v_dist.models.latent_model import LatentVideoModel
from ti2v_dist.operations.generate import generate
from ti2v_dist.params import SamplingParams
from ti2v_dist.prompts import Prompt, PromptFrom
from ti2v_dist.schedules import VP
from ti2v_dist.video import VideoRequest

PROMPTS = ("a red circle moving left", "a blue square moving up", "a still green triangle", "an orange circle")
PARAMS = SamplingParams(num_inference_steps=2, resample_iterations=2, guidance_scale=3.0, context_frames=WINDOW - 1)
SCHEDULER = "scheduler/scheduler_config.json"
UNET, ADAPTER = "unet/config.json", "motion_adapter/config.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two layouts of one model."""
    root = tmp_path_factory.mktemp("animatediff")
    return {
        "saved": write_tiny_animatediff(root / "saved", seed=3),
        "joined": write_tiny_animatediff(root / "joined", seed=3, joined=True),
    }


@pytest.fixture(scope="module")
def models(folders: dict[str, Path]) -> dict[str, VideoModel]:
    return {layout: load_model(read_info(str(folder))) for layout, folder in folders.items()}


@pytest.fixture(scope="module")
def model(models: dict[str, VideoModel]) -> VideoModel:
    return models["saved"]


@pytest.fixture(scope="module")
def engine(model: VideoModel) -> Engine:
    return Engine(model, slots=4)


@pytest.fixture
def copies(folders: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    return {layout: Path(shutil.copytree(folder, tmp_path / layout)) for layout, folder in folders.items()}


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object; `...` removes one."""
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def gaussian(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


# The numbers


def pipeline_of(folder: Path) -> Any:
    adapter = MotionAdapter.from_pretrained(folder / "motion_adapter", use_safetensors=True)
    pipeline: Any = AnimateDiffPipeline.from_pretrained(folder, motion_adapter=adapter, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    # Whether weights want gradients decides which CPU kernels torch takes, and so the last bits.
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.requires_grad_(False)
    return pipeline


@pytest.mark.parametrize("layout", ["saved", "joined"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_noise_is_that_of_every_call_of_the_pipeline(folders: dict[str, Path], layout: str, attention: str) -> None:
    pipeline, calls = pipeline_of(folders[layout]), []

    def note(network: Any, given: tuple, named: dict[str, Any], made: Any) -> None:
        calls.append((given[0].clone(), int(given[1]), named["encoder_hidden_states"], made.sample))

    pipeline.unet.register_forward_hook(note, with_kwargs=True)
    start = gaussian(2, 4, WINDOW, 4, 4)
    prompts = list(PROMPTS[:2])
    pipeline(prompts, num_frames=WINDOW, num_inference_steps=3, latents=start, output_type="latent")
    assert len(calls) == 3
    model = load_model(read_info(str(folders[layout])), attention=attention)
    text = torch.cat([model.encode_text(["", ""]), model.encode_text(prompts)])
    close = 1e-6 if attention == "sdpa" else 1e-5  # the pipeline runs sdpa; another kernel rounds otherwise
    for x, t, per_frame, expected in calls:
        assert per_frame.shape[0] == len(text) * WINDOW
        torch.testing.assert_close(text, per_frame[::WINDOW], rtol=0, atol=close)
        eps = model.predict(x, t, text)
        assert eps.shape == x.shape
        torch.testing.assert_close(eps, expected, rtol=0, atol=close)
    assert (calls[0][3] - calls[0][0]).abs().max() > 0.1


def test_pixels_are_the_pipelines(model: VideoModel, folders: dict[str, Path]) -> None:
    pipeline, latents = pipeline_of(folders["saved"]), 3 * gaussian(1, 4, WINDOW, 4, 4)
    with torch.inference_mode():
        expected = pipeline.video_processor.postprocess_video(pipeline.decode_latents(latents), output_type="pt")[0]
    frames = model.decode(latents[0].transpose(0, 1))
    assert (frames.float() - 255 * expected.permute(0, 2, 3, 1)).abs().max() <= 0.5 + 255e-5


def test_both_layouts_are_one_model_of_two_names(models: dict[str, VideoModel]) -> None:
    saved, joined = models["saved"], models["joined"]
    x, text = gaussian(2, 4, WINDOW, 4, 4), saved.encode_text(PROMPTS[:2])
    assert torch.equal(joined.predict(x, 501, text), saved.predict(x, 501, text))
    assert saved.weights_sha256() != joined.weights_sha256()


def test_every_frame_and_the_text_reach_every_frame(model: VideoModel) -> None:
    x, text = gaussian(2, 4, WINDOW, 4, 4), model.encode_text(PROMPTS[:2])
    eps = model.predict(x, 501, text)
    for frame in range(WINDOW):
        changed = x.clone()
        changed[:, :, frame] += 1
        assert (model.predict(changed, 501, text) - eps).abs().amax((0, 1, 3, 4)).min() > 1e-3
    assert (model.predict(x, 501, text.flip(0)) - eps).abs().amax((0, 1, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("layout", ["saved", "joined"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(folders: dict[str, Path], model: VideoModel, layout: str, dtype: str) -> None:
    half = load_model(read_info(str(folders[layout])), dtype=dtype)
    assert isinstance(half, LatentVideoModel)
    assert {value.dtype for value in half._unet.state_dict().values()} == {getattr(torch, dtype)}
    x, text = gaussian(2, 4, WINDOW, 4, 4), model.encode_text(PROMPTS[:2])
    torch.testing.assert_close(half.predict(x, 501, text), model.predict(x, 501, text), rtol=0, atol=0.05)


# What a folder says


def test_what_a_folder_does_not_say_is_the_familys(copies: dict[str, Path]) -> None:
    for layout, config in (("saved", UNET), ("joined", ADAPTER)):
        (copies[layout] / "ti2v.json").unlink()
        info = read_info(str(copies[layout]))
        assert (info.window, info.guidance_scale, info.fps) == (POSITIONS, 7.5, 8)
        assert (info.height, info.width, info.vae_factor) == (SIZE, SIZE, 8)
        for length, window in ((24, 16), (..., 16)):
            edit(copies[layout] / config, motion_max_seq_length=length)
            assert read_info(str(copies[layout])).window == window


def test_published_folders_are_taken_as_they_are(copies: dict[str, Path]) -> None:
    """Stable Diffusion 1.5, whose sizes are most of diffusers' defaults, with the adapter v1-4."""
    folder = copies["joined"]
    (folder / "ti2v.json").unlink()
    edit(folder / "text_encoder" / "config.json", hidden_size=768)
    unet = {"_class_name": "UNet2DConditionModel", "block_out_channels": list(BLOCKS), "attention_head_dim": 8}
    unet |= {"center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0, "norm_num_groups": 32}
    (folder / UNET).write_text(json.dumps({**unet, "cross_attention_dim": 768, "sample_size": 64}))
    adapter = {"_class_name": "MotionAdapter", "block_out_channels": list(BLOCKS), "motion_activation_fn": "geglu"}
    adapter |= {"motion_attention_bias": False, "motion_cross_attention_dim": None, "motion_layers_per_block": 2}
    adapter |= {"motion_norm_num_groups": 32, "motion_max_seq_length": 24, "use_motion_mid_block": False}
    (folder / ADAPTER).write_text(json.dumps(adapter))
    schedule = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "trained_betas": None}
    schedule |= {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "set_alpha_to_one": False}
    (folder / SCHEDULER).write_text(json.dumps({**schedule, "skip_prk_steps": True, "steps_offset": 1}))
    info = read_info(str(folder))
    assert (info.window, info.height, info.width, info.guidance_scale, info.fps) == (16, 512, 512, 7.5, 8)


def alphas(schedule: str) -> torch.Tensor:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=schedule).alphas_cumprod.double()


@pytest.mark.parametrize(
    ("changes", "schedule"),
    [
        ({}, "linear"),
        ({"timestep_spacing": "linspace", "set_alpha_to_one": False, "steps_offset": 0}, "linear"),
        ({"_class_name": "PNDMScheduler", "clip_sample": ..., "beta_schedule": "scaled_linear"}, "scaled_linear"),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "linear"),
        ({"_class_name": "EulerDiscreteScheduler", "clip_sample": ..., "use_karras_sigmas": True}, "linear"),
    ],
)
def test_schedules_of_the_same_noise_levels_are_accepted(
    copies: dict[str, Path], capfd: pytest.CaptureFixture, changes: dict[str, Any], schedule: str
) -> None:
    edit(copies["joined"] / SCHEDULER, **changes)
    loaded = load_model(read_info(str(copies["joined"]))).schedule
    assert isinstance(loaded, VP)
    assert loaded.alphas_cumprod == alphas(schedule).tolist()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_schedulers_make_their_noise_levels_alike(name: str) -> None:
    scheduler_class = getattr(diffusers, name)
    signature = inspect.signature(scheduler_class.__init__).parameters
    own = {key: signature[key].default for key in MOTION_UNET.schedule if key in signature}
    defaults = {key: default for key, (_, default) in MOTION_UNET.schedule.items()}
    assert own == {key: defaults[key] for key in own}
    assert {*defaults} - {*own} <= {"clip_sample", "thresholding", "rescale_betas_zero_snr"}
    for schedule in ("linear", "scaled_linear"):
        made = scheduler_class(beta_start=0.00085, beta_end=0.012, beta_schedule=schedule)
        assert torch.equal(made.alphas_cumprod.double(), alphas(schedule))


def _json(name: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / name, **changes)


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / name)


def _pickle_adapter(folder: Path) -> None:
    path = folder / "motion_adapter" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_name("motion.bin"))
    path.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_json(SCHEDULER, prediction_type="v_prediction"), "prediction_type is 'v_prediction', needed is 'epsilon'"),
        (_json(SCHEDULER, rescale_betas_zero_snr=True), "rescale_betas_zero_snr is True, needed is False"),
        (_json(SCHEDULER, beta_schedule="squaredcos_cap_v2"), "'squaredcos.*needed is 'scaled_linear' or 'linear'"),
        (_json(SCHEDULER, beta_start=..., beta_end=...), r"beta_start is 0\.0001 .absent.*beta_end is 0\.02 .absent"),
        (_json(SCHEDULER, trained_betas=[0.1]), r"trained_betas is \[0\.1\], needed is None"),
        (_json(SCHEDULER, clip_sample=...), "clip_sample is True .absent, diffusers' default., needed is False"),
        (_json(SCHEDULER, thresholding=True), "thresholding is True"),
        (_json(SCHEDULER, _class_name="LCMScheduler"), "'LCMScheduler'; only DDIMScheduler or PNDMScheduler or Euler"),
        (_json("ti2v.json", window=POSITIONS + 1), r"ti2v\.json: window is 7; .* from 2 to 6, the motion_max_seq_leng"),
        (_json("ti2v.json", window=1), "window is 1; it must be a whole number from 2 to 6"),
        (_json(UNET, cross_attention_dim=8), r"unet/config\.json has cross_attention_dim 8, but text_enc.* 16"),
        (_json(UNET, cross_attention_dim=...), "has cross_attention_dim 1280, but"),
        (
            _json(UNET, in_channels=9),
            r"unet/config\.json has in_channels 9, but vae/config\.json has latent_channels 4",
        ),
        (_json(UNET, addition_embed_type="text_time"), "addition_embed_type 'text_time'; only None can .* Diffusion 1"),
        (_json(UNET, encoder_hid_dim_type="ip_image_proj"), "encoder_hid_dim_type 'ip_image_proj'; only None"),
        (_json(UNET, sample_size=[4, 4]), r"unet/config\.json has sample_size \[4, 4\]"),
    ],
)
@pytest.mark.parametrize("layout", ["saved", "joined"])
def test_what_the_samplers_cannot_do_is_refused_by_name(
    copies: dict[str, Path], layout: str, change: Callable[[Path], None], message: str
) -> None:
    change(copies[layout])
    with pytest.raises(ModelFolderError, match=message):
        read_info(str(copies[layout]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / ADAPTER).unlink(), r"motion_adapter/config\.json is missing"),
        (_json(ADAPTER, _class_name="ControlNetModel"), "'ControlNetModel'; only MotionAdapter can be used"),
        (_json(ADAPTER, motion_max_seq_length=None), r"motion_adapter/config\.json has motion_max_seq_length None"),
        (
            _json(ADAPTER, motion_max_seq_length=3),
            r"window is 4; .* from 2 to 3, the .* of motion_adapter/config\.json",
        ),
        (_json(ADAPTER, block_out_channels=[8, 16]), r"has block_out_channels \[8, 16\], but unet/.* \[8, 12\]"),
        (_json(ADAPTER, block_out_channels=...), r"has block_out_channels \[320, .*\], but unet/config\.json has"),
        (_json(ADAPTER, motion_layers_per_block=2), r"motion_layers_per_block 2, but unet/.* layers_per_block 1"),
        (_json(ADAPTER, motion_layers_per_block=[1, 2]), r"motion_layers_per_block \[1, 2\], but unet/.* 1"),
        (_json(ADAPTER, motion_norm_num_groups=2), r"motion_norm_num_groups 2, but unet/.* norm_num_groups 4"),
        (_json(ADAPTER, conv_in_channels=9), r"motion_adapter/config\.json has conv_in_channels 9; only None"),
        (_json(UNET, class_embed_type="timestep"), r"unet/config\.json has class_embed_type 'timestep'; only None"),
        (_json(UNET, flip_sin_to_cos=False), r"unet/config\.json has flip_sin_to_cos False; only True"),
        (_pickle_adapter, r"motion_adapter/ has only pickled weights \(motion\.bin\), which are never read"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(
    copies: dict[str, Path], change: Callable[[Path], None], message: str
) -> None:
    change(copies["joined"])
    with pytest.raises(ModelFolderError, match=message):
        read_info(str(copies["joined"]))


def test_a_config_of_the_wrong_kind_is_told_in_one_line(copies: dict[str, Path]) -> None:
    edit(copies["saved"] / UNET, num_attention_heads=None)
    with pytest.raises(ModelFolderError, match=r"unet/diffusion_pytorch_model\.safetensors cannot be loaded: [^\n]*$"):
        load_model(read_info(str(copies["saved"])))


def test_layers_told_for_each_block_are_the_same_layers(copies: dict[str, Path], model: VideoModel) -> None:
    edit(copies["joined"] / ADAPTER, motion_layers_per_block=[1, 1])
    x, text = gaussian(1, 4, WINDOW, 4, 4), model.encode_text(PROMPTS[:1])
    listed = load_model(read_info(str(copies["joined"])))
    assert torch.equal(listed.predict(x, 501, text), model.predict(x, 501, text))


@pytest.mark.parametrize(
    ("layout", "part", "name"),
    [
        ("saved", "unet", "down_blocks.0.motion_modules.0.proj_in.weight"),
        ("joined", "motion_adapter", "up_blocks.1.motion_modules.0.proj_in.weight"),
        ("joined", "unet", "mid_block.attentions.0.proj_in.weight"),
    ],
)
@pytest.mark.parametrize("damage", ["absent", "unknown", "other shape", "truncated"])
def test_damaged_weights_are_refused(copies: dict[str, Path], layout: str, part: str, name: str, damage: str) -> None:
    path = copies[layout] / part / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    if damage == "absent":
        del weights[name]
    elif damage == "other shape":
        weights[name] = weights[name][:3].clone()
    elif damage == "unknown":
        weights[f"more.{name}"] = weights[name].clone()
    save_file(weights, path, {"format": "pt"})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    said = {
        "absent": f"lacks 1 weights that {part}/config.json asks for: {name}",
        "unknown": f"has 1 weights for which {part}/config.json has no place: more.{name}",
        "other shape": f"weight {name} has shape (3, ",
        "truncated": "cannot be loaded: ",
    }
    with pytest.raises(ModelFolderError) as caught:
        load_model(read_info(str(copies[layout])))
    assert f"{part}/diffusion_pytorch_model.safetensors" in str(caught.value)
    assert said[damage] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_library_would_leave_out_without_a_word_is_refused(copies: dict[str, Path]) -> None:
    unet: Any = UNet2DConditionModel.from_pretrained(copies["joined"] / "unet")
    more: Any = UNet2DConditionModel.from_config(unet.config, num_class_embeds=3)
    more.save_pretrained(copies["joined"] / "unet")
    with pytest.raises(ModelFolderError, match=r"motion_adapter/ does not fit unet/: without a place: class_embedding"):
        load_model(read_info(str(copies["joined"])))


def test_an_adapter_without_a_middle_block_is_joined(copies: dict[str, Path]) -> None:
    adapter: Any = MotionAdapter.from_pretrained(copies["joined"] / "motion_adapter")
    older: Any = MotionAdapter.from_config(adapter.config, use_motion_mid_block=False)
    older.save_pretrained(copies["joined"] / "motion_adapter")
    model = load_model(read_info(str(copies["joined"])))
    assert isinstance(model, LatentVideoModel)
    assert not [name for name in model._unet.state_dict() if "mid_block.motion" in name]


def test_the_weights_hash_covers_the_adapter_where_it_is_read(
    copies: dict[str, Path], models: dict[str, VideoModel]
) -> None:
    before = {layout: model.weights_sha256() for layout, model in models.items()}
    shutil.rmtree(copies["saved"] / "motion_adapter")
    assert load_model(read_info(str(copies["saved"]))).weights_sha256() == before["saved"], "unet/ has its modules"
    edit(copies["joined"] / ADAPTER, motion_max_seq_length=POSITIONS, _diffusers_version="0.1")
    configured = load_model(read_info(str(copies["joined"]))).weights_sha256()
    path = copies["joined"] / "motion_adapter" / "diffusion_pytorch_model.safetensors"
    save_file({name: 2 * value for name, value in load_file(path).items()}, path, {"format": "pt"})
    assert len({before["joined"], configured, load_model(read_info(str(copies["joined"]))).weights_sha256()}) == 3


def test_loading_says_nothing(copies: dict[str, Path], capfd: pytest.CaptureFixture) -> None:
    """Nor of what older versions of diffusers wrote into configs."""
    edit(copies["joined"] / ADAPTER, motion_activation_fn="geglu", motion_cross_attention_dim=None)
    for folder in copies.values():
        load_model(read_info(str(folder)))
    assert capfd.readouterr() == ("", "")


# The engine


def request(i: int = 0, prompt: Prompt | None = None, num_frames: int = 6, **changes: Any) -> VideoRequest:
    params = replace(PARAMS, guidance_scale=3.0 + i, **changes)
    return VideoRequest(f"v{i}", f"/{i}.png", prompt or PROMPTS[i], 100 + i, SIZE, SIZE, params, num_frames)


def start(engine: Engine, asked: VideoRequest) -> VideoState:
    image = np.random.default_rng(asked.seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    return VideoState.start(asked, engine.encode(asked, image))


def advance(engine: Engine, states: Sequence[VideoState]) -> list[Chunk]:
    results: list[Chunk | NonFiniteLatents] = engine.advance(states)
    assert all(isinstance(result, Chunk) for result in results), results
    return [result for result in results if isinstance(result, Chunk)]


def finish(engine: Engine, state: VideoState) -> list[np.ndarray]:
    """The new latents of a video, alone in its batch."""
    made = []
    while not state.is_complete:
        (chunk,) = advance(engine, [state])
        made.append(chunk.latents_FCHW)
        state = state.push(chunk)
    return made


@pytest.mark.parametrize("sampler", ["ti2v_zero", "ti2v_zero_reference", "replace"])
def test_bits_depend_neither_on_neighbours_nor_on_the_slot(engine: Engine, sampler: str) -> None:
    frames = WINDOW if sampler == "replace" else 6
    videos = [start(engine, request(i, sampler=sampler, num_frames=frames)) for i in range(4)]
    if sampler != "replace":
        videos[2] = videos[2].push(advance(engine, [videos[2]])[0])  # frame index differs too
    together = advance(engine, videos)
    backwards = advance(engine, videos[::-1])[::-1]
    alone = [advance(engine, [video])[0] for video in videos]
    pair = advance(engine, [videos[3], videos[1]])
    moved = [*zip(backwards, together, strict=True), *zip(alone, together, strict=True)]
    for chunk, expected in [*moved, (pair[0], together[3]), (pair[1], together[1])]:
        assert np.array_equal(chunk.latents_FCHW, expected.latents_FCHW)
    assert len({chunk.latents_FCHW.tobytes() for chunk in together}) == 4
    assert together[0].latents_FCHW.shape == (WINDOW - 1 if sampler == "replace" else 1, 4, SIZE // 8, SIZE // 8)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_bits_are_a_videos_own_at_other_slot_counts(model: VideoModel, slots: int) -> None:
    engine = Engine(model, slots)
    videos = [start(engine, request(i)) for i in range(slots)]
    together = advance(engine, videos)
    for turn in range(slots):
        turned = advance(engine, videos[turn:] + videos[:turn])
        for chunk, expected in zip(turned, together[turn:] + together[:turn], strict=True):
            assert np.array_equal(chunk.latents_FCHW, expected.latents_FCHW)


def test_a_run_goes_on_from_a_stored_queue(engine: Engine, folders: dict[str, Path], tmp_path: Path) -> None:
    state = start(engine, request(1))
    whole = finish(engine, state)
    for _ in range(2):
        state = state.push(advance(engine, [state])[0])
    np.save(tmp_path / "queue.npy", state.queue.latents_KCHW)
    stored = replace(state, queue=type(state.queue)(np.load(tmp_path / "queue.npy")))
    joined = Engine(load_model(read_info(str(folders["joined"]))), slots=4)
    for other in (engine, joined):
        assert np.array_equal(finish(other, stored), whole[2:])


def test_a_fork_shares_its_frames_until_its_prompt_changes(engine: Engine) -> None:
    schedule: list[PromptFrom] = [{"from_frame": 0, "prompt": PROMPTS[0]}, {"from_frame": 3, "prompt": PROMPTS[1]}]
    plain, forked = (finish(engine, start(engine, request(prompt=prompt))) for prompt in (PROMPTS[0], schedule))
    same = [np.array_equal(one, other) for one, other in zip(plain, forked, strict=True)]
    assert same == [True, True, False, False, False], "frames 1 to 5"


def test_three_processes_make_the_same_bits_in_other_company(folders: dict[str, Path]) -> None:
    module = ["-m", one_chain.__name__]
    given = [[*module, str(folders["saved"]), "8", "7"], [*module, str(folders["joined"]), "7"]]
    options: dict[str, Any] = {
        "env": environment(),
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "cwd": ROOT,
    }
    processes = [subprocess.Popen([sys.executable, *words], **options) for words in given]
    here = one_chain.digest(folders["saved"], [9, 7])
    told = [process.communicate(timeout=240) for process in processes]
    assert [digest.strip() for digest, _ in told] == [here, here], told


def test_generate_goes_on_after_a_kill(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames, prompt = 24, "a red cat"
    small = [f"sampling.num_frames={frames}", "sampling.num_inference_steps=2", "sampling.resample_iterations=2"]
    config = load_config(None, [f"model.id={folders['joined']}", *small])
    down, right = np.mgrid[0:SIZE, 0:SIZE] * (255 / SIZE)
    rows = {}
    for name in ("killed", "undisturbed"):
        folder = tmp_path / name
        folder.mkdir()
        Image.fromarray(np.stack([down, right, 255 - down], axis=-1).astype(np.uint8)).save(folder / "first.png")
        if name == "killed":
            work = Killed(folder, generate_arguments("first.png", folders["joined"], "cat.mp4", frames, prompt))
            assert work.until(lambda work=work: work.settled() >= 3, signal.SIGKILL) == -signal.SIGKILL
            assert 3 <= work.settled() < frames - 1
            assert not work.output.exists()
        monkeypatch.chdir(folder)
        rows[name] = generate("first.png", prompt, "cat.mp4", seed=7, config=config)
    assert rows["killed"]["frames_sha256"] == rows["undisturbed"]["frames_sha256"]
    assert (tmp_path / "killed" / "cat.mp4").read_bytes() == (tmp_path / "undisturbed" / "cat.mp4").read_bytes()
