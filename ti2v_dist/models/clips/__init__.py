"""Pipelines of diffusers that make clips: one small file a family, and one line here."""

from ti2v_dist.models.clips import framepack, skyreels, wan
from ti2v_dist.models.clips.family import ClipFamily

CLIPS: dict[str, ClipFamily] = {
    "WanImageToVideoPipeline": wan.WAN_IMAGE,
    "HunyuanVideoFramepackPipeline": framepack.FRAMEPACK,
    "SkyReelsV2DiffusionForcingPipeline": skyreels.DIFFUSION_FORCING,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": skyreels.DIFFUSION_FORCING,
}
"""The class that `model_index.json` names, to its family."""
