"""Frozen backbones: the families, what a model's folder says of itself, and the loading of its weights.

A model is a folder in the diffusers layout (`unet/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`). Reading
one needs no torch, so that a process without a device can check a model and know its sizes.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from ti2v_dist.models import animatediff, unet2d, unet3d
from ti2v_dist.models.base import ModelInfo, VideoModel
from ti2v_dist.models.checks import read_folder, read_settings
from ti2v_dist.models.clips import CLIPS
from ti2v_dist.models.clips.family import BESIDE, ClipFamily, parts_of, read_clip_info
from ti2v_dist.models.family import Family
from ti2v_dist.models.folder import ModelFolderError, find, read_json

__all__ = ["FAMILIES", "ModelFolderError", "ModelInfo", "VideoModel", "load_model", "read_info"]

# diffusers reads it when it is imported, which happens after this package is.
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"

FAMILIES: dict[str, Family] = {
    "UNet3DConditionModel": unet3d.UNET3D,
    "UNetMotionModel": animatediff.MOTION_UNET,
    "UNet2DConditionModel": unet2d.IMAGE_UNET,
}
"""The class that `unet/config.json` names, to the family of its folder."""


def read_info(model_id: str, revision: str | None = None) -> ModelInfo:
    """What is known of a model before its weights are read; only JSON is opened.

    `model_id` is "shapes", a local folder, or a hub id, which is fetched (into the hub's cache) at `revision`: the
    result then names the commit. Raises `ModelFolderError` saying what is missing or of the wrong kind.
    """
    families = [one for family in FAMILIES.values() for one in (family, *family.variants)]
    parts = {part: None for family in families for part in ("unet", *family.classes)}
    parts |= {part: None for clip in CLIPS.values() for part in (*clip.networks, *BESIDE)}
    folder, commit = find(model_id, revision, parts)
    if clip := _clip_family(folder):
        return read_clip_info(folder, model_id, commit, clip)
    family, configs = read_folder(folder, FAMILIES)
    vae_factor = family.vae_factor(folder, configs)
    size = configs["unet"]["sample_size"] * vae_factor
    settings = read_settings(folder, family, configs)
    return ModelInfo(
        model_id=model_id,
        revision=commit,
        folder=folder,
        height=size,
        width=size,
        vae_factor=vae_factor,
        frames_per_latent=family.frames_per_latent,
        capabilities=family.capabilities,
        **settings,
    )


def load_model(
    info: ModelInfo, *, device: str = "cpu", dtype: str = "float32", attention: str = "sdpa", forward: str | None = None
) -> VideoModel:
    """Load a model's weights, frozen, onto one device.

    `device` is cpu, cuda or cuda:N; `dtype` float32, bfloat16 or float16 (the VAE then stays in float32);
    `attention` sdpa or eager. `forward` names the forward pass, on which bits depend: "diffusers", or the family's own;
    None is the fastest. Raises `ValueError` naming the value and the choices, and `ModelFolderError`.
    """
    if clip := _clip_family(info.folder):
        module, _, name = clip.adapter.partition(":")
        return getattr(import_module(f"{__name__}.clips.{module}"), name)(
            info, clip, device=device, dtype=dtype, attention=attention
        )
    unet = read_json(info.folder / "unet" / "config.json")
    family = FAMILIES[unet["_class_name"]].chosen(info.folder, unet)
    if family.load:
        return family.load(info, family, device, dtype, attention)
    from ti2v_dist.models.latent_model import LatentVideoModel

    return LatentVideoModel(info, family, device=device, dtype=dtype, attention=attention, forward=forward)


def _clip_family(folder: Path) -> ClipFamily | None:
    """The family of a pipeline's folder; None where its parts are known by themselves.

    Raises `ModelFolderError` for a pipeline that is not known, with those that are.
    """
    if not (folder / "model_index.json").is_file():
        return None
    name = (index := read_json(folder / "model_index.json")).get("_class_name")
    if isinstance(name, str) and name in CLIPS:
        return CLIPS[name].chosen(index)
    if not (folder / "unet").is_dir():
        parts_of(folder)
        known = f"known are {', '.join(sorted(CLIPS))}, and folders with a unet/"
        raise ModelFolderError(f"{folder}: the pipeline of model_index.json is {name!r}; {known}")
    return None
