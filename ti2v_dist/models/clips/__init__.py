"""Pipelines of diffusers that make clips, or whose network a sampler drives: a small file a family, a line here."""

from dataclasses import replace

from ti2v_dist.models.clips import cogvideox, flow, framepack, ltx, skyreels, svd, wan
from ti2v_dist.models.clips.family import ClipFamily

CLIPS: dict[str, ClipFamily] = {
    "WanImageToVideoPipeline": wan.WAN_IMAGE,
    "WanVACEPipeline": wan.WAN_VACE,
    "LTXImageToVideoPipeline": ltx.LTX_IMAGE,
    "LTXConditionPipeline": ltx.LTX_CONDITION,
    "CogVideoXImageToVideoPipeline": cogvideox.COGVIDEOX_IMAGE,
    "StableVideoDiffusionPipeline": svd.SVD,
    # What TI2V-5B and most of LTX-Video are published as: from text alone.
    "WanPipeline": replace(flow.WAN_TEXT, others=(wan.WAN_TEXT_AND_IMAGE,)),
    "LTXPipeline": replace(ltx.LTX_IMAGE, pipeline="LTXImageToVideoPipeline"),
    "HunyuanVideoFramepackPipeline": framepack.FRAMEPACK,
    "SkyReelsV2DiffusionForcingPipeline": skyreels.DIFFUSION_FORCING,
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": skyreels.DIFFUSION_FORCING,
}
"""The class that `model_index.json` names, to its family."""
