"""How LTX-Video's pipelines are called, and how their latents are decoded. Suffixes as in `clips/pipeline.py`."""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from PIL import Image
from torch import Tensor

from ti2v_dist.models.clips.pipeline import ClipPipeline

DECODE_TIMESTEP, DECODE_NOISE_SCALE = 0.05, 0.025
"""What a decoder with a timestep is given: what the published models are shown with."""
_TEXT = {
    "prompt_embeds",
    "prompt_attention_mask",
    "negative_prompt_embeds",
    "negative_prompt_attention_mask",
}


class LtxPipeline(ClipPipeline):
    """What LTX-Video's pipelines have in common. A text's last column says which of its tokens are no padding."""

    has_float32_vae = False
    decoding = f"whole, timestep {DECODE_TIMESTEP}, noise {DECODE_NOISE_SCALE}"

    def text(self, prompts: list[str]) -> Tensor:
        """T5's, and the mask as one more column."""
        embeds_BLD, mask_BL, *_ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.tokens
        )
        return torch.cat([embeds_BLD, mask_BL[..., None].to(embeds_BLD.dtype)], -1)

    def text_arguments(self, text_LD: Tensor, negative_text_LD: Tensor) -> dict[str, Tensor]:
        """The column of the mask is taken off again."""
        return {
            "prompt_embeds": text_LD[None, :, :-1],
            "prompt_attention_mask": text_LD[None, :, -1] > 0.5,
            "negative_prompt_embeds": negative_text_LD[None, :, :-1],
            "negative_prompt_attention_mask": negative_text_LD[None, :, -1] > 0.5,
        }

    def pixels(self, latents_1CFHW: Tensor, generator: torch.Generator) -> Tensor:
        """The whole clip at once; where the decoder takes a timestep, with a little noise of that time."""
        vae = self.pipe.vae
        mean, std = (values.view(1, -1, 1, 1, 1).float() for values in (vae.latents_mean, vae.latents_std))
        latents = (latents_1CFHW * std / vae.config.scaling_factor + mean).to(vae.dtype)
        timestep = None
        if vae.config.timestep_conditioning:
            timestep = torch.tensor([DECODE_TIMESTEP], device=self.device, dtype=vae.dtype)
            noise = torch.randn(latents.shape, generator=generator, dtype=vae.dtype).to(self.device)
            latents = (1 - DECODE_NOISE_SCALE) * latents + DECODE_NOISE_SCALE * noise
        return vae.decode(latents, timestep, return_dict=False)[0]


class LtxImage(LtxPipeline):
    """Goes on from one frame. `latents` would take the image's place, so all noise is the generator's."""

    arguments = frozenset({"image", *_TEXT})

    def run(self, given: dict[str, Any], tail: list[Image.Image], noise_CFHW: Tensor) -> Tensor:
        """The tokens that come back are put in their places."""
        packed = self.pipe(image=tail[-1], **given)[0]
        return packed.transpose(1, 2).reshape(1, *noise_CFHW.shape)


class LtxCondition(LtxPipeline):
    """Goes on from the frames of a tail. `latents` are read in another mode alone, so all noise is the generator's."""

    arguments = frozenset({"conditions", *_TEXT})

    def run(self, given: dict[str, Any], tail: list[Image.Image], noise_CFHW: Tensor) -> Tensor:
        """The tail is a video that begins with the clip."""
        return self.pipe(conditions=[LTXVideoCondition(video=tail, frame_index=0)], **given)[0]
