"""Stable Diffusion's layout: image models that see one frame a row, alone, with a ControlNet, or told what to change.

Stable Diffusion 1 and 2, and every DreamBooth of them; a ControlNet (Zhang et al. 2023) lies beside the UNet in
`controlnet/`, as `StableDiffusionControlNetPipeline.save_pretrained` writes it; a UNet of 8 channels is an
InstructPix2Pix (Brooks et al. 2023); with `look_back/` beside it, it sees the frames before (`models/look_back.py`).

Suffixes: R rows, B batch, C channels, F frames, H height, W width, L tokens, D text width.
"""

# diffusers re-exports its classes in a way that pyright takes for private.
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ti2v_dist.models.animatediff import BLOCKS, JOINED, SCHEDULERS, check_plain
from ti2v_dist.models.checks import check_same
from ti2v_dist.models.family import CLASSES, SCHEDULE, Configs, Family
from ti2v_dist.models.folder import ModelFolderError
from ti2v_dist.schedules import PREDICTIONS
from ti2v_dist.specs import CONTROL, IMAGE, INSTRUCT, LOOK_BACK, PICTURES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ti2v_dist.models.base import ModelInfo, VideoModel


_ALIKE = {
    "in_channels": 4,
    "cross_attention_dim": 1280,
    "block_out_channels": list(BLOCKS),
    "layers_per_block": 2,
}
"""In what a ControlNet and its UNet must agree, with diffusers' defaults."""


def _load_unet(info: ModelInfo, dtype: torch.dtype) -> Any:
    from diffusers import UNet2DConditionModel

    from ti2v_dist.models.parts import load_diffusers_part

    return load_diffusers_part(UNet2DConditionModel, info, "unet", dtype)


def _predict(unet: Any, x_BCFHW: Tensor, t: Tensor, text_BLD: Tensor) -> Tensor:
    """Each frame as a row of its own."""
    frames = x_BCFHW.shape[2]
    rows = unet(x_BCFHW.transpose(1, 2).flatten(0, 1), t, text_BLD.repeat_interleave(frames, 0), return_dict=False)[0]
    return rows.unflatten(0, (-1, frames)).transpose(1, 2)


def _check_controlled(folder: Path, configs: Configs) -> None:
    check_plain(folder, configs)
    for key, default in _ALIKE.items():
        check_same(folder, configs, ("controlnet", key, default), ("unet", key, default))


def _check_looking_back(folder: Path, configs: Configs) -> None:
    """Modules after each layer of this UNet (`look_back.layers_of`), whose kernels have a middle."""
    check_plain(folder, configs)
    modules, unet = configs["look_back"], configs["unet"]
    blocks, layers = unet.get("block_out_channels", list(BLOCKS)), unet.get("layers_per_block", 2)
    if not isinstance(blocks, list) or type(layers) is not int:
        problem = f"block_out_channels {blocks!r} and layers_per_block {layers!r}; needed are a list and a number"
        raise ModelFolderError(f"{folder}: unet/config.json has {problem} for look_back/")
    down, up = (
        [width for width in widths for _ in range(n)] for widths, n in ((blocks, layers), (blocks[::-1], layers + 1))
    )
    if (stated := modules.get("channels")) != (asked := [*down, blocks[-1], *up]):
        problem = f"look_back/config.json has channels {stated!r}, but the layers of unet/config.json have {asked}"
        raise ModelFolderError(f"{folder}: {problem}")
    for name in ("looks", "adapts"):
        if type(value := modules.get(name, True)) is not bool:
            raise ModelFolderError(f"{folder}: look_back/config.json has {name} {value!r}; it must be true or false")
    if type(kernel := modules.get("kernel", 5)) is not int or kernel < 1 or kernel % 2 == 0:
        raise ModelFolderError(f"{folder}: look_back/config.json has kernel {kernel!r}; it must be an odd number")


def _load(info: ModelInfo, family: Family, device: str, dtype: str, attention: str) -> VideoModel:
    from ti2v_dist.models.image_model import LatentImageModel

    return LatentImageModel(info, family, device=device, dtype=dtype, attention=attention)


def _load_looking_back(info: ModelInfo, family: Family, device: str, dtype: str, attention: str) -> VideoModel:
    from ti2v_dist.models.look_back import LatentLookBackModel

    return LatentLookBackModel(info, family, device=device, dtype=dtype, attention=attention)


_IMAGE = Family(
    load_unet=_load_unet,
    predict=_predict,
    text_width=1280,
    guidance_scale=7.5,
    window=1,
    classes={**CLASSES, "scheduler": SCHEDULERS},
    schedule={**SCHEDULE, "prediction_type": (PREDICTIONS, PREDICTIONS[0])},
    capabilities=frozenset({IMAGE, PICTURES}),
    check=check_plain,
    load=_load,
)
CONTROLLED = replace(
    _IMAGE,
    check=_check_controlled,
    classes={**_IMAGE.classes, "controlnet": ("ControlNetModel",)},
    capabilities=_IMAGE.capabilities | {CONTROL},
    suits=lambda folder, unet: (folder / "controlnet").is_dir(),
)
INSTRUCTED = replace(
    _IMAGE,
    capabilities=frozenset({INSTRUCT, PICTURES}),
    extra_channels=4,
    suits=lambda folder, unet: unet.get("in_channels") == 8,
)
LOOKING_BACK = replace(
    _IMAGE,
    check=_check_looking_back,
    classes={**_IMAGE.classes, "look_back": ("LookBackModules",)},
    longest_window=("look_back", "depth", 5),
    window=64,
    capabilities=frozenset({LOOK_BACK, PICTURES}),
    suits=lambda folder, unet: (folder / "look_back").is_dir(),
    load=_load_looking_back,
)
IMAGE_UNET = replace(_IMAGE, variants=(JOINED, INSTRUCTED, LOOKING_BACK, CONTROLLED))
"""What a folder with a UNet2D is, unless something lies beside it that makes it another family."""
