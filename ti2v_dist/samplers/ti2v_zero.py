"""TI2V-Zero (Ni et al. 2024) and the replacing baseline: one algorithm, one function, one signature for all.

The paper's symbols are the names: s_0 the queue of K clean latents, s_t its noisy copy, x the new frame's latent
(the paper's z-hat^K), t and t_prev the timesteps of a step, U the denoisings per step, g the guidance scale.
Suffixes: B batch, C latent channels, F new frames, K context frames, H height, W width, L tokens, D text width.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ti2v_dist.samplers.ddim import ddim_step, guide, q_sample, renoise, timestep_pairs
from ti2v_dist.samplers.noise import KeyedNoise, Purpose
from ti2v_dist.video import SamplingParams


class HasWindow(Protocol):
    """The part of a model's description that a sampler reads."""

    @property
    def window(self) -> int: ...


class Backbone(Protocol):
    """The part of a `VideoModel` that a sampler calls; restated here because samplers import no models."""

    @property
    def info(self) -> HasWindow: ...

    @property
    def alphas_cumprod(self) -> Tensor: ...

    def predict_noise(self, x_BCFHW: Tensor, t: int, text_BLD: Tensor) -> Tensor: ...

    def encode_image(self, image_BCHW: Tensor) -> Tensor: ...

    def decode(self, latent_BCHW: Tensor) -> Tensor: ...


class Sample(NamedTuple):
    """New latents, and what enters the queue where that differs from them."""

    latents_BCFHW: Tensor
    context_BCFHW: Tensor | None = None


Sampler = Callable[[Backbone, Tensor, Tensor, Tensor, KeyedNoise, SamplingParams, Tensor], Sample]


def guided_noise(
    model: Backbone, text_BLD: Tensor, negative_text_BLD: Tensor, guidance_B: Tensor
) -> Callable[[Tensor, int], Tensor]:
    """An evaluation: (x_BCFHW, t) -> guided noise, one model call of 2B rows, unconditional rows first.

    The unconditional branch runs at g = 1 too: leaving it out would change the batch's shape and so the bits.
    """
    text_2BLD = torch.cat([negative_text_BLD, text_BLD])
    g = guidance_B.float().view(-1, 1, 1, 1, 1)

    def evaluate(x_BCFHW: Tensor, t: int) -> Tensor:
        eps = model.predict_noise(torch.cat([x_BCFHW, x_BCFHW]), t, text_2BLD)
        eps_uncond, eps_cond = eps.float().chunk(2)
        return guide(eps_uncond, eps_cond, g)

    return evaluate


def first_latent(s_0: Tensor, alpha_T: float, noise: KeyedNoise, params: SamplingParams) -> Tensor:
    """The new frame at t_1: the newest context latent, noised on its own (Alg. 1, line 9), or pure noise."""
    fresh = noise.draw(Purpose.INIT, 0, 0, 1)
    return fresh if params.init == "gaussian" else q_sample(s_0[:, :, -1:], alpha_T, fresh)


def sample_ti2v_zero(
    model: Backbone,
    queue_BCKHW: Tensor,
    text_BLD: Tensor,
    negative_text_BLD: Tensor,
    noise: KeyedNoise,
    params: SamplingParams,
    guidance_B: Tensor,
) -> Sample:
    """Next frame by repeat-and-slide (TI2V-Zero, Algorithm 1). U * (S - 1) + 1 evaluations."""
    s_0, K = queue_BCKHW, queue_BCKHW.shape[2]
    assert params.context_frames == K < model.info.window, (K, params.context_frames, model.info.window)
    evaluate = guided_noise(model, text_BLD, negative_text_BLD, guidance_B)
    alphas = model.alphas_cumprod.tolist()
    x = first_latent(s_0, alphas[params.first_timestep], noise, params)
    for step, (t, t_prev) in enumerate(timestep_pairs(params)):
        s_t = q_sample(s_0, alphas[t], noise.draw(Purpose.CONTEXT, step, 0, K))  # line 12: once per t
        if t_prev > 0:
            noise.ahead(Purpose.CONTEXT, step + 1, 0, K)
        # line 16: nothing is re-noised at the last timestep, so further iterations would repeat the first exactly
        U = params.resample_iterations if t_prev > 0 else 1
        for u in range(1, U + 1):
            eps = evaluate(torch.cat([s_t, x], 2), t)[:, :, K:]  # line 14: the context's own noise is never used
            x_prev = ddim_step(x, eps, alphas[t], alphas[t_prev])
            if u < U:
                x = renoise(x_prev, alphas[t], alphas[t_prev], noise.draw(Purpose.RENOISE, step, u, 1))  # line 17
        x = x_prev
    return Sample(x)


def sample_ti2v_zero_reference(
    model: Backbone,
    queue_BCKHW: Tensor,
    text_BLD: Tensor,
    negative_text_BLD: Tensor,
    noise: KeyedNoise,
    params: SamplingParams,
    guidance_B: Tensor,
) -> Sample:
    """Next frame as the authors' released program makes it, for comparing figures only. U * S evaluations.

    The whole window is stepped and re-noised, at the last timestep too, and the new frame's pixels are encoded again
    before they enter the queue. Its R re-noisings are U - 1.

    It agrees with the authors' program where S divides 1000, up to 8-bit pixels (1.7e-6 over 8 frames in an independent
    comparison). Elsewhere the timesteps differ: for S = 7 they take 8 steps from 995, this one 7 from 853.
    """
    s_0, K = queue_BCKHW, queue_BCKHW.shape[2]
    assert params.context_frames == K < model.info.window, (K, params.context_frames, model.info.window)
    evaluate = guided_noise(model, text_BLD, negative_text_BLD, guidance_B)
    alphas = model.alphas_cumprod.tolist()
    U = params.resample_iterations
    x = first_latent(s_0, alphas[params.first_timestep], noise, params)
    for step, (t, t_prev) in enumerate(timestep_pairs(params)):
        s_t = q_sample(s_0, alphas[t], noise.draw(Purpose.CONTEXT, step, 0, K))
        s_prev = q_sample(s_0, alphas[t_prev], noise.draw(Purpose.NEXT_CONTEXT, step, 0, K))
        z = torch.cat([s_t, x], 2)
        for u in range(1, U + 1):
            z_prev = ddim_step(z, evaluate(z, t), alphas[t], alphas[t_prev])
            if u < U:
                z_prev = torch.cat([s_prev, z_prev[:, :, K:]], 2)
                z = renoise(z_prev, alphas[t], alphas[t_prev], noise.draw(Purpose.RENOISE, step, u, K + 1))
        x = z_prev[:, :, K:]
    return Sample(x, slide_pixels(model, x))


def slide_pixels(model: Backbone, x_BC1HW: Tensor) -> Tensor:
    """E(D(x)) of one frame, through the 8-bit pixels that are the video's."""
    image_BCHW = to_image(model.decode(x_BC1HW[:, :, 0]))
    return model.encode_image(image_BCHW)[:, :, None]


def to_image(frames_BHWC: Tensor) -> Tensor:
    """uint8 pixels to the encoder's float32 image_BCHW in [-1, 1]."""
    # Convolutions of a channels-last tensor run other kernels, with other bits.
    return frames_BHWC.permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


def sample_replace(
    model: Backbone,
    queue_BCKHW: Tensor,
    text_BLD: Tensor,
    negative_text_BLD: Tensor,
    noise: KeyedNoise,
    params: SamplingParams,
    guidance_B: Tensor,
) -> Sample:
    """The replacing-based baseline (Sec. 3.3, eq. 6): one whole window whose first frame is replaced at every step.

    Returns window - 1 new frames after S evaluations. Inversion and resampling are TI2V-Zero's own additions, so
    `init` and `resample_iterations` do not apply; of the queue only the newest latent, z0, is read.
    """
    z_0, window = queue_BCKHW[:, :, -1:], model.info.window
    evaluate = guided_noise(model, text_BLD, negative_text_BLD, guidance_B)
    alphas = model.alphas_cumprod.tolist()
    x = noise.draw(Purpose.INIT, 0, 0, window - 1)
    for step, (t, t_prev) in enumerate(timestep_pairs(params)):
        z_t = q_sample(z_0, alphas[t], noise.draw(Purpose.CONTEXT, step, 0, 1))
        eps = evaluate(torch.cat([z_t, x], 2), t)[:, :, 1:]
        x = ddim_step(x, eps, alphas[t], alphas[t_prev])
    return Sample(x)
