"""CogVideoX from an image (Yang et al. 2024): 1.0's and 1.5's 5B-I2V."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ti2v_dist.models.clips.family import ClipFamily, Configs, Layout, check_value


def _layout(configs: Configs) -> Layout:
    vae, patch = configs["vae"], configs["transformer"].get("patch_size", 2)
    factor = 2 ** (len(vae.get("block_out_channels", [128, 256, 256, 512])) - 1)
    return Layout(factor, int(vae.get("temporal_compression_ratio", 4)), factor * patch)


def _check(folder: Path, configs: Configs) -> None:
    """The image's latents stand beside the noise."""
    channels = 2 * configs["vae"].get("latent_channels", 16)
    check_value(folder, configs, "transformer", "in_channels", 16, channels)


def _variant(configs: Configs) -> Mapping[str, Any]:
    """1.5's patches reach over two latents. A text has as many tokens as in training."""
    tokens = {"tokens": configs["transformer"].get("max_text_seq_length", 226)}
    if configs["transformer"].get("patch_size_t") is not None:
        return {"height": 768, "width": 1360, "frames": 81, "fps": 16, **tokens}
    return tokens


COGVIDEOX_IMAGE = ClipFamily(
    adapter="cogvideox_pipelines:CogVideoXImage",
    networks={
        "text_encoder": ("T5EncoderModel",),
        "vae": ("AutoencoderKLCogVideoX",),
        "transformer": ("CogVideoXTransformer3DModel",),
    },
    layout=_layout,
    height=480,
    width=720,
    frames=49,
    fps=8,
    guidance_scale=6.0,
    variant=_variant,
    check=_check,
)
