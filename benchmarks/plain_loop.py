"""TI2V-Zero as a capable user writes it with diffusers: the baseline of the engine's speed.

One video, Algorithm 1 as it is printed: the scheduler's own steps, two calls of the UNet for guidance, torch's noise.
Suffixes: B batch, C latent channels, F frames, K context frames, H height, W width, L tokens, D text width.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet3DConditionModel
from torch import Tensor

Randn = Callable[..., Tensor]


class PlainLoop:
    """A UNet and its scheduler from a folder in the diffusers layout. S steps, each made U times."""

    def __init__(self, folder: Path, device: torch.device | str, dtype: str, S: int, U: int, guidance: float) -> None:
        self.device, self.dtype, self.U, self.guidance = torch.device(device), getattr(torch, dtype), U, guidance
        unet: Any = UNet3DConditionModel.from_pretrained(folder / "unet", torch_dtype=self.dtype)
        self.unet = unet.to(self.device).eval().requires_grad_(False)
        self.scheduler: Any = DDIMScheduler.from_pretrained(folder / "scheduler")
        self.scheduler.set_timesteps(S)

    @property
    def evaluations(self) -> int:
        """Guided predictions of one frame: U S. At the last timestep U - 1 of them repeat the first one."""
        return self.U * len(self.scheduler.timesteps)

    @torch.inference_mode()
    def next_latent(
        self, queue_1CKHW: Tensor, text_1LD: Tensor, negative_1LD: Tensor, randn: Randn = torch.randn
    ) -> Tensor:
        """The clean latent_1C1HW that follows the queue; text is float32 and on the device, as the queue is."""
        text, negative = text_1LD.to(self.dtype), negative_1LD.to(self.dtype)
        K, newest = queue_1CKHW.shape[2], queue_1CKHW[:, :, -1:]
        timesteps = self.scheduler.timesteps.tolist()
        x_t = self._noised(newest, timesteps[0], randn)
        for t, t_prev in zip(timesteps, [*timesteps[1:], 0], strict=True):
            s_t = self._noised(queue_1CKHW, t, randn)
            x_prev = x_t
            for u in range(1, self.U + 1):
                window = torch.cat([s_t, x_t], 2)
                eps = self._guided(window, t, text, negative)[:, :, K:]
                x_prev = self.scheduler.step(eps, t, x_t).prev_sample
                if u < self.U and t_prev > 0:
                    r = self.scheduler.alphas_cumprod[t] / self.scheduler.alphas_cumprod[t_prev]
                    x_t = r.sqrt() * x_prev + (1 - r).sqrt() * randn(x_prev.shape, device=self.device)
            x_t = x_prev
        return x_t

    def _noised(self, clean: Tensor, t: int, randn: Randn) -> Tensor:
        noise = randn(clean.shape, device=self.device)
        return self.scheduler.add_noise(clean, noise, torch.tensor([t], device=self.device))

    def _guided(self, window: Tensor, t: int, text: Tensor, negative: Tensor) -> Tensor:
        x = window.to(self.dtype)
        uncond = self.unet(x, t, encoder_hidden_states=negative).sample.float()
        cond = self.unet(x, t, encoder_hidden_states=text).sample.float()
        return uncond + self.guidance * (cond - uncond)
