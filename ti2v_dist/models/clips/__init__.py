"""Pipelines of diffusers that make clips, or whose network a sampler drives: a small file a family, a line here."""

from ti2v_dist.models.clips import flow, wan
from ti2v_dist.models.clips.family import ClipFamily

CLIPS: dict[str, ClipFamily] = {
    "WanImageToVideoPipeline": wan.WAN_IMAGE,
    "WanPipeline": flow.WAN_TEXT,
}
"""The class that `model_index.json` names, to its family."""

REFUSED: dict[str, str] = {
    "LTXPipeline": "the decoder of its VAE looks ahead (decoder_causal is false): no latent is shown without the next",
}
"""The same, to why it can have none."""
