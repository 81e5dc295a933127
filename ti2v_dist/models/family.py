"""A family of backbones: what its folders must be, and what its network does differently. Told without torch.

Suffixes: B batch, C channels, F frames of a window, H height, W width, L tokens, D text width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti2v_dist.models.folder import ModelFolderError
from ti2v_dist.specs import FRAME_BY_FRAME

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ti2v_dist.models.base import ModelInfo, VideoModel

Configs = dict[str, dict[str, Any]]
"""What each part's config file holds."""
Schedule = dict[str, tuple[tuple[Any, ...], Any]]
"""Name to (the values that can be used, the value where it is absent: diffusers' default of DDIMScheduler)."""

CLASSES: dict[str, tuple[str, ...]] = {
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": ("DDIMScheduler",),
}
"""The parts that every family has beside its `unet/`, and the classes that can be used."""

SCHEDULE: Schedule = {
    "num_train_timesteps": ((1000,), 1000),
    "beta_schedule": (("scaled_linear", "linear"), "linear"),
    "beta_start": ((0.00085,), 0.0001),
    "beta_end": ((0.012,), 0.02),
    "trained_betas": ((None,), None),
    "rescale_betas_zero_snr": ((False,), False),
    "prediction_type": (("epsilon",), "epsilon"),
    "clip_sample": ((False,), True),
    "thresholding": ((False,), False),
}
"""What the samplers are written for: ε of Stable Diffusion's noise levels ᾱ, nothing clipped.

They choose their timesteps themselves, and ᾱ at t' = 0 is entry 0, whatever a scheduler's own loop does.
"""


def _accept(folder: Path, configs: Configs) -> None:
    pass


def _suits(folder: Path, unet: dict[str, Any]) -> bool:
    return True


def _halvings(folder: Path, configs: Configs) -> int:
    """Pixels along a side of a latent's cell of an AutoencoderKL: each block but the last halves the size."""
    blocks = configs["vae"].get("block_out_channels")
    if not isinstance(blocks, list):
        raise ModelFolderError(f"{folder}: vae/config.json states no block_out_channels")
    return 2 ** (len(blocks) - 1)


@dataclass(frozen=True)
class OwnForward:
    """A forward pass of this package in the place of a network's own: `name`, of its numerics, is in the fingerprint.

    It stands for the call `replaces` of a network whose `unet/config.json` it `suits`; `make(unet)` lays it out.
    """

    name: str
    replaces: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    suits: Callable[[dict[str, Any]], bool]
    make: Callable[[Any], Any]


@dataclass(frozen=True)
class Family:
    """One kind of folder.

    `load_unet(info, dtype)` gives the network and `predict(unet, x_BCFHW, t, text_BLD)` calls it, in its own
    dtype. `classes` are the parts beside `unet/`; `longest_window` is the (part, key, default) that limits the window,
    and `latent_channels` that of the VAE; `vae_factor` are the pixels along a side of a latent's cell; `check` raises
    `ModelFolderError` for what is wrong in this family alone. `load` makes another model than a `LatentVideoModel`.
    `extra_channels` are those that the network takes beside the noisy latents. Of a family's `variants` the first that
    `suits` the folder and its `unet/config.json` is taken in its place. `own` compute
    what `predict` does, faster: the last one is taken, and those before it go on with what they have begun.
    """

    load_unet: Callable[[ModelInfo, torch.dtype], Any]
    predict: Callable[[Any, Tensor, Tensor, Tensor], Tensor]
    text_width: int
    """`cross_attention_dim` where `unet/config.json` states none."""
    guidance_scale: float
    window: int = 16
    fps: float = 8
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: CLASSES)
    schedule: Schedule = field(default_factory=lambda: SCHEDULE)
    longest_window: tuple[str, str, int] | None = None
    latent_channels: tuple[str, str, int] = ("vae", "latent_channels", 4)
    vae_factor: Callable[[Path, Configs], int] = _halvings
    frames_per_latent: int = 1
    capabilities: frozenset[str] = FRAME_BY_FRAME
    extra_channels: int = 0
    variants: tuple[Family, ...] = ()
    suits: Callable[[Path, dict[str, Any]], bool] = _suits
    check: Callable[[Path, Configs], None] = _accept
    load: Callable[[ModelInfo, Family, str, str, str], VideoModel] | None = None
    own: tuple[OwnForward, ...] = ()

    def chosen(self, folder: Path, unet: dict[str, Any]) -> Family:
        """The family, or its variant, that a folder is of."""
        return next((variant for variant in self.variants if variant.suits(folder, unet)), self)

    @property
    def networks(self) -> list[str]:
        """The parts that have weights."""
        return ["unet", *(part for part in self.classes if part not in ("tokenizer", "scheduler"))]
