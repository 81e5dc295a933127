"""Tiny pipelines in the layouts of published ones, with random weights that are always the same; made in code."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

WORDS = ("a", "cat", "dog", "walks", "sleeps", "red", "blue", "square", "circle", "moving", "right", "left")
SIZE = 32
"""Height and width of the pictures that they make."""


def tokenizer() -> Any:
    """T5's, of a few words."""
    special, words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)], [(f"▁{word}", -2.0) for word in WORDS]
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=[*special, *words, *letters])


def umt5() -> Any:
    return UMT5EncoderModel(
        UMT5Config(vocab_size=160, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, tie_word_embeddings=False)
    )


def wan_vae() -> Any:
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[0.5, 1.0, 2.0, 1.0],
    )


def wan_transformer(channels: int, **more: Any) -> Any:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=16,
        num_layers=2,
        rope_max_seq_len=32,
        **more,
    )


def wan_image() -> Any:
    """As Wan 2.2's I2V: the condition stands beside the noise."""
    return WanImageToVideoPipeline(
        tokenizer=tokenizer(),
        text_encoder=umt5(),
        vae=wan_vae(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        transformer=wan_transformer(12),
    )


PIPELINES: dict[str, Callable[[], Any]] = {"wan-image": wan_image}


def write_clip_model(name: str, folder: Path) -> Path:
    """Write the pipeline of a name to `folder`; returns it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = PIPELINES[name]()
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


# Text to video by rectified flow (`models/clips/flow.py`).

FLOW_WINDOW = 4
"""Latents that a tiny one sees at once."""


def wan_text(**more: Any) -> Any:
    """As Wan 2.1's T2V."""
    scheduler: Any = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    parts = {"vae": wan_vae(), "transformer": wan_transformer(4), **more}
    return WanPipeline(tokenizer=tokenizer(), text_encoder=umt5(), scheduler=scheduler, **parts)


def wan_text_of_two() -> Any:
    """As Wan 2.2's T2V-A14B: a network for the noisier timesteps, and one for the others."""
    return wan_text(transformer_2=wan_transformer(4), boundary_ratio=0.875)


def wan_text_of_patches() -> Any:
    """As Wan 2.2's TI2V-5B: a VAE of cells twice as large, and a timestep for each token."""
    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[0.5, 1.0, 2.0, 1.0],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return wan_text(vae=vae, expand_timesteps=True)


PIPELINES |= {"wan-text": wan_text, "wan-text-of-two": wan_text_of_two, "wan-text-of-patches": wan_text_of_patches}


def write_flow_model(folder: Path, name: str = "wan-text", **settings: Any) -> Path:
    """Write one of `FLOW_WINDOW` latents to `folder`; `settings` are others of its `ti2v.json`."""
    write_clip_model(name, folder)
    own = {"window": FLOW_WINDOW, "height": SIZE, "width": SIZE, "guidance_scale": 3.0, **settings}
    (folder / "ti2v.json").write_text(json.dumps(own), encoding="utf-8")
    return folder
