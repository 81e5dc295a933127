"""The UNet3D family gives the numbers of diffusers' own pipeline, from every layout of its files."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, TextToVideoSDPipeline, UNet3DConditionModel
from safetensors.torch import load_file, save_file

from tests.support.tiny_models import SIZE, TOKENS, WINDOW, modelscope_unet_config, write_tiny_model
from ti2v_dist.models import load_model, read_info
from ti2v_dist.models.latent_model import LatentVideoModel
from ti2v_dist.models.lost_words import EMBEDDED_TOKENS, load_tokenizer, lost_words
from ti2v_dist.shapes.world import grammar

PROMPTS = ["a red circle moving left", "the blue square rising"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> LatentVideoModel:
    loaded = load_model(read_info(str(folder)))
    assert isinstance(loaded, LatentVideoModel)
    return loaded


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    pipeline: Any = TextToVideoSDPipeline.from_pretrained(folder, use_safetensors=True)
    pipeline.set_progress_bar_config(disable=True)
    # Whether weights want gradients decides which CPU kernels torch takes, and so the last bits.
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        network.requires_grad_(False)
    return pipeline


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object; `...` removes one."""
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_encode_text_is_the_pipelines(model: LatentVideoModel, pipeline: Any) -> None:
    expected, expected_empty = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    torch.testing.assert_close(model.encode_text(PROMPTS), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_text(["", ""]), expected_empty, rtol=0, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_attention_mask_is_used_when_the_config_says_so(copy: Path, model: LatentVideoModel) -> None:
    _edit(copy / "text_encoder" / "config.json", use_attention_mask=True)
    masked = load_model(read_info(str(copy))).encode_text(PROMPTS)
    pipeline: Any = TextToVideoSDPipeline.from_pretrained(copy)
    torch.testing.assert_close(masked, pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0], rtol=0, atol=1e-5)
    assert (masked - model.encode_text(PROMPTS)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("forward", "attention"), [("diffusers", "sdpa"), ("diffusers", "eager"), ("unet3d-1", "sdpa")]
)
def test_denoising_loop_is_the_pipelines(folder: Path, pipeline: Any, forward: str, attention: str) -> None:
    model = load_model(read_info(str(folder)), attention=attention, forward=forward)
    start, guidance, steps = _noise(2, 4, WINDOW, 4, 4), 5.0, 4
    arguments = {"num_frames": WINDOW, "num_inference_steps": steps, "guidance_scale": guidance}
    expected = pipeline(PROMPTS, latents=start, output_type="latent", **arguments).frames

    schedule: Any = DDIMScheduler.from_pretrained(folder / "scheduler")
    schedule.set_timesteps(steps)
    text = torch.cat([model.encode_text(["", ""]), model.encode_text(PROMPTS)])
    x = start
    for t in schedule.timesteps.tolist():
        empty, full = model.predict(torch.cat([x, x]), t, text).chunk(2)
        x = schedule.step(empty + guidance * (full - empty), t, x).prev_sample
    # The pipeline runs sdpa; other kernels round in proportion to latents as large as 14.
    is_alike = (forward, attention) == ("diffusers", "sdpa")
    torch.testing.assert_close(x, expected, rtol=0 if is_alike else 1e-5, atol=1e-5)
    assert (expected - start).abs().max() > 0.1

    frames = model.decode(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, WINDOW))
    video = pipeline(PROMPTS, latents=start, output_type="np", **arguments).frames
    # Half a level for the rounding, and what 1e-5 in the latents can move.
    assert (frames - torch.as_tensor(video) * 255).abs().max() < 0.51


def test_decode_is_the_pipelines(model: LatentVideoModel, pipeline: Any) -> None:
    latents = 3 * _noise(1, 4, WINDOW, 4, 4)
    with torch.inference_mode():
        video = pipeline.decode_latents(latents)
    expected = pipeline.video_processor.postprocess_video(video, output_type="pt")[0] * 255
    frames = model.decode(latents[0].transpose(0, 1))
    assert frames.dtype == torch.uint8
    assert frames.shape == (WINDOW, SIZE, SIZE, 3)
    difference = frames.float() - expected.permute(0, 2, 3, 1)
    assert difference.abs().max() <= 0.5 + 255e-5
    # Rounded, not cut: the differences lie on both sides.
    assert abs(difference[(frames > 0) & (frames < 255)].mean()) < 0.05
    assert frames.float().std() > 20


def test_encode_image_is_the_scaled_posterior_mean(model: LatentVideoModel, pipeline: Any) -> None:
    image = _noise(2, 3, SIZE, SIZE).clamp(-1, 1)
    with torch.inference_mode():
        expected = pipeline.vae.encode(image).latent_dist.mode() * pipeline.vae.config.scaling_factor
    latent = model.encode_image(image)
    torch.testing.assert_close(latent, expected, rtol=0, atol=1e-5)
    assert torch.equal(latent, model.encode_image(image))


@pytest.mark.parametrize(("dtype", "vae_dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float32)])
def test_half_precision_is_near_and_speaks_float32(
    folder: Path, model: LatentVideoModel, dtype: str, vae_dtype: torch.dtype
) -> None:
    half = load_model(read_info(str(folder)), dtype=dtype)
    assert isinstance(half, LatentVideoModel)
    assert half._unet.dtype == half._text_encoder.dtype == getattr(torch, dtype)
    assert half._vae.dtype == vae_dtype
    x, text = _noise(2, 4, WINDOW, 4, 4), model.encode_text(PROMPTS)
    noise, latent = half.predict(x, 501, text), half.encode_image(_noise(1, 3, SIZE, SIZE))
    assert noise.dtype == latent.dtype == half.encode_text(PROMPTS).dtype == torch.float32
    torch.testing.assert_close(noise, model.predict(x, 501, text), rtol=0, atol=0.05)
    difference = half.decode(latent).float() - model.decode(latent).float()
    assert difference.abs().mean() < 2


def test_everything_is_frozen(model: LatentVideoModel) -> None:
    for network in (model._unet, model._vae, model._text_encoder):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_every_frame_and_the_text_reach_every_frame(model: LatentVideoModel) -> None:
    x, text = _noise(2, 4, WINDOW, 4, 4), model.encode_text(PROMPTS)
    noise = model.predict(x, 501, text)
    for frame in range(WINDOW):
        changed = x.clone()
        changed[:, :, frame] += 1
        assert (model.predict(changed, 501, text) - noise).abs().amax((0, 1, 3, 4)).min() > 1e-3
    assert (model.predict(x, 501, text.flip(0)) - noise).abs().amax((0, 1, 3, 4)).min() > 1e-3
    assert (model.predict(x, 1, text) - noise).abs().max() > 1e-3


def test_float16_files_load_into_float32_and_serve_as_the_variant(copy: Path, model: LatentVideoModel) -> None:
    plain = [path for part in ("unet", "vae", "text_encoder") for path in (copy / part).glob("*.safetensors")]
    for path in plain:
        halves = {name: value.half() for name, value in load_file(path).items()}
        save_file(halves, path.with_suffix(".fp16.safetensors"))
    both = load_model(read_info(str(copy)))
    assert both.weights_sha256() == model.weights_sha256(), "the plain files win, the variant does not count"
    for path in plain:
        path.unlink()
    halved = load_model(read_info(str(copy)))
    assert isinstance(halved, LatentVideoModel)
    assert halved._unet.dtype == torch.float32
    x, text = _noise(1, 4, WINDOW, 4, 4), model.encode_text(PROMPTS[:1])
    torch.testing.assert_close(halved.predict(x, 501, text), model.predict(x, 501, text), rtol=0, atol=5e-3)
    assert halved.weights_sha256() != model.weights_sha256()


def test_sharded_weights_load(copy: Path, model: LatentVideoModel) -> None:
    unet = UNet3DConditionModel.from_pretrained(copy / "unet")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(copy / "unet", max_shard_size="200KB")
    assert len(list((copy / "unet").glob("*-of-*.safetensors"))) > 1
    x, text = _noise(1, 4, WINDOW, 4, 4), model.encode_text(PROMPTS[:1])
    assert torch.equal(load_model(read_info(str(copy))).predict(x, 9, text), model.predict(x, 9, text))


def test_names_of_older_files_load(copy: Path, model: LatentVideoModel) -> None:
    """Files of 2023 call the VAE's projections query, key, value, proj_attn, and the tokenizer has two files."""
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        weights = {name.replace(f".{new}.", f".{old}."): value for name, value in weights.items()}
    save_file(weights, path)
    path = copy / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name}": value for name, value in load_file(path).items()}
    save_file({**weights, "text_model.embeddings.position_ids": torch.arange(TOKENS)[None]}, path)
    path = copy / "tokenizer" / "tokenizer.json"
    learned = json.loads(path.read_text())["model"]
    path.unlink()
    (copy / "tokenizer" / "vocab.json").write_text(json.dumps(learned["vocab"]))
    merges = [" ".join(merge) for merge in learned["merges"]]
    (copy / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")

    older = load_model(read_info(str(copy)))
    assert torch.equal(older.encode_text(PROMPTS), model.encode_text(PROMPTS))
    latent = _noise(1, 4, 4, 4)
    assert torch.equal(older.decode(latent), model.decode(latent))


def test_weights_hash_follows_weights_and_configs(folder: Path, copy: Path, tmp_path: Path) -> None:
    original = load_model(read_info(str(folder))).weights_sha256()
    assert len(original) == 64
    (copy / "README.md").write_text("not a weight")
    assert load_model(read_info(str(copy))).weights_sha256() == original
    again = write_tiny_model(tmp_path / "again")
    assert load_model(read_info(str(again))).weights_sha256() == original, "the tiny model is a function of its seed"
    other = write_tiny_model(tmp_path / "other", seed=1)
    assert load_model(read_info(str(other))).weights_sha256() != original
    _edit(copy / "vae" / "config.json", scaling_factor=2.0)
    assert load_model(read_info(str(copy))).weights_sha256() != original


def test_modelscopes_unet_can_be_described() -> None:
    with torch.device("meta"):
        unet = UNet3DConditionModel(**modelscope_unet_config())
    assert sum(parameter.numel() for parameter in unet.parameters()) == 1_411_233_860


def test_a_too_long_prompt_is_cut_as_the_pipeline_cuts_it(model: LatentVideoModel, pipeline: Any) -> None:
    # 75 tokens fit between the two marks: 14 times 5, 4 more, and the G.
    prompt = "x, red yz " * 14 + "x, red y Green 円 triangle"
    (told,) = lost_words(model.info, [prompt, prompt])
    assert "77 tokens; dropped: 'Green 円 triangle'" in told
    expected = pipeline.encode_prompt([prompt], "cpu", 1, False)[0]
    torch.testing.assert_close(model.encode_text([prompt]), expected, rtol=0, atol=1e-5)


def test_of_a_fitting_prompt_nothing_is_lost(model: LatentVideoModel) -> None:
    assert list(lost_words(model.info, [*PROMPTS, "", "a horse"])) == []


def test_the_shapes_model_knows_the_words_of_its_grammar_alone() -> None:
    shapes = read_info("shapes")
    assert list(lost_words(shapes, ["A red circle, moving left.", ""])) == []
    *_, told = lost_words(shapes, ["a horse, the horse, a круг"])
    assert "never saw horse, круг; its words are a, at" in told
    (told,) = lost_words(shapes, ["a red circle, " * 4])
    assert "16 tokens; dropped: 'circle, '" in told


@pytest.mark.parametrize("name", ["shapes", "shapes-image", "shapes-look-back"])
def test_a_word_of_the_grammar_is_one_token(name: str) -> None:
    tokenizer = load_tokenizer(read_info(name))
    assert tokenizer.model_max_length == EMBEDDED_TOKENS
    for word in {*grammar(), *".,;:!?-'"}:
        assert len(tokenizer(word)["input_ids"]) == 3, word
