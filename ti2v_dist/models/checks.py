"""What a model's folder must say of itself: only JSON is opened, and the message says what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ti2v_dist.models.family import CLASSES, Configs, Family
from ti2v_dist.models.folder import ModelFolderError, config_name, read_json, weight_files
from ti2v_dist.params import TRAIN_TIMESTEPS
from ti2v_dist.specs import WINDOW

SETTINGS = ("guidance_scale", "fps")
"""What `ti2v.json` may state of any model."""
OF_WINDOWS = ("window",)
OF_IMAGES = ("motion_t0", "motion_t1", "inversion_timestep")
SPECIAL_TOKENS = 2
"""Start and end of a text: a vocabulary of these alone has no word."""


def read_folder(folder: Path, families: Mapping[str, Family]) -> tuple[Family, Configs]:
    """The family of a folder and all its configs, checked. Raises `ModelFolderError`."""
    missing = [f"{part}/" for part in ("unet", *CLASSES) if not (folder / part).is_dir()]
    if missing:
        raise ModelFolderError(
            f"{folder} is not a text-to-video model in the diffusers layout: it has no {', '.join(missing)}"
        )
    unet = read_json(folder / "unet" / config_name("unet"))
    unet_class = _check_class(folder, "unet", unet, tuple(families))
    family = families[unet_class].chosen(folder, unet)
    for part, choices in family.classes.items():
        if not (folder / part).is_dir():
            needed = f"which needs {part}/ beside it, as {choices[0]}.save_pretrained writes it"
            raise ModelFolderError(f"{folder}: unet/config.json is of {unet_class}, {needed}; there is none")
    configs = {part: read_json(folder / part / config_name(part)) for part in family.classes}
    for part, choices in family.classes.items():
        _check_class(folder, part, configs[part], choices)
    configs["unet"] = unet
    _check_schedule(folder, configs["scheduler"], family)
    family.check(folder, configs)
    _check_widths(folder, configs, family)
    _check_tokenizer(folder / "tokenizer")
    for part in family.networks:
        weight_files(folder, part)
    return family, configs


def check_same(folder: Path, configs: Configs, one: tuple[str, str, Any], other: tuple[str, str, Any]) -> None:
    """Raise `ModelFolderError` unless two parts agree; each is (part, key, value where it is absent)."""
    (part, key, _), (other_part, other_key, _) = one, other
    value, needed = (configs[name].get(entry, default) for name, entry, default in (one, other))
    if value != needed:
        stated = f"{other_part}/{config_name(other_part)} has {other_key} {needed!r}"
        raise ModelFolderError(f"{folder}: {part}/{config_name(part)} has {key} {value!r}, but {stated}")


def read_settings(folder: Path, family: Family, configs: Configs) -> dict[str, Any]:
    """The entries of `ti2v.json`, with the family's own where it states none. Raises `ModelFolderError`."""
    path = folder / "ti2v.json"
    given = read_json(path) if path.exists() else {}
    has_window = WINDOW in family.capabilities
    known = (*OF_WINDOWS, *SETTINGS) if has_window else (*SETTINGS, *OF_IMAGES)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ModelFolderError(f"{path} has {', '.join(unknown)}; it may state {', '.join(known)}")
    longest, why = _longest_window(folder, family, configs)
    own_window = family.window if longest is None else min(family.window, longest)
    own = {"window": own_window, "guidance_scale": family.guidance_scale, "fps": family.fps}
    settings = {**own, **given}
    window, fps = settings["window"], settings["fps"]
    if has_window and (type(window) is not int or window < 2 or (longest is not None and window > longest)):
        limit = "" if longest is None else f" to {longest}, {why}"
        raise ModelFolderError(f"{path}: window is {window!r}; it must be a whole number from 2{limit}")
    if type(fps) not in (int, float) or not 1 <= fps <= 240:
        raise ModelFolderError(f"{path}: fps is {fps!r}; it must be a number from 1 to 240")
    guidance = settings["guidance_scale"]
    if type(guidance) not in (int, float) or not 0 < guidance < float("inf"):
        raise ModelFolderError(f"{path}: guidance_scale is {guidance!r}; it must be a finite number above 0")
    for name in OF_IMAGES:
        if name in given and (type(given[name]) is not int or not 0 < given[name] < TRAIN_TIMESTEPS):
            raise ModelFolderError(f"{path}: {name} is {given[name]!r}; it must be a timestep, 1 to 999")
    return {**settings, "guidance_scale": float(guidance)}


def _longest_window(folder: Path, family: Family, configs: Configs) -> tuple[int | None, str]:
    """The most frames that the network can tell apart, and where that is written."""
    if family.longest_window is None:
        return None, ""
    part, key, default = family.longest_window
    longest, file = configs[part].get(key, default), f"{part}/{config_name(part)}"
    if type(longest) is not int or longest < 2:
        raise ModelFolderError(f"{folder}: {file} has {key} {longest!r}; it must be a whole number from 2")
    return longest, f"the {key} of {file}"


def _check_class(folder: Path, part: str, config: dict[str, Any], choices: tuple[str, ...]) -> str:
    key = {"text_encoder": "architectures", "tokenizer": "tokenizer_class"}.get(part, "_class_name")
    name = config.get(key)
    name = name[0] if part == "text_encoder" and isinstance(name, list) and name else name
    if name not in choices:
        file = f"{part}/{config_name(part)}"
        raise ModelFolderError(f"{folder}: {key} in {file} is {name!r}; only {' or '.join(choices)} can be used")
    return name


def _check_schedule(folder: Path, config: dict[str, Any], family: Family) -> None:
    wrong = []
    for name, (choices, default) in family.schedule.items():
        if name not in config and name == "clip_sample" and config["_class_name"] != "DDIMScheduler":
            continue  # the others never clip
        value = config.get(name, default)
        if value not in choices:
            absent = "" if name in config else " (absent, diffusers' default)"
            wrong.append(f"{name} is {value!r}{absent}, needed is {' or '.join(map(repr, choices))}")
    if wrong:
        raise ModelFolderError(f"{folder}: scheduler/scheduler_config.json has another schedule: {'; '.join(wrong)}")


def _check_widths(folder: Path, configs: Configs, family: Family) -> None:
    check_same(folder, configs, ("unet", "out_channels", 4), family.latent_channels)
    part, key, default = family.latent_channels
    taken, needed = configs["unet"].get("in_channels", 4), configs[part].get(key, default) + family.extra_channels
    if taken != needed:
        stated = f"{part}/{config_name(part)} has {key} {configs[part].get(key, default)!r}"
        raise ModelFolderError(f"{folder}: unet/config.json has in_channels {taken!r}, but {stated}")
    width = ("unet", "cross_attention_dim", family.text_width)
    check_same(folder, configs, width, ("text_encoder", "hidden_size", 512))
    family.vae_factor(folder, configs)
    sample_size = configs["unet"].get("sample_size")
    if type(sample_size) is not int or sample_size < 1:
        raise ModelFolderError(f"{folder}: unet/config.json has sample_size {sample_size!r}; it must be a whole number")


def _check_tokenizer(folder: Path) -> None:
    """A tokenizer without its words loads, and makes the same tokens of every prompt."""
    path = folder / "tokenizer.json"
    if path.is_file():
        model = read_json(path).get("model")
        words = model.get("vocab") if isinstance(model, dict) else None
    else:
        missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if missing:
            raise ModelFolderError(
                f"{folder} has no {' and no '.join(missing)}; a CLIP tokenizer needs tokenizer.json, "
                "or both vocab.json and merges.txt"
            )
        path, words = folder / "vocab.json", read_json(folder / "vocab.json")
        if not (folder / "merges.txt").stat().st_size:
            raise ModelFolderError(f"{folder / 'merges.txt'} is empty")
    if not isinstance(words, dict) or len(words) <= SPECIAL_TOKENS:
        raise ModelFolderError(f"{path} holds no vocabulary")
