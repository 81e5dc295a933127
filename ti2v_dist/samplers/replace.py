"""The replacing-based baseline of TI2V-Zero's paper. Names and suffixes as in `samplers/base.py`."""

import torch

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Backbone, Batch, Sample, guided
from ti2v_dist.samplers.noise import Purpose
from ti2v_dist.schedules import timestep_pairs


def sample_replace(model: Backbone, batch: Batch, params: SamplingParams) -> Sample:
    """One whole window whose first frame is replaced at every step (TI2V-Zero, Sec. 3.3, eq. 6). S evaluations.

    Returns window - 1 new latents. Inversion and resampling are TI2V-Zero's own additions, so `init` and
    `resample_iterations` do not apply; of the context only the newest latent, z0, is read.
    """
    z_0, window = batch.context_BCKHW[:, :, -1:], model.info.window
    schedule, noise, evaluate = model.schedule, batch.noise, guided(model, batch)
    x = noise.draw(Purpose.INIT, 0, 0, window - 1)
    for step, (t, t_prev) in enumerate(timestep_pairs(params)):
        z_t = schedule.q_sample(z_0, t, noise.draw(Purpose.CONTEXT, step, 0, 1))
        x = schedule.step(x, evaluate(torch.cat([z_t, x], 2), t, window - 1), t, t_prev)
    return Sample(x)
