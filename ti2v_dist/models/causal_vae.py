"""Wan's causal VAE (Wan Team 2025): a video decoded latent by latent, with what its convolutions remember.

Suffixes: B batch, C channels, F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from torch import Tensor


def statistics(vae: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of what the encoder gives, 1C111 each."""
    mean, deviation = (
        torch.tensor(vae.config[name], device=device, dtype=dtype).view(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return mean, deviation


def stream_wan(vae: Any, unscaled: Callable[[Tensor], Tensor] = lambda latent: latent) -> Callable[[Tensor], Tensor]:
    """Begin a video: each call takes its next latent_1CHW, and gives the uint8 frames_FHWC that it stands for.

    `unscaled` makes of a latent what the VAE's encoder gives. The frames are those of the whole decode, to the bit, and
    the memory does not grow with the video: each convolution keeps two latents' worth of what it saw.
    """
    carried: list[Any] = [None] * vae._cached_conv_counts["decoder"]
    is_first = True

    def following(latent_1CHW: Tensor) -> Tensor:
        nonlocal is_first
        latent = vae.post_quant_conv(unscaled(latent_1CHW[:, :, None]).to(vae.device, vae.dtype))
        pictures = vae.decoder(latent, feat_cache=carried, feat_idx=[0], first_chunk=is_first)
        is_first = False
        if vae.config.patch_size is not None:
            pictures = unpatchify(pictures, vae.config.patch_size)
        # As the VAE's own `decode` does.
        return as_frames(pictures.clamp(-1, 1))[0]

    return following


def as_frames(pictures_BCFHW: Tensor) -> Tensor:
    """Pictures in [-1, 1] to uint8 frames_BFHWC, rounded to the nearest level."""
    pixels = (pictures_BCFHW.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).contiguous()
