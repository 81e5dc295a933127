"""Stable Video Diffusion (Blattmann et al. 2023): img2vid and img2vid-xt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ti2v_dist.models.clips.family import ClipFamily, Configs, Layout, check_value


def _layout(configs: Configs) -> Layout:
    """A latent is a frame; the UNet halves it at each level but one."""
    factor = 2 ** (len(configs["vae"].get("block_out_channels", [64])) - 1)
    levels = len(configs["unet"].get("block_out_channels", [320, 640, 1280, 1280]))
    return Layout(factor, 1, factor * 2 ** (levels - 1))


def _check(folder: Path, configs: Configs) -> None:
    """The image's latent stands beside the noise."""
    check_value(folder, configs, "unet", "in_channels", 8, 2 * configs["vae"].get("latent_channels", 4))


def _variant(configs: Configs) -> Mapping[str, Any]:
    """14 frames of the first one, 25 of xt."""
    return {"frames": configs["unet"].get("num_frames", 25)}


SVD = ClipFamily(
    adapter="svd_pipelines:StableVideo",
    networks={
        "vae": ("AutoencoderKLTemporalDecoder",),
        "unet": ("UNetSpatioTemporalConditionModel",),
        "image_encoder": ("CLIPVisionModelWithProjection",),
    },
    beside=frozenset({"scheduler", "feature_extractor"}),
    layout=_layout,
    height=576,
    width=1024,
    frames=25,
    fps=7,
    guidance_scale=3.0,
    reads_text=False,
    options=frozenset({"fps", "motion_bucket_id", "noise_aug_strength"}),
    variant=_variant,
    check=_check,
)
