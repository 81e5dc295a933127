"""Infilling: the frames between given ones. Names and suffixes as in `samplers/base.py`."""

import numpy as np
import torch
from torch import Tensor

from ti2v_dist.samplers.base import Backbone, Batch, Sample, checked_queue, guided
from ti2v_dist.samplers.noise import Purpose
from ti2v_dist.schedules import timestep_pairs
from ti2v_dist.video import SamplingParams


def sample_infill(model: Backbone, batch: Batch, params: SamplingParams) -> Sample:
    """The next window - K latents at once, the given ones among them as they are. U * (S - 1) + 1 evaluations.

    TI2V-Zero's paper names video infilling (Sec. 4.4) and does not say how. Our reading: a given latent stands in its
    place ahead and is noised to each t as the queue's are (Alg. 1, line 12); the others are sampled together, each
    from the nearest known latent before it, noised on its own (line 9). With room for one latent and none given, this
    is TI2V-Zero.
    """
    s_0, K = checked_queue(model, batch, params)
    given_0, is_given = latents_ahead(s_0, batch, model.info.window - K)
    F, schedule, noise, evaluate = given_0.shape[2], model.schedule, batch.noise, guided(model, batch)
    x = noise.draw(Purpose.INIT, 0, 0, F)
    if params.init == "inversion":
        x = schedule.q_sample(given_0, params.first_timestep, x)
    for step, (t, t_prev) in enumerate(timestep_pairs(params)):
        s_t = schedule.q_sample(s_0, t, noise.draw(Purpose.CONTEXT, step, 0, K))
        given_t = schedule.q_sample(given_0, t, noise.draw(Purpose.AHEAD, step, 0, F))
        U = params.resample_iterations if t_prev > 0 else 1
        for u in range(1, U + 1):
            x = torch.where(is_given, given_t, x)
            x = schedule.step(x, evaluate(torch.cat([s_t, x], 2), t)[:, :, K:], t, t_prev)
            if u < U:
                x = schedule.renoise(x, t, t_prev, noise.draw(Purpose.RENOISE, step, u, F))
    return Sample(torch.where(is_given, given_0, x))


def latents_ahead(s_0: Tensor, batch: Batch, F: int) -> tuple[Tensor, Tensor]:
    """Of the F places ahead, the given latent or else the nearest known one before it, and which of them are given.

    Returns clean latents_BCFHW and is_given_B1F11.
    """
    B, C, _, H, W = s_0.shape
    given_FBCHW, is_given_FB = np.zeros((F, B, C, H, W), np.float32), np.zeros((F, B), bool)
    for slot, places in enumerate(batch.ahead):
        for place, latent_CHW in (places or {}).items():
            given_FBCHW[place, slot], is_given_FB[place, slot] = latent_CHW, True
    is_given_FB111 = torch.from_numpy(is_given_FB)[:, :, None, None, None].to(s_0.device)
    latents = [s_0[:, :, -1]]
    for given_BCHW, is_given_B111 in zip(torch.from_numpy(given_FBCHW).to(s_0.device), is_given_FB111, strict=True):
        latents.append(torch.where(is_given_B111, given_BCHW, latents[-1]))
    return torch.stack(latents[1:], 2), is_given_FB111.movedim(0, 2)
