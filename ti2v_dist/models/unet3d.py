"""UNet3D latent video models: ModelScopeT2V (Wang et al. 2023) and everything else in its diffusers layout.

Suffixes: B batch, C channels, F frames of a window, H height, W width, L tokens, D text width.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ti2v_dist.models.family import SCHEDULE, Family, OwnForward, Schedule
from ti2v_dist.specs import FRAME_BY_FRAME, RECALLING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ti2v_dist.models.base import ModelInfo

MODELSCOPE_SCHEDULE: Schedule = {
    **SCHEDULE,
    "beta_schedule": (("scaled_linear",), "linear"),
    "set_alpha_to_one": ((False,), True),
    "steps_offset": ((1,), 0),
    "timestep_spacing": (("leading",), "leading"),
}
"""That of all published folders: here the samplers' timesteps are those of `TextToVideoSDPipeline` too."""


def _load_unet(info: ModelInfo, dtype: torch.dtype) -> Any:
    from diffusers import UNet3DConditionModel

    from ti2v_dist.models.parts import load_diffusers_part

    return load_diffusers_part(UNet3DConditionModel, info, "unet", dtype)


def _predict(unet: Any, x_BCFHW: Tensor, t: Tensor, text_BLD: Tensor) -> Tensor:
    return unet(x_BCFHW, t, text_BLD, return_dict=False)[0]


def _suits(config: dict[str, Any]) -> bool:
    """Whether the own forward pass was written for a network of this `unet/config.json`: all published ones are."""
    known = {"act_fn": ("silu", "swish"), "downsample_padding": (1,), "mid_block_scale_factor": (1,)}
    return all(config.get(key, choices[0]) in choices for key, choices in known.items())


def _own(unet: Any) -> Any:
    from ti2v_dist.models.unet3d_forward import Forward

    return Forward(unet)


UNET3D = Family(
    load_unet=_load_unet,
    predict=_predict,
    text_width=1024,
    guidance_scale=9.0,
    capabilities=FRAME_BY_FRAME | {RECALLING},
    schedule=MODELSCOPE_SCHEDULE,
    own=(OwnForward("unet3d-1", _predict, _suits, _own),),
)
