"""Wan 2.1 and 2.2 from an image (Wan Team 2025): I2V-14B, and TI2V-5B."""

from __future__ import annotations

from ti2v_dist.models.clips.family import ClipFamily, Configs, Layout

TEXT = {"text_encoder": ("UMT5EncoderModel",)}
VAE = {"vae": ("AutoencoderKLWan",)}


def wan_layout(configs: Configs, tail_step: int = 0) -> Layout:
    """Cells of the VAE, and patches of the transformer."""
    vae = configs["vae"]
    transformer = configs.get("transformer") or configs["transformer_2"]
    factor, patch = vae.get("scale_factor_spatial", 8), transformer.get("patch_size", [1, 2, 2])
    return Layout(factor, vae.get("scale_factor_temporal", 4), factor * max(patch[1:]), tail_step)


WAN_IMAGE = ClipFamily(
    adapter="wan_pipelines:WanImage",
    networks={
        **VAE,
        **TEXT,
        "transformer": ("WanTransformer3DModel",),
        "transformer_2": ("WanTransformer3DModel",),
        "image_encoder": ("CLIPVisionModel", "CLIPVisionModelWithProjection"),
    },
    optional=frozenset({"transformer", "transformer_2", "image_encoder"}),
    layout=wan_layout,
    height=480,
    width=832,
    frames=81,
    fps=16,
    guidance_scale=5.0,
    options=frozenset({"guidance_scale_2"}),
)
