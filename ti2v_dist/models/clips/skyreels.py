"""SkyReels-V2 with diffusion forcing (Chen et al. 2025): it goes on from latents, and needs no picture of them."""

from __future__ import annotations

from pathlib import Path

from ti2v_dist.models.clips.family import ClipFamily, Configs
from ti2v_dist.models.clips.wan import NETWORKS, wan_layout
from ti2v_dist.models.folder import ModelFolderError
from ti2v_dist.specs import ROLLOUT

SCHEDULER = "UniPCMultistepScheduler"


def _check(folder: Path, configs: Configs) -> None:
    # Another one may draw noise in its steps, and would draw it from torch's global generator.
    if (name := configs["scheduler"].get("_class_name")) != SCHEDULER:
        raise ModelFolderError(f"{folder}: scheduler is {name!r}; only {SCHEDULER} can be used")
    if (block := configs["transformer"].get("num_frame_per_block", 1)) != 1:
        problem = f"num_frame_per_block in transformer/config.json is {block}"
        raise ModelFolderError(f"{folder}: {problem}; it must be 1, and causal_block_size is a setting of each video")


DIFFUSION_FORCING = ClipFamily(
    adapter="skyreels_pipelines:SkyReelsForcing",
    networks={
        **NETWORKS,
        "text_encoder": ("UMT5EncoderModel", "T5EncoderModel"),
        "transformer": ("SkyReelsV2Transformer3DModel",),
    },
    layout=wan_layout,
    height=544,
    width=960,
    frames=97,
    fps=24,
    guidance_scale=5.0,
    check=_check,
    capabilities=frozenset({ROLLOUT}),
)
"""Both pipelines, for the published weights are the same: what is given to begin with is all that differs."""
