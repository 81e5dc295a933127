"""The contract between a frozen backbone and everything that samples from it.

Suffixes: B batch, C channels, F frames of a window, H height, W width, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before its weights are read; `height` and `width` are its native size in pixels."""

    model_id: str
    revision: str | None
    folder: Path
    window: int
    height: int
    width: int
    vae_factor: int
    guidance_scale: float
    fps: float


class VideoModel(Protocol):
    """A frozen latent video diffusion model on one device."""

    info: ModelInfo
    dtype: torch.dtype
    """Of the UNet and the text encoder; latents, text and noise go in and out as float32."""
    attention: str
    device: torch.device
    alphas_cumprod: Tensor
    """ᾱ of the 1000 training timesteps, float64 on the CPU; ᾱ at t' = 0 is its entry 0."""

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to text_BLD."""
        ...

    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to latent_BCHW: the posterior's mean, scaled to unit variance, float32."""
        ...

    def predict_noise(self, x_BCFHW: Tensor, t: int, text_BLD: Tensor) -> Tensor:
        """ε_θ of a window of at most `info.window` noisy latents, all at timestep `t`; float32 in and out."""
        ...

    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Scaled latents to uint8 frames_BHWC."""
        ...

    def weights_sha256(self) -> str:
        """Hash of the weights, part of a run's fingerprint."""
        ...
