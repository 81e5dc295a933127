"""FramePack's section after section, each from the latents before it, by a loop of our own.

Suffixes: B batch, C channels, F frames, K context frames, H height, W width, L tokens, D text width.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_framepack import calculate_shift
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from ti2v_dist.models.causal_vae import as_frames
from ti2v_dist.models.clips.pipeline import ClipPipeline
from ti2v_dist.models.clips.rollout import Rollout
from ti2v_dist.params import SamplingParams

HISTORY = (16, 2, 1)
"""Latents before a section, the oldest first: they are packed four by four, two by two, and not at all."""
SECTION = 9
MOST_SHIFT = math.log(7.0)


class HunyuanParts(ClipPipeline):
    """The parts of HunyuanVideo, and what is made of its two texts."""

    def text(self, prompts: list[str]) -> Tensor:
        """Llama's tokens, each with its mask behind it; and CLIP's word for all of them as a last token."""
        tokens_BLD, pooled_BD, mask_BL = self.pipe.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.tokens
        )
        marked_BLD = torch.cat([tokens_BLD.float(), mask_BL[..., None].float()], -1)
        room = marked_BLD.shape[-1] - pooled_BD.shape[-1]
        assert room >= 0, (marked_BLD.shape, pooled_BD.shape)
        return torch.cat([marked_BLD, pad(pooled_BD.float(), (0, room))[:, None]], 1)


class FramePack(Rollout):
    """A `StreamingModel` whose sections are decoded one by one, each behind the section before it.

    The pipeline fades what it decodes of a section into what the next one makes of it: that would change pictures of a
    video that is there already, and is left out.
    """

    loader = HunyuanParts
    decoding = "a section behind the one before it"

    @torch.inference_mode()
    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to float32 latent_BCHW: scaling_factor times the posterior's mean, never a sample."""
        return self.loaded.encode_image(image_BCHW) * self.pipe.vae.config.scaling_factor

    @torch.inference_mode()
    def next_section(
        self, context_CKHW: Tensor, image_HWC: Tensor, text_LD: Tensor, noise_CFHW: Tensor, params: SamplingParams
    ) -> Tensor:
        """float32 latents_CFHW of the section that follows the context, of which the first is the image's."""
        seen = self._seen(context_CKHW, image_HWC, text_LD, params.guidance_scale)
        scheduler = self._scheduler(noise_CFHW, params.num_inference_steps)
        latents_1CFHW = noise_CFHW[None]
        for t in scheduler.timesteps:
            flow_1CFHW = self.predict(latents_1CFHW, t, seen)
            latents_1CFHW = scheduler.step(flow_1CFHW.float(), t, latents_1CFHW, return_dict=False)[0]
        return latents_1CFHW[0]

    def predict(self, x_1CFHW: Tensor, t: Tensor, seen: dict[str, Tensor]) -> Tensor:
        """The flow_1CFHW of a noisy section."""
        x_1CFHW, t_1 = x_1CFHW.to(self.dtype), t.expand(1)
        return self.pipe.transformer(hidden_states=x_1CFHW, timestep=t_1, return_dict=False, **seen)[0]

    def stream(self) -> Callable[[Tensor], Tensor]:
        """Begin a video: a call gives no frame until a section is whole, and then all of the section's."""
        before, section = list[Tensor](), list[Tensor]()

        def following(latent_1CHW: Tensor) -> Tensor:
            nonlocal before, section
            section.append(latent_1CHW)
            if before and len(section) < SECTION:
                H, W = (size * self.info.vae_factor for size in latent_1CHW.shape[-2:])
                return torch.empty((0, H, W, 3), dtype=torch.uint8, device=self.device)
            latents_1CFHW = torch.stack([*before, *section], 2)
            new = self.info.frames_per_latent * SECTION if before else 1
            before, section = section, []
            return as_frames(self._decoded(latents_1CFHW))[0, -new:]

        return following

    def _decoded(self, latents_1CFHW: Tensor) -> Tensor:
        vae = self.pipe.vae
        return vae.decode(latents_1CFHW.to(self.device, vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]

    def _seen(self, context_CKHW: Tensor, image_HWC: Tensor, text_LD: Tensor, guidance_scale: float) -> dict[str, Any]:
        """All that the transformer is told of a section beside the noisy latents themselves."""
        C, _, H, W = context_CKHW.shape
        many, history = sum(HISTORY), torch.cat([context_CKHW.new_zeros(C, sum(HISTORY), H, W), context_CKHW], 1)
        by_four, by_two, alone = history[None, :, -many:].to(self.dtype).split(HISTORY, 2)
        image, *places, last, section = torch.arange(1 + many + SECTION).split([1, *HISTORY, SECTION])
        picture = self.pipe.video_processor.preprocess(Image.fromarray(image_HWC.cpu().numpy()))
        tokens_LD, pooled_D = text_LD[:-1], text_LD[-1, : self.pipe.transformer.config.pooled_projection_dim]
        guidance = torch.tensor([guidance_scale], dtype=self.dtype, device=self.device) * 1000.0
        return {
            "encoder_hidden_states": tokens_LD[None, :, :-1].to(self.dtype),
            "encoder_attention_mask": tokens_LD[None, :, -1].to(self.dtype),
            "pooled_projections": pooled_D[None].to(self.dtype),
            "image_embeds": self.pipe.encode_image(picture, device=self.device).to(self.dtype),
            "guidance": guidance,
            "indices_latents": section,
            "latents_clean": torch.cat([context_CKHW[None, :, :1].to(self.dtype), alone], 2),
            "indices_latents_clean": torch.cat([image, last]),
            "latents_history_2x": by_two,
            "indices_latents_history_2x": places[1],
            "latents_history_4x": by_four,
            "indices_latents_history_4x": places[0],
        }

    def _scheduler(self, noise_CFHW: Tensor, steps: int) -> Any:
        """A new one, for a scheduler remembers its steps; how its noise levels lie depends on the picture's size."""
        scheduler, config = (
            type(self.pipe.scheduler).from_config(self.pipe.scheduler.config),
            self.pipe.scheduler.config,
        )
        tokens = noise_CFHW[0].numel() / self.pipe.transformer.config.patch_size**2
        names = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
        mu = calculate_shift(tokens, *(config.get(name, usual) for name, usual in names.items()))
        sigmas = np.linspace(1.0, 0.0, steps + 1)[:-1]
        scheduler.set_timesteps(sigmas=sigmas, device=self.device, mu=min(mu, MOST_SHIFT))
        return scheduler
