"""What TI2V-Zero's queue begins with where a latent stands for several frames. Names as in `samplers/base.py`."""

from typing import Protocol

from torch import Tensor

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Batch, Begun, to_image


class CausalBackbone(Protocol):
    """The part of a model with a causal VAE that is called here."""

    def encode_still(self, image_BCHW: Tensor, latents: int) -> Tensor: ...


def begin_causal(model: CausalBackbone, batch: Batch, params: SamplingParams) -> Begun:
    """K latents of the image's still video, to be repeated as z0 is elsewhere: z0 alone is of another kind."""
    assert batch.images_BHWC is not None
    return Begun(model.encode_still(to_image(batch.images_BHWC), params.context_frames))
