"""A tiny model whose latent stands for four frames: the tiny UNet3D with Wan's causal VAE, which decodes in order.

It is what a new backbone takes: one file, and one line in `models.FAMILIES`.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from tests.support.tiny_models import write_tiny_model
from ti2v_dist.models.base import ModelInfo, VideoModel
from ti2v_dist.models.causal_vae import stream_wan
from ti2v_dist.models.family import CLASSES, Family
from ti2v_dist.models.latent_model import LatentVideoModel
from ti2v_dist.models.unet3d import UNET3D
from ti2v_dist.specs import WINDOW

FRAMES_PER_LATENT = 4
LATENT = (4, 4, 4)
"""Channels, height and width: 32 x 32 pixels."""


class CausalModel(LatentVideoModel):
    """The first latent of a video is its first frame, each later one four; what was decoded before is carried along."""

    vae_class = AutoencoderKLWan

    @torch.inference_mode()
    def encode_image(self, image_BCHW: Tensor) -> Tensor:
        posterior = self._vae.encode(image_BCHW[:, :, None].to(self.device, self.vae_dtype), return_dict=False)[0]
        return posterior.mean.float()[:, :, 0]

    def stream(self) -> Callable[[Tensor], Tensor]:
        return stream_wan(self._vae)


def _load(info: ModelInfo, family: Family, device: str, dtype: str, attention: str) -> VideoModel:
    return CausalModel(info, family, device=device, dtype=dtype, attention=attention)


CAUSAL = replace(
    UNET3D,
    classes={**CLASSES, "vae": ("AutoencoderKLWan",)},
    latent_channels=("vae", "z_dim", 16),
    vae_factor=lambda folder, configs: 2 ** (len(configs["vae"]["dim_mult"]) - 1),
    frames_per_latent=FRAMES_PER_LATENT,
    capabilities=frozenset({WINDOW}),
    load=_load,
)


def write_causal_model(folder: Path) -> Path:
    """Write a random one to `folder`, always the same; returns it."""
    write_tiny_model(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKLWan(
            base_dim=4, z_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "CausalUNet3D"}))
    return folder
