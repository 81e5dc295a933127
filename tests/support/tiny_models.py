"""Tiny random models in the diffusers layout, for tests; and the shape of the big one."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ti2v_dist.models.look_back import LookBackModules, layers_of

WINDOW = 4
SIZE = 32
"""Native height and width in pixels: latents of 4 x 4."""
TOKENS = 77
POSITIONS = 6
"""How many frames the tiny AnimateDiff can tell apart."""
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a random text-to-video model to `folder`, a pure function of `seed`, by diffusers' own pipeline.

    Every latent frame of a window influences every other, and the text influences all. Returns `folder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _new_pipeline()
    pipeline.save_pretrained(folder, safe_serialization=True)
    settings = {"window": WINDOW, "guidance_scale": 3.0, "fps": 8}
    (folder / "ti2v.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def write_tiny_animatediff(folder: Path, seed: int = 0, joined: bool = False) -> Path:
    """Write a random AnimateDiff model to `folder`, a pure function of `seed`, by diffusers' own pipelines.

    As AnimateDiffPipeline saves it; or, of the same weights, a Stable Diffusion folder with the adapter beside it, to
    be `joined` when it is loaded. Returns `folder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, adapter, tokenizer = _new_unet2d(), _new_adapter(), _new_tokenizer()
        parts: dict[str, Any] = {"vae": _new_vae(), "text_encoder": _new_text_encoder(tokenizer)}
        parts |= {"tokenizer": tokenizer, "unet": unet}
        parts["scheduler"] = DDIMScheduler(**BETAS, beta_schedule="linear", clip_sample=False, steps_offset=1)
        if joined:
            unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None}
            pipeline = StableDiffusionPipeline(**parts, **unused, requires_safety_checker=False)
            adapter.save_pretrained(folder / "motion_adapter")
        else:
            pipeline = AnimateDiffPipeline(**parts, motion_adapter=adapter)
    pipeline.save_pretrained(folder, safe_serialization=True)
    settings = {"window": WINDOW, "guidance_scale": 3.0, "fps": 8}
    (folder / "ti2v.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def write_tiny_image_model(
    folder: Path, seed: int = 0, kind: str = "image", size: int = SIZE, cell: int = 8, **schedule: Any
) -> Path:
    """Write a random Stable Diffusion folder, a pure function of `seed`, by diffusers' own pipelines.

    `kind` is image, control (with a ControlNet whose residuals are not zero), instruct (8 channels) or look_back (with
    modules of random weights); `size` its native height and width in pixels, `cell` those of a latent's cell. Returns
    `folder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, tokenizer = _new_unet2d(size // cell, 8 if kind == "instruct" else 4), _new_tokenizer()
        scheduling = {**BETAS, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1, **schedule}
        parts: dict[str, Any] = {"vae": _new_vae(cell), "text_encoder": _new_text_encoder(tokenizer)}
        parts |= {
            "tokenizer": tokenizer,
            "unet": unet,
            "scheduler": DDIMScheduler(**scheduling, set_alpha_to_one=False),
        }
        unused: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        if kind == "control":
            control: Any = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
            for weight in control.parameters():
                if not weight.any():
                    torch.nn.init.normal_(weight, std=0.1)
            pipeline: Any = StableDiffusionControlNetPipeline(**parts, **unused, controlnet=control)
        elif kind == "instruct":
            pipeline = StableDiffusionInstructPix2PixPipeline(**parts, **unused)
        else:
            pipeline = StableDiffusionPipeline(**parts, **unused)
        if kind == "look_back":
            modules = LookBackModules([channels for _, channels in layers_of(unet)], kernel=3)
            for weight in modules.parameters():
                weight.data.add_(torch.randn_like(weight), alpha=0.05)
            modules.save_pretrained(folder / "look_back")
    pipeline.save_pretrained(folder, safe_serialization=True)
    (folder / "ti2v.json").write_text(json.dumps({"guidance_scale": 3.0, "fps": 8}), encoding="utf-8")
    return folder


def _new_pipeline() -> TextToVideoSDPipeline:
    tokenizer = _new_tokenizer()
    schedule: Any = DDIMScheduler(
        **BETAS, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    return TextToVideoSDPipeline(
        vae=_new_vae(),
        text_encoder=_new_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=_new_unet(),
        scheduler=schedule,
    )


def _new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    special_ids: dict[str, Any] = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    text_config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        pad_token_id=special_ids["eos_token_id"],
        **special_ids,
    )
    return CLIPTextModel(text_config)


def _new_vae(cell: int = 8) -> AutoencoderKL:
    blocks = cell.bit_length()
    vae_shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "block_out_channels": (4,) * (blocks - 2) + (8, 8),
    }
    return AutoencoderKL(**vae_shape, layers_per_block=1, norm_num_groups=4, scaling_factor=4.0)


def _new_unet() -> UNet3DConditionModel:
    unet = UNet3DConditionModel(
        sample_size=SIZE // 8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(8, 12),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    # A fresh temporal convolution ends in zeros, which would leave the frames apart.
    for parameter in unet.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return unet


def _new_unet2d(sample_size: int = SIZE // 8, in_channels: int = 4) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=in_channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 12),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,  # the number of heads, by the library's own mistake
    )


def _new_adapter() -> MotionAdapter:
    return MotionAdapter(
        block_out_channels=(8, 12),
        motion_layers_per_block=1,
        motion_num_attention_heads=2,
        motion_norm_num_groups=4,
        motion_max_seq_length=POSITIONS,
    )


def _new_tokenizer() -> CLIPTokenizer:
    """Characters and the one word "red": a trained vocabulary would differ from one training to the next."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{c}</w>" for c in characters), "re", "red</w>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges: Any = [("r", "e"), ("re", "d</w>")]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def modelscope_unet_config() -> dict[str, Any]:
    """`unet/config.json` of ali-vilab/text-to-video-ms-1.7b, as arguments of UNet3DConditionModel."""
    return {
        "sample_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
        "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "downsample_padding": 1,
        "mid_block_scale_factor": 1,
        "act_fn": "silu",
        "norm_num_groups": 32,
        "norm_eps": 1e-5,
        "cross_attention_dim": 1024,
        "attention_head_dim": 64,
    }
