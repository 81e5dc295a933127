"""Infilling: the frames between given ones. Names and suffixes as in `samplers/base.py`; W latents are in a window."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Backbone, Batch, Sample, checked_queue, first_latent, guided
from ti2v_dist.samplers.noise import Purpose
from ti2v_dist.schedules import timestep_pairs


def sample_infill(model: Backbone, batch: Batch, params: SamplingParams) -> Sample:
    """The next W - K latents, the given ones as they are. U * (S - 1) + 1 evaluations for each of the others.

    TI2V-Zero's paper names video infilling (Sec. 4.4) and does not say how. Our reading: one new latent at a time, as
    always, but given latents stand behind it as the queue stands before it; a place that is still unknown is filled
    with the nearest latent that is known. With room for one latent and none given, this is TI2V-Zero. What lies behind
    the last given latent of a video is left out.
    """
    s_0, K = checked_queue(model, batch, params)
    known_BCWHW, is_known_BW = latents_in_sight(s_0, batch, model.info.window)
    last_B = [max(places, default=len(is_known_BW[0])) if places is not None else -1 for places in batch.ahead]
    for place in range(K, model.info.window):
        is_wanted_B = ~is_known_BW[:, place] & (np.array(last_B) >= place - K)
        if is_wanted_B.any():
            x = _sample_one(model, batch, params, nearest(known_BCWHW, is_known_BW), place)
            is_wanted = torch.from_numpy(is_wanted_B).to(x.device).view(-1, 1, 1, 1, 1)
            known_BCWHW[:, :, place : place + 1] = torch.where(is_wanted, x, known_BCWHW[:, :, place : place + 1])
            is_known_BW[:, place] |= is_wanted_B
    return Sample(known_BCWHW[:, :, K:])


def latents_in_sight(s_0: Tensor, batch: Batch, W: int) -> tuple[Tensor, np.ndarray]:
    """The queue and the given latents in their places, zeros in the others: known_BCWHW, and is_known_BW."""
    B, C, K, height, width = s_0.shape
    ahead_BCFHW = np.zeros((B, C, W - K, height, width), np.float32)
    is_known_BW = np.tile(np.arange(W) < K, (B, 1))
    for slot, places in enumerate(batch.ahead):
        for place, latent_CHW in (places or {}).items():
            ahead_BCFHW[slot, :, place], is_known_BW[slot, K + place] = latent_CHW, True
    return torch.cat([s_0, torch.from_numpy(ahead_BCFHW).to(s_0.device)], 2), is_known_BW


def nearest(known_BCWHW: Tensor, is_known_BW: np.ndarray) -> Tensor:
    """In each place the nearest latent that is known; of two that are as near, the earlier one."""
    filled = []
    for known_CWHW, is_known_W in zip(known_BCWHW, is_known_BW, strict=True):
        places = np.flatnonzero(is_known_W)
        filled.append(known_CWHW[:, [int(places[np.abs(places - w).argmin()]) for w in range(len(is_known_W))]])
    return torch.stack(filled)


def _sample_one(model: Backbone, batch: Batch, params: SamplingParams, z_0: Tensor, place: int) -> Tensor:
    """The latent x_BC1HW in a place of the window z_0, whose others are noised to each t (Alg. 1)."""
    before, behind = z_0[:, :, :place], z_0[:, :, place + 1 :]
    schedule, evaluate = model.schedule, guided(model, batch)
    noise = batch.noise.later(place - params.context_frames)
    x = first_latent(model, replace(batch, context_BCKHW=before, noise=noise), params)
    for step, (t, t_prev) in enumerate(timestep_pairs(params)):
        before_t = schedule.q_sample(before, t, noise.draw(Purpose.CONTEXT, step, 0, before.shape[2]))
        behind_t = schedule.q_sample(behind, t, noise.draw(Purpose.AHEAD, step, 0, behind.shape[2]))
        U = params.resample_iterations if t_prev > 0 else 1
        for u in range(1, U + 1):
            predicted = evaluate(torch.cat([before_t, x, behind_t], 2), t, 1 + behind.shape[2])[:, :, :1]
            x = schedule.step(x, predicted, t, t_prev)
            if u < U:
                x = schedule.renoise(x, t, t_prev, noise.draw(Purpose.RENOISE, step, u, 1))
    return x
