"""How Wan's pipelines are called, and how their latents are decoded. Suffixes as in `clips/pipeline.py`."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ti2v_dist.models.causal_vae import statistics
from ti2v_dist.models.clips.pipeline import ClipPipeline


class WanPipeline(ClipPipeline):
    """What all pipelines with Wan's text encoder and VAE have in common."""

    def text(self, prompts: list[str]) -> Tensor:
        """umT5's, zeros behind the last token (`WanPipeline.encode_prompt`)."""
        return self.pipe.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=self.tokens)[0]

    def pixels(self, latents_1CFHW: Tensor, generator: torch.Generator) -> Tensor:
        """The whole clip at once, from latents of unit variance."""
        vae = self.pipe.vae
        mean, std = statistics(vae, self.device, vae.dtype)
        return vae.decode(latents_1CFHW.to(vae.dtype) * std + mean, return_dict=False)[0]


class WanImage(WanPipeline):
    """Goes on from one frame."""

    arguments = frozenset({"image", "latents", "prompt_embeds", "negative_prompt_embeds"})

    def run(self, given: dict[str, Any], tail: list[Image.Image], noise_CFHW: Tensor) -> Tensor:
        """All noise is given."""
        return self.pipe(image=tail[-1], latents=noise_CFHW[None], **given)[0]


class WanVace(WanPipeline):
    """Goes on from the frames that a mask keeps: those of the tail, which come first."""

    arguments = frozenset({"video", "mask", "latents", "prompt_embeds", "negative_prompt_embeds"})

    def run(self, given: dict[str, Any], tail: list[Image.Image], noise_CFHW: Tensor) -> Tensor:
        """All noise is given. What is to be made is gray."""
        size, made = tail[0].size, given["num_frames"] - len(tail)
        video = [*tail, *[Image.new("RGB", size, (128, 128, 128))] * made]
        mask = [*[Image.new("L", size, 0)] * len(tail), *[Image.new("L", size, 255)] * made]
        return self.pipe(video=video, mask=mask, latents=noise_CFHW[None], **given)[0]
