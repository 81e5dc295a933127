"""LTX-Video (HaCohen et al. 2024): from an image, or from several frames."""

from __future__ import annotations

from dataclasses import replace
from math import lcm
from pathlib import Path

from ti2v_dist.models.clips.family import ClipFamily, Configs, Layout, check_value

_MULTIPLE = 32
"""Of which the pipelines want sizes, whatever the VAE's cell."""


def _layout(configs: Configs) -> Layout:
    vae = configs["vae"]
    scaled = 2 ** sum(vae.get("spatio_temporal_scaling", [True, True, True, False]))
    factor = vae.get("spatial_compression_ratio") or vae.get("patch_size", 4) * scaled
    r = vae.get("temporal_compression_ratio") or vae.get("patch_size_t", 1) * scaled
    return Layout(factor, r, lcm(_MULTIPLE, factor))


def _condition_layout(configs: Configs) -> Layout:
    layout = _layout(configs)
    return layout._replace(tail_step=layout.frames_per_latent)


def _draws_globally(configs: Configs) -> bool:
    """The VAE of 0.9.1 adds noise as it decodes; the scheduler of distilled models adds some at each step."""
    return any(configs["vae"].get("decoder_inject_noise", [])) or bool(configs["scheduler"].get("stochastic_sampling"))


def _check(folder: Path, configs: Configs) -> None:
    """Latents are noise of the transformer's channels, a token each."""
    channels = configs["vae"].get("latent_channels", 128)
    check_value(folder, configs, "transformer", "in_channels", 128, channels)
    for name in ("patch_size", "patch_size_t"):
        check_value(folder, configs, "transformer", name, 1, 1)


def _check_condition(folder: Path, configs: Configs) -> None:
    """The pipeline has timesteps of its own, which a scheduler that shifts them by the size does not take."""
    _check(folder, configs)
    check_value(folder, configs, "scheduler", "use_dynamic_shifting", False, False)


LTX_IMAGE = ClipFamily(
    adapter="ltx_pipelines:LtxImage",
    networks={
        "text_encoder": ("T5EncoderModel",),
        "vae": ("AutoencoderKLLTXVideo",),
        "transformer": ("LTXVideoTransformer3DModel",),
    },
    layout=_layout,
    height=512,
    width=704,
    frames=161,
    fps=25,
    guidance_scale=3.0,
    tokens=128,
    options=frozenset({"frame_rate", "guidance_rescale"}),
    draws_globally=_draws_globally,
    check=_check,
)
LTX_CONDITION = replace(
    LTX_IMAGE,
    adapter="ltx_pipelines:LtxCondition",
    layout=_condition_layout,
    tokens=256,
    options=LTX_IMAGE.options | {"image_cond_noise_scale"},
    check=_check_condition,
)
