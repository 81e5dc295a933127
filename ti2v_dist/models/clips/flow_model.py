"""A text-to-video pipeline of Wan's, taken apart, so that a sampler makes each step itself.

Suffixes: B batch, C channels, F frames or latents, H height, W width, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.causal_vae import statistics, stream_wan
from ti2v_dist.models.clips.family import ClipFamily, read_configs
from ti2v_dist.models.clips.flow import boundary_of, shift_of
from ti2v_dist.models.clips.wan_pipelines import WanPipeline
from ti2v_dist.params import TRAIN_TIMESTEPS
from ti2v_dist.schedules import Flow


class WanFlow:
    """A `VideoModel` that is a `StreamingModel` in place of having `decode`: the first latent is one frame.

    All parts are loaded, and texts are read, as for a pipeline that makes clips; none is ever made by it.
    """

    def __init__(self, info: ModelInfo, family: ClipFamily, *, device: str, dtype: str, attention: str) -> None:
        """Load the folder of `info`; see `ti2v_dist.models.load_model` for the choices and the errors."""
        self._parts = WanPipeline(info, family, device=device, dtype=dtype, attention=attention)
        self.info, self.attention = info, attention
        self.device, self.dtype = self._parts.device, self._parts.dtype
        configs = read_configs(info.folder, self._parts.parts)
        self.schedule = Flow(shift_of(info.folder, configs))
        times = [TRAIN_TIMESTEPS * self.schedule.sigma(t) for t in range(TRAIN_TIMESTEPS)]
        # Indexing a tensor on the device keeps a copy from the host out of every call.
        self._times = torch.tensor(times, device=self.device)
        pipe, boundary = self._parts.pipe, boundary_of(info.folder, configs)
        is_first = [boundary is None or time >= boundary * TRAIN_TIMESTEPS for time in times]
        self._networks = [pipe.transformer if first else pipe.transformer_2 for first in is_first]
        self._vae = pipe.vae
        self._mean, self._std = statistics(self._vae, self.device)

    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to float32 text_BLD: 512 tokens of umT5, zeros behind the last one."""
        return self._parts.encode_text(prompts)

    @torch.inference_mode()
    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] to float32 latent_BCHW, each as the first frame of a video: the posterior's mean."""
        return self._encode(image_BCHW[:, :, None])[:, :, 0]

    @torch.inference_mode()
    def encode_still(self, image_BCHW: Tensor, latents: int) -> Tensor:
        """float32 latents_BCFHW, so many, of a video in which nothing moves. The first is that of `encode_image`."""
        frames = 1 + self.info.frames_per_latent * (latents - 1)
        return self._encode(image_BCHW[:, :, None].repeat(1, 1, frames, 1, 1))

    @torch.inference_mode()
    def predict(self, x_BCFHW: Tensor, t: int, text_BLD: Tensor) -> Tensor:
        """v of at most `info.window` noisy latents, all at timestep `t`; float32, the shape of `x_BCFHW`."""
        assert x_BCFHW.shape[2] <= self.info.window, (x_BCFHW.shape, self.info.window)
        return self._networks[t](
            hidden_states=x_BCFHW.to(self.device, self.dtype),
            timestep=self._times[t].expand(len(x_BCFHW)),
            encoder_hidden_states=text_BLD.to(self.device, self.dtype),
            return_dict=False,
        )[0].float()

    def stream(self) -> Callable[[Tensor], Tensor]:
        """See `StreamingModel`; the frames are those of the whole decode, to the bit."""
        return stream_wan(self._vae, lambda latents: latents * self._std + self._mean)

    def weights_sha256(self) -> str:
        """Hex sha256 over the names and bytes of the weights that are loaded."""
        return self._parts.weights_sha256()

    def facts(self) -> dict[str, str]:
        """As of a pipeline that makes clips, without what only matters where torch draws or several decodes can be."""
        return {name: fact for name, fact in self._parts.facts().items() if name not in ("host_cpu", "decoding")}

    def _encode(self, pixels_BCFHW: Tensor) -> Tensor:
        """Latents of unit variance."""
        posterior = self._vae.encode(pixels_BCFHW.to(self.device, self._vae.dtype)).latent_dist
        return (posterior.mean.float() - self._mean) / self._std
