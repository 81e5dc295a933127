"""Noise schedules: how a clean latent becomes noise, and how a step leads back.

Timesteps are the model's own, from 1 to 999; t' = 0 stands after the last step. All tensors are float32, and nothing
here needs torch to be imported.
"""

from __future__ import annotations

from math import expm1, inf, log, sqrt
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ti2v_dist.errors import InputError
from ti2v_dist.params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

Before = tuple[int, "Tensor"]
"""The timestep of the step before on the same way from noise, and the clean latent that the model predicted there."""
PREDICTIONS = ("epsilon", "v_prediction")


def timesteps(params: SamplingParams) -> list[int]:
    """t_1 > ... > t_S = 1: round(linspace(t_start, 1, S)), diffusers' "leading" spacing with offset 1 by default."""
    return [round(float(t)) for t in np.linspace(params.first_timestep, 1, params.num_inference_steps)]


def timestep_pairs(params: SamplingParams) -> list[tuple[int, int]]:
    """(t, t') of every step; t' is the next timestep, and 0 after the last."""
    ts = timesteps(params)
    return list(zip(ts, [*ts[1:], 0], strict=True))


def inversion_pairs(params: SamplingParams) -> list[tuple[int, int]]:
    """The steps from s* of PiLife on: of the timesteps that there are, the one that is nearest to what is asked for."""
    assert params.inversion_timestep is not None, params
    first = _nearest(params, params.inversion_timestep)
    return [(t, t_next) for t, t_next in timestep_pairs(params) if t <= first]


def _nearest(params: SamplingParams, wanted: int) -> int:
    return min(timesteps(params), key=lambda t: abs(t - wanted))


def motion_pair(params: SamplingParams) -> tuple[int, int]:
    """T' and T of Text2Video-Zero: of the timesteps that there are, those nearest to what is asked for.

    Raises `InputError` where there are too few to tell them apart.
    """
    assert params.motion_t0 is not None, params
    assert params.motion_t1 is not None, params
    t0, t1 = _nearest(params, params.motion_t0), _nearest(params, params.motion_t1)
    if t0 >= t1:
        raise InputError(
            f"num_inference_steps is {params.num_inference_steps}: of its timesteps {t0} is the nearest to motion_t0, "
            f"{params.motion_t0}, and {t1} to motion_t1, {params.motion_t1}; choose more steps, or two further apart"
        )
    return t0, t1


def check_interval(params: SamplingParams) -> None:
    """Raise `InputError` for an interval of guidance in which no step lies: nothing would have the text's weight."""
    if not any(map(params.is_guided, steps := timesteps(params))):
        named = f"guidance_interval is {params.guidance_interval!r}; of the timesteps"
        raise InputError(f"{named} {', '.join(map(str, steps))} none lies in it: choose a wider one")


class Schedule(Protocol):
    """What a sampler asks of a model's noise schedule."""

    def q_sample(self, z: Tensor, t: int, noise: Tensor) -> Tensor:
        """The forward process from a clean latent to t."""
        ...

    def step(self, x: Tensor, prediction: Tensor, t: int, t_prev: int) -> Tensor:
        """One deterministic step t -> t' along what the model predicts at t."""
        ...

    def multistep(
        self, x: Tensor, prediction: Tensor, t: int, t_prev: int, before: Before | None
    ) -> tuple[Tensor, Tensor]:
        """A step t -> t' that also goes by the step before it, if there is one; and the clean latent predicted at t.

        Raises `InputError` where the schedule has no such step.
        """
        ...

    def renoise(self, x: Tensor, t: int, t_prev: int, noise: Tensor) -> Tensor:
        """The forward process t' -> t: what was at t' becomes as noisy as it is at t."""
        ...


class VP:
    """The variance-preserving schedule of DDPM (Ho et al. 2020) with DDIM's steps (Song et al. 2021, eta = 0).

    `alphas_cumprod` holds ᾱ of each training timestep; at t' = 0 it is entry 0. The model predicts ε, or
    v = sqrt(ᾱ) ε - sqrt(1 - ᾱ) x0 (Salimans and Ho 2022).
    """

    def __init__(self, alphas_cumprod: Sequence[float], prediction: str = PREDICTIONS[0]) -> None:
        if prediction not in PREDICTIONS:
            raise InputError(f"prediction is {prediction!r}; choose one of {', '.join(PREDICTIONS)}")
        self.alphas_cumprod = [float(alpha) for alpha in alphas_cumprod]
        self._predicts_v = prediction == PREDICTIONS[1]

    def q_sample(self, z: Tensor, t: int, noise: Tensor) -> Tensor:
        """sqrt(ᾱ_t) z + sqrt(1 - ᾱ_t) noise (TI2V-Zero, eq. 3)."""
        alpha = self.alphas_cumprod[t]
        return sqrt(alpha) * z + sqrt(1 - alpha) * noise

    def step(self, x: Tensor, prediction: Tensor, t: int, t_prev: int) -> Tensor:
        """DDIM's step; x0 is not clipped."""
        alpha_prev, (x0, eps) = self.alphas_cumprod[t_prev], self._parts(x, prediction, t)
        return sqrt(alpha_prev) * x0 + sqrt(1 - alpha_prev) * eps

    def multistep(
        self, x: Tensor, prediction: Tensor, t: int, t_prev: int, before: Before | None
    ) -> tuple[Tensor, Tensor]:
        """DPM-Solver++(2M)'s step (Lu et al. 2022, Alg. 2); where nothing is before it, of first order: DDIM's."""
        x0, _ = self._parts(x, prediction, t)
        half, half_prev, towards = self._half_snr(t), self._half_snr(t_prev), x0
        if before is not None:
            r = (half - self._half_snr(before[0])) / (half_prev - half)
            towards = x0 + (x0 - before[1]) / (2 * r)
        alpha, alpha_prev = self.alphas_cumprod[t], self.alphas_cumprod[t_prev]
        kept, gained = sqrt((1 - alpha_prev) / (1 - alpha)), -sqrt(alpha_prev) * expm1(half - half_prev)
        return kept * x + gained * towards, x0

    def _parts(self, x: Tensor, prediction: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """The clean latent and the noise that x at t is made of, as the model predicts them."""
        alpha, eps = self.alphas_cumprod[t], prediction
        if self._predicts_v:
            eps = sqrt(alpha) * prediction + sqrt(1 - alpha) * x
        return (x - sqrt(1 - alpha) * eps) / sqrt(alpha), eps

    def _half_snr(self, t: int) -> float:
        """Half the logarithm of the ratio of signal to noise: λ of Lu et al."""
        alpha = self.alphas_cumprod[t]
        return (log(alpha) - log(1 - alpha)) / 2

    def noise_between(self, z: Tensor, x: Tensor, t: int) -> Tensor:
        """The noise with which `q_sample` makes x at t of z."""
        alpha = self.alphas_cumprod[t]
        return (x - sqrt(alpha) * z) / sqrt(1 - alpha)

    def renoise(self, x: Tensor, t: int, t_prev: int, noise: Tensor) -> Tensor:
        """Across a whole DDIM interval; TI2V-Zero's eq. 1 when the interval is one training step."""
        r = self.alphas_cumprod[t] / self.alphas_cumprod[t_prev]
        return sqrt(r) * x + sqrt(1 - r) * noise


class Flow:
    """Rectified flow (Liu et al. 2022): x = (1 - σ) z + σ ε; the model predicts v = ε - z.

    With u = t / 1000 and the shift s of the model's training, σ(t) = s u / (1 + (s - 1) u) (Esser et al. 2024, eq. 23).
    No t is 1000, so σ stays below 1, where nothing of z would be left. The model's own time is 1000 σ(t).
    """

    def __init__(self, shift: float = 1.0) -> None:
        if not 0 < shift < inf:
            raise InputError(f"shift is {shift!r}; it must be a finite number above 0")
        self.shift = shift

    def sigma(self, t: int) -> float:
        """How much of x at t is noise."""
        u = t / 1000
        return self.shift * u / (1 + (self.shift - 1) * u)

    def q_sample(self, z: Tensor, t: int, noise: Tensor) -> Tensor:
        """(1 - σ) z + σ noise."""
        sigma = self.sigma(t)
        return (1 - sigma) * z + sigma * noise

    def step(self, x: Tensor, prediction: Tensor, t: int, t_prev: int) -> Tensor:
        """Euler's step x + (σ' - σ) v."""
        return x + (self.sigma(t_prev) - self.sigma(t)) * prediction

    def multistep(
        self, x: Tensor, prediction: Tensor, t: int, t_prev: int, before: Before | None
    ) -> tuple[Tensor, Tensor]:
        """None that was tried here: always raises `InputError`."""
        raise InputError("solver is of several steps, and the model one of rectified flow: choose ddim")

    def renoise(self, x: Tensor, t: int, t_prev: int, noise: Tensor) -> Tensor:
        """a x + sqrt(σ² - a² σ'²) noise with a = (1 - σ) / (1 - σ'): exact in mean and variance."""
        sigma, sigma_prev = self.sigma(t), self.sigma(t_prev)
        a = (1 - sigma) / (1 - sigma_prev)
        return a * x + sqrt(sigma**2 - (a * sigma_prev) ** 2) * noise
