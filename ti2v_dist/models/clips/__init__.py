"""Pipelines of diffusers that make clips: one small file a family, and one line here."""

from dataclasses import replace

from ti2v_dist.models.clips import cogvideox, ltx, svd, wan
from ti2v_dist.models.clips.family import ClipFamily

CLIPS: dict[str, ClipFamily] = {
    "WanImageToVideoPipeline": wan.WAN_IMAGE,
    "WanVACEPipeline": wan.WAN_VACE,
    "LTXImageToVideoPipeline": ltx.LTX_IMAGE,
    "LTXConditionPipeline": ltx.LTX_CONDITION,
    "CogVideoXImageToVideoPipeline": cogvideox.COGVIDEOX_IMAGE,
    "StableVideoDiffusionPipeline": svd.SVD,
    # What TI2V-5B and most of LTX-Video are published as: from text alone.
    "WanPipeline": replace(wan.WAN_IMAGE, pipeline="WanImageToVideoPipeline"),
    "LTXPipeline": replace(ltx.LTX_IMAGE, pipeline="LTXImageToVideoPipeline"),
}
"""The class that `model_index.json` names, to its family."""
