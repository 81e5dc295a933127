"""TI2V-Zero (Ni et al. 2024, Algorithm 1). Names and suffixes as in `samplers/base.py`."""

import torch

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Backbone, Batch, Sample, Way, checked_queue, first_latent, guided
from ti2v_dist.samplers.noise import Purpose
from ti2v_dist.schedules import timestep_pairs


def sample_ti2v_zero(model: Backbone, batch: Batch, params: SamplingParams) -> Sample:
    """The next latent by repeat-and-slide, or the next F = `stride` beside each other. U * (S - 1) + 1 evaluations."""
    (s_0, K), F = checked_queue(model, batch, params), params.stride or 1
    noise, evaluate, way = batch.noise, guided(model, batch, params), Way(model.schedule, params)
    x = first_latent(model, batch, params)
    for step, (t, t_prev) in enumerate(timestep_pairs(params)):
        s_t = model.schedule.q_sample(s_0, t, noise.draw(Purpose.CONTEXT, step, 0, K))  # line 12: once per t
        if t_prev > 0:
            noise.ahead(Purpose.CONTEXT, step + 1, 0, K)
        # line 16: nothing is re-noised at the last timestep, so further iterations would repeat the first exactly
        U = params.resample_iterations if t_prev > 0 else 1
        for u in range(1, U + 1):
            if u < U:
                noise.ahead(Purpose.RENOISE, step, u, F)
            seen = x if u > 1 and params.resample_context else torch.cat([s_t, x], 2)
            predicted = evaluate(seen, t, F)  # line 14: that of the context is never used
            x = way.step(x, predicted, t, t_prev)
            if u < U:
                x = way.renoise(x, t, t_prev, noise.draw(Purpose.RENOISE, step, u, F))  # line 17
    return Sample(x)
