"""Pipelines of diffusers that make clips: one small file a family, and one line here."""

from ti2v_dist.models.clips import skyreels, wan
from ti2v_dist.models.clips.family import ClipFamily

CLIPS: dict[str, ClipFamily] = {
    "WanImageToVideoPipeline": wan.WAN_IMAGE,
    "SkyReelsV2DiffusionForcingPipeline": skyreels.DIFFUSION_FORCING,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": skyreels.DIFFUSION_FORCING,
}
"""The class that `model_index.json` names, to its family."""
