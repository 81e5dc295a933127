"""DDIM with explicit timesteps (Song et al. 2021, eta = 0), forward noising and classifier-free guidance.

`alpha` is the paper's cumulative product at a timestep, a Python float: `alphas_cumprod[t]`, and entry 0 at t' = 0.
All tensors are float32. Suffix B1111: one value per batch row.
"""

from math import sqrt

import numpy as np
from torch import Tensor

from ti2v_dist.video import SamplingParams


def timesteps(params: SamplingParams) -> list[int]:
    """t_1 > ... > t_S = 1: round(linspace(t_start, 1, S)), diffusers' "leading" spacing with offset 1 by default."""
    return [round(float(t)) for t in np.linspace(params.first_timestep, 1, params.num_inference_steps)]


def timestep_pairs(params: SamplingParams) -> list[tuple[int, int]]:
    """(t, t') of every step; t' is the next timestep, and 0 after the last."""
    ts = timesteps(params)
    return list(zip(ts, [*ts[1:], 0], strict=True))


def q_sample(z: Tensor, alpha_t: float, noise: Tensor) -> Tensor:
    """The forward process from a clean latent to t (eq. 3)."""
    return sqrt(alpha_t) * z + sqrt(1 - alpha_t) * noise


def ddim_step(x: Tensor, eps: Tensor, alpha_t: float, alpha_prev: float) -> Tensor:
    """One deterministic step t -> t'; x0 is not clipped."""
    x0 = (x - sqrt(1 - alpha_t) * eps) / sqrt(alpha_t)
    return sqrt(alpha_prev) * x0 + sqrt(1 - alpha_prev) * eps


def renoise(x: Tensor, alpha_t: float, alpha_prev: float, noise: Tensor) -> Tensor:
    """The forward process t' -> t across a DDIM interval; eq. 1 when the interval is one training step."""
    r = alpha_t / alpha_prev
    return sqrt(r) * x + sqrt(1 - r) * noise


def guide(eps_uncond: Tensor, eps_cond: Tensor, guidance_B1111: Tensor) -> Tensor:
    """Classifier-free guidance (eq. 5)."""
    return eps_uncond + guidance_B1111 * (eps_cond - eps_uncond)
