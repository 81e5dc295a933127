"""Wan from an image (Wan Team 2025): 2.1's I2V-14B, 2.2's I2V-A14B and TI2V-5B; and VACE, from several frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ti2v_dist.models.clips.family import ClipFamily, Configs, Layout, check_value
from ti2v_dist.models.folder import ModelFolderError

NETWORKS = {"text_encoder": ("UMT5EncoderModel",), "vae": ("AutoencoderKLWan",)}
"""What all of them have."""


def wan_layout(configs: Configs) -> Layout:
    """Cells of the VAE, and patches of the transformer."""
    vae, factor = configs["vae"], configs["vae"].get("scale_factor_spatial", 8)
    patch = configs["transformer"].get("patch_size", [1, 2, 2])
    return Layout(factor, vae.get("scale_factor_temporal", 4), factor * max(patch[1:]))


def _vace_layout(configs: Configs) -> Layout:
    layout = wan_layout(configs)
    return layout._replace(tail_step=layout.frames_per_latent)


def _check_image(folder: Path, configs: Configs) -> None:
    """The condition stands beside the noise, or in the place of its first latent."""
    z, r = configs["vae"].get("z_dim", 16), configs["vae"].get("scale_factor_temporal", 4)
    channels = z if configs["model_index"].get("expand_timesteps") else 2 * z + r
    for part in _check_experts(folder, configs):
        check_value(folder, configs, part, "in_channels", 16, channels)
    # FLF2V's, which sees the last frame too.
    check_value(folder, configs, "transformer", "pos_embed_seq_len", None, None)
    sees = configs["transformer"].get("image_dim") is not None
    if sees and (missing := sorted({"image_encoder", "image_processor"} - configs.keys())):
        problem = f"model_index.json has no {' and no '.join(missing)}"
        raise ModelFolderError(f"{folder}: {problem}, and transformer/config.json has an image_dim")


def _check_vace(folder: Path, configs: Configs) -> None:
    """What is kept, what is not, and the mask, of which a latent has one value a pixel."""
    z, pixels = configs["vae"].get("z_dim", 16), configs["vae"].get("scale_factor_spatial", 8) ** 2
    for part in _check_experts(folder, configs):
        check_value(folder, configs, part, "in_channels", 16, z)
        check_value(folder, configs, part, "vace_in_channels", 96, 2 * z + pixels)


def _check_experts(folder: Path, configs: Configs) -> list[str]:
    """The transformers that are used: above `boundary_ratio` the first one, below it the second."""
    boundary = configs["model_index"].get("boundary_ratio")
    if boundary is None:
        return ["transformer"]
    if "transformer_2" not in configs:
        problem = f"boundary_ratio in model_index.json is {boundary!r}, and there is no transformer_2"
        raise ModelFolderError(f"{folder}: {problem}; it must be null, or the folder have both transformers")
    return ["transformer", "transformer_2"]


def _image_variant(configs: Configs) -> Mapping[str, Any]:
    """TI2V-5B, or 2.2's two experts."""
    if configs["model_index"].get("expand_timesteps"):
        return {"height": 704, "width": 1280, "frames": 121, "fps": 24}
    if configs["model_index"].get("boundary_ratio") is not None:
        return {"guidance_scale": 3.5, "options": WAN_IMAGE.options | {"guidance_scale_2"}}
    return {}


def _vace_variant(configs: Configs) -> Mapping[str, Any]:
    if configs["model_index"].get("boundary_ratio") is not None:
        return {"options": WAN_VACE.options | {"guidance_scale_2"}}
    return {}


WAN_IMAGE = ClipFamily(
    adapter="wan_pipelines:WanImage",
    networks={
        **NETWORKS,
        "transformer": ("WanTransformer3DModel",),
        "transformer_2": ("WanTransformer3DModel",),
        "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    },
    optional=frozenset({"transformer_2", "image_encoder"}),
    layout=wan_layout,
    height=480,
    width=832,
    frames=81,
    fps=16,
    guidance_scale=5.0,
    variant=_image_variant,
    check=_check_image,
)
WAN_VACE = ClipFamily(
    adapter="wan_pipelines:WanVace",
    networks={
        **NETWORKS,
        "transformer": ("WanVACETransformer3DModel",),
        "transformer_2": ("WanVACETransformer3DModel",),
    },
    optional=frozenset({"transformer_2"}),
    layout=_vace_layout,
    height=480,
    width=832,
    frames=81,
    fps=16,
    guidance_scale=5.0,
    options=frozenset({"conditioning_scale"}),
    variant=_vace_variant,
    check=_check_vace,
)
WAN_TEXT_AND_IMAGE = replace(
    WAN_IMAGE, pipeline="WanImageToVideoPipeline", suits=lambda index: bool(index.get("expand_timesteps"))
)
"""TI2V-5B, which is published as a pipeline from text alone."""
