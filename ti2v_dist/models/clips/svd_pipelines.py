"""How Stable Video Diffusion is called, and how its latents are decoded. Suffixes as in `clips/pipeline.py`."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ti2v_dist.models.clips.pipeline import ClipPipeline

DECODE_CHUNK_SIZE = 8
"""Frames that are decoded together. It decides pixels: frames see those beside them."""


class StableVideo(ClipPipeline):
    """Goes on from one frame, and reads no text. A generator draws the noise that is laid over the image."""

    arguments = frozenset({"image", "latents", "max_guidance_scale"})
    has_video_vae = False
    decoding = f"{DECODE_CHUNK_SIZE} frames at a time"

    def text(self, prompts: list[str]) -> Tensor:
        """Zeros, which nothing reads."""
        return torch.zeros(len(prompts), 1, 1)

    def text_arguments(self, text_LD: Tensor, negative_text_LD: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}

    def run(self, given: dict[str, Any], tail: list[Image.Image], noise_CFHW: Tensor) -> Tensor:
        """Guidance rises from frame to frame, up to what is asked for."""
        guidance = given.pop("guidance_scale")
        latents = noise_CFHW.transpose(0, 1)[None].to(self.dtype)
        return self.pipe(image=tail[-1], latents=latents, max_guidance_scale=guidance, **given).transpose(1, 2)

    def pixels(self, latents_1CFHW: Tensor, generator: torch.Generator) -> Tensor:
        """Some frames at a time."""
        latents_1FCHW = latents_1CFHW.transpose(1, 2).to(self.pipe.vae.dtype)
        return self.pipe.decode_latents(latents_1FCHW, latents_1FCHW.shape[1], DECODE_CHUNK_SIZE)
