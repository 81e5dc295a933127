"""FramePack F1 (Zhang et al. 2025): sections of nine latents, each after the image and what is packed of the others.

Its other order makes the end of a video first, and would make each longer video anew: it is no chain, and is left out.
Names and suffixes as in `samplers/base.py`.
"""

from typing import Any

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Batch, Sample
from ti2v_dist.samplers.noise import Purpose


def sample_framepack(model: Any, batch: Batch, params: SamplingParams) -> Sample:
    """The next section of one video."""
    assert batch.images_BHWC is not None
    assert params.spec.chunk is not None
    noise_CFHW = batch.noise.draw(Purpose.INIT, 0, 0, params.spec.chunk)[0]
    section_CFHW = model.next_section(
        batch.context_BCKHW[0], batch.images_BHWC[0], batch.text_BLD[0], noise_CFHW, params
    )
    return Sample(section_CFHW[None])
