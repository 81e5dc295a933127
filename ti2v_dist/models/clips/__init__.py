"""Pipelines of diffusers that make clips: one small file a family, and one line here."""

from ti2v_dist.models.clips import wan
from ti2v_dist.models.clips.family import ClipFamily

CLIPS: dict[str, ClipFamily] = {
    "WanImageToVideoPipeline": wan.WAN_IMAGE,
}
"""The class that `model_index.json` names, to its family."""
