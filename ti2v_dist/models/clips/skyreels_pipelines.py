"""SkyReels-V2's window after window, each from the last latents before it, by a loop of our own.

The pipelines of diffusers make all windows of a video in one call; this is one of them, with all noise given.
Suffixes: B batch, C channels, F frames, K context frames, S steps, H height, W width, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ti2v_dist.models.causal_vae import statistics, stream_wan
from ti2v_dist.models.clips.rollout import Rollout
from ti2v_dist.models.clips.wan_pipelines import WanPipeline
from ti2v_dist.params import SamplingParams

RATE = 1
"""The embedding of 24 frames per second, which the models are published for; the other one, 0, is of 16."""


class SkyReelsForcing(Rollout):
    """A `StreamingModel`: a window in which each latent has its own noise level, decoded by Wan's causal VAE."""

    loader = WanPipeline

    @torch.inference_mode()
    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to float32 latent_BCHW: the posterior's mean, of zero mean and unit variance."""
        mean, scale = self._statistics()
        return (self.loaded.encode_image(image_BCHW) - mean[:, :, 0]) * scale[:, :, 0]

    @torch.inference_mode()
    def go_on(
        self,
        context_CKHW: Tensor,
        text_LD: Tensor,
        negative_text_LD: Tensor,
        noise_CFHW: Tensor,
        noise_of: Callable[[int], Tensor],
        params: SamplingParams,
    ) -> Tensor:
        """float32 latents_CFHW of a window that begins with the context.

        `noise_of` gives the noise_CKHW that is mixed into the context in a step; the other latents begin as
        `noise_CFHW`.
        """
        K, weight = context_CKHW.shape[1], params.addnoise_condition
        assert weight is not None
        texts = text_LD.to(self.dtype), negative_text_LD.to(self.dtype)
        schedulers, t_SF, is_updated_SF = self._steps(K, noise_CFHW.shape[1], params)
        latents_1CFHW = noise_CFHW[None].clone()
        latents_1CFHW[0, :, :K] = context_CKHW.to(self.dtype)
        for step, (t_F, is_updated_F) in enumerate(zip(t_SF, is_updated_SF.tolist(), strict=True)):
            seen_1CFHW, seen_t_F = latents_1CFHW.to(self.dtype, copy=True), t_F.clone()
            if weight:
                mixed = noise_of(step).to(self.dtype) * (0.001 * weight)
                seen_1CFHW[0, :, :K] = seen_1CFHW[0, :, :K] * (1.0 - 0.001 * weight) + mixed
                seen_t_F[:K] = weight
            found_1CFHW = self.predict(seen_1CFHW, seen_t_F, *texts, params.guidance_scale)
            for place in (place for place, is_updated in enumerate(is_updated_F) if is_updated):
                before, found = latents_1CFHW[:, :, place], found_1CFHW[:, :, place]
                after = schedulers[place].step(found, t_F[place], before, return_dict=False)[0]
                latents_1CFHW[:, :, place] = after
        return latents_1CFHW[0]

    def predict(
        self, x_1CFHW: Tensor, t_F: Tensor, text_LD: Tensor, negative_text_LD: Tensor, guidance_scale: float
    ) -> Tensor:
        """The guided flow_1CFHW of latents with a timestep each; nothing is guided by a scale of at most 1."""

        def told(text_LD: Tensor) -> Tensor:
            return self.pipe.transformer(
                hidden_states=x_1CFHW,
                timestep=t_F[None],
                encoder_hidden_states=text_LD[None],
                enable_diffusion_forcing=True,
                fps=[RATE],
                return_dict=False,
            )[0]

        flow_1CFHW = told(text_LD)
        if guidance_scale > 1:
            unguided_1CFHW = told(negative_text_LD)
            flow_1CFHW = unguided_1CFHW + guidance_scale * (flow_1CFHW - unguided_1CFHW)
        return flow_1CFHW

    def stream(self) -> Callable[[Tensor], Tensor]:
        """Begin a video: each call takes its next latent_1CHW, and gives the uint8 frames_FHWC that it stands for."""
        mean, scale = self._statistics()
        return stream_wan(self.pipe.vae, lambda latent: latent / scale + mean)

    def _steps(self, K: int, window: int, params: SamplingParams) -> tuple[list[Any], Tensor, Tensor]:
        """A scheduler for each latent, for one remembers what it saw; and t_SF, and whether a latent is updated."""
        schedulers = [deepcopy(self.pipe.scheduler) for _ in range(window)]
        for scheduler in schedulers:
            scheduler.set_timesteps(params.num_inference_steps, device=self.device)
        block, timesteps = params.causal_block_size, schedulers[0].timesteps
        self.pipe.transformer._set_ar_attention(block)
        t_SF, _, is_updated_SF, _ = self.pipe.generate_timestep_matrix(
            window, timesteps, window, params.ar_step, K, block
        )
        # A first latent alone fills no block of several, and stays what it is all the same.
        t_SF[:, :K], is_updated_SF[:, :K] = 0, False
        return schedulers, t_SF, is_updated_SF

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Of a latent of the VAE the mean, and one over the deviation: each 1C111."""
        mean, deviation = statistics(self.pipe.vae, self.device)
        return mean, 1.0 / deviation
