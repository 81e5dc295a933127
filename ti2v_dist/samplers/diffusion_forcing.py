"""Diffusion forcing (SkyReels-V2, Chen et al. 2025): each latent of a window has a noise level of its own.

The last latents of a video stand clean at the window's beginning, and the window's other latents are made after them.
Names and suffixes as in `samplers/base.py`; K latents of context.
"""

from typing import Any

from torch import Tensor

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Batch, Sample
from ti2v_dist.samplers.noise import Purpose


def sample_diffusion_forcing(model: Any, batch: Batch, params: SamplingParams) -> Sample:
    """What a window has room for behind the context, of one video."""
    K = batch.context_BCKHW.shape[2]

    def of_context(step: int) -> Tensor:
        return batch.noise.draw(Purpose.CONTEXT, step, 0, K)[0]

    noise_CFHW = batch.noise.draw(Purpose.INIT, 0, 0, model.info.window)[0]
    texts = batch.text_BLD[0], batch.negative_text_BLD[0]
    window_CFHW = model.go_on(batch.context_BCKHW[0], *texts, noise_CFHW, of_context, params)
    return Sample(window_CFHW[None, :, K:])
