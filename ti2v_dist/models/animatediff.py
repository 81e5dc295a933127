"""AnimateDiff (Guo et al. 2024): motion modules between the layers of a Stable Diffusion UNet.

Two layouts: what `AnimateDiffPipeline.save_pretrained` writes, whose `unet/` has the motion modules in it; and a Stable
Diffusion folder with a MotionAdapter in `motion_adapter/`, joined when it is loaded.

Suffixes: B batch, C channels, F frames of a window, H height, W width, L tokens, D text width.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti2v_dist.models.checks import check_same
from ti2v_dist.models.family import CLASSES, Configs, Family
from ti2v_dist.models.folder import ModelFolderError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ti2v_dist.models.base import ModelInfo

SCHEDULERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
)
"""With which Stable Diffusion is published. Their own loops differ; their noise levels ᾱ are made alike."""
BLOCKS = (320, 640, 1280, 1280)
"""diffusers' default of `block_out_channels`."""
_PLAIN = {
    "addition_embed_type": None,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
"""What Stable Diffusion 1 and 2 have: others need more than a text, or lose something in `from_unet2d`."""


def _predict(unet: Any, x_BCFHW: Tensor, t: Tensor, text_BLD: Tensor) -> Tensor:
    """As `AnimateDiffPipeline` calls it: the network sees frames as rows, so each needs the text of its video."""
    frames = x_BCFHW.shape[2]
    return unet(x_BCFHW, t, encoder_hidden_states=text_BLD.repeat_interleave(frames, dim=0), return_dict=False)[0]


def _load_motion_unet(info: ModelInfo, dtype: torch.dtype) -> Any:
    from diffusers import UNetMotionModel

    from ti2v_dist.models.parts import load_diffusers_part

    return load_diffusers_part(UNetMotionModel, info, "unet", dtype)


def _load_joined(info: ModelInfo, dtype: torch.dtype) -> Any:
    """`UNetMotionModel.from_unet2d`, which neither says what it leaves out nor what it leaves at random."""
    from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel

    from ti2v_dist.models.parts import load_diffusers_part, no_reports, some

    unet = load_diffusers_part(UNet2DConditionModel, info, "unet", dtype)
    adapter = load_diffusers_part(MotionAdapter, info, "motion_adapter", dtype)
    both = f"{info.folder}: motion_adapter/ does not fit unet/"
    try:
        with no_reports():
            joined: Any = UNetMotionModel.from_unet2d(unet, adapter)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ModelFolderError(f"{both}: {' '.join(str(error).split())}") from error
    given, taken = {*unet.state_dict(), *adapter.state_dict()}, {*joined.state_dict()}
    if given != taken:
        names = f"without a place: {some(given - taken) or 'none'}; without a weight: {some(taken - given) or 'none'}"
        raise ModelFolderError(f"{both}: {names}")
    return joined


def check_plain(folder: Path, configs: Configs) -> None:
    """Raise `ModelFolderError` for a UNet that is not like those of Stable Diffusion 1 and 2."""
    for key, needed in _PLAIN.items():
        value = configs["unet"].get(key, needed)
        if value != needed:
            raise ModelFolderError(
                f"{folder}: unet/config.json has {key} {value!r}; only {needed!r} can be used, as in Stable Diffusion "
                "1 and 2"
            )


def _check_joined(folder: Path, configs: Configs) -> None:
    check_plain(folder, configs)
    adapter, unet = configs["motion_adapter"], configs["unet"]
    if adapter.get("conv_in_channels") is not None:
        raise ModelFolderError(
            f"{folder}: motion_adapter/config.json has conv_in_channels {adapter['conv_in_channels']!r}; only None can "
            "be used: an adapter that takes an image beside the latents is of another family"
        )
    blocks = ("block_out_channels", list(BLOCKS))
    check_same(folder, configs, ("motion_adapter", *blocks), ("unet", *blocks))
    stated = unet.get("block_out_channels", list(BLOCKS))
    count = len(stated) if isinstance(stated, list) else 1
    layers = adapter.get("motion_layers_per_block", 2), unet.get("layers_per_block", 2)
    if len({str(value if isinstance(value, list) else [value] * count) for value in layers}) > 1:
        check_same(folder, configs, ("motion_adapter", "motion_layers_per_block", 2), ("unet", "layers_per_block", 2))
    # `from_unet2d` takes the UNet's groups for the adapter's, without a word.
    groups = ("motion_adapter", "motion_norm_num_groups", 32)
    check_same(folder, configs, groups, ("unet", "norm_num_groups", 32))


MOTION_UNET = Family(
    load_unet=_load_motion_unet,
    predict=_predict,
    text_width=1280,
    guidance_scale=7.5,
    classes={**CLASSES, "scheduler": SCHEDULERS},
    longest_window=("unet", "motion_max_seq_length", 32),
    check=check_plain,
)
JOINED = replace(
    MOTION_UNET,
    load_unet=_load_joined,
    classes={**MOTION_UNET.classes, "motion_adapter": ("MotionAdapter",)},
    longest_window=("motion_adapter", "motion_max_seq_length", 32),
    suits=lambda folder, unet: (folder / "motion_adapter").is_dir(),
    check=_check_joined,
)
