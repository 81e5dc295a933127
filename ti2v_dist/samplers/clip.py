"""The generic continuation: the last frames of a video are what a pipeline makes its next clip from.

Names and suffixes as in `samplers/base.py`; T frames of a tail.
"""

from typing import Any

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Batch, Sample
from ti2v_dist.samplers.noise import Purpose


def sample_clip(model: Any, batch: Batch, params: SamplingParams) -> Sample:
    """A clip of `clip_frames`, which begins with the tail, of one video. One call of the pipeline."""
    (request,), (frame,) = batch.requests, batch.frames_B
    assert request is not None
    assert params.clip_frames is not None
    assert params.tail_frames is not None
    assert batch.tails_BTHWC is not None
    assert batch.images_BHWC is not None
    latents = 1 + (params.clip_frames - 1) // model.info.frames_per_latent
    noise_CFHW = batch.noise.draw(Purpose.INIT, 0, 0, latents)[0]
    tail_THWC, text, negative_text = batch.tails_BTHWC[0], batch.text_BLD[0], batch.negative_text_BLD[0]
    latents_FCHW = model.make(request, frame, tail_THWC, text, negative_text, noise_CFHW)
    shown_FHWC = model.show(latents_FCHW, request, frame, batch.images_BHWC[0].cpu().numpy())
    assert len(shown_FHWC) == params.clip_frames, (len(shown_FHWC), params.clip_frames)
    new, tails = params.clip_frames - len(tail_THWC), shown_FHWC[None, -params.tail_frames :]
    return Sample(latents_FCHW.transpose(0, 1)[None], tails_BTHWC=tails, frames=new)
