"""TI2V-Zero as the authors' released program runs it. Names and suffixes as in `samplers/base.py`."""

import torch
from torch import Tensor

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Backbone, Batch, Sample, checked_queue, first_latent, guided, to_image
from ti2v_dist.samplers.noise import Purpose
from ti2v_dist.schedules import timestep_pairs


def sample_reference(model: Backbone, batch: Batch, params: SamplingParams) -> Sample:
    """Next frame as the authors' released program makes it, for comparing figures only. U * S evaluations.

    The whole window is stepped and re-noised, at the last timestep too, and the new frame's pixels are encoded again
    before they enter the queue. Its R re-noisings are U - 1.

    It agrees with the authors' program where S divides 1000, up to 8-bit pixels (1.7e-6 over 8 frames in an independent
    comparison). Elsewhere the timesteps differ: for S = 7 they take 8 steps from 995, this one 7 from 853.
    """
    s_0, K = checked_queue(model, batch, params)
    schedule, noise, evaluate = model.schedule, batch.noise, guided(model, batch)
    U = params.resample_iterations
    x = first_latent(model, batch, params)
    for step, (t, t_prev) in enumerate(timestep_pairs(params)):
        s_t = schedule.q_sample(s_0, t, noise.draw(Purpose.CONTEXT, step, 0, K))
        s_prev = schedule.q_sample(s_0, t_prev, noise.draw(Purpose.NEXT_CONTEXT, step, 0, K))
        z = torch.cat([s_t, x], 2)
        for u in range(1, U + 1):
            z = schedule.step(z, evaluate(z, t), t, t_prev)
            if u < U:
                z = torch.cat([s_prev, z[:, :, K:]], 2)
                z = schedule.renoise(z, t, t_prev, noise.draw(Purpose.RENOISE, step, u, K + 1))
        x = z[:, :, K:]
    return Sample(x, slide_pixels(model, x))


def slide_pixels(model: Backbone, x_BC1HW: Tensor) -> Tensor:
    """E(D(x)) of one frame, through the 8-bit pixels that are the video's."""
    image_BCHW = to_image(model.decode(x_BC1HW[:, :, 0]))
    return model.encode_image(image_BCHW)[:, :, None]
