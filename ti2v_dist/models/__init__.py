"""Frozen backbones: finds a model's folder, reads what it says of itself, and loads its weights.

A model is a folder in the diffusers layout (`unet/`, `vae/`, `text_encoder/`, `tokenizer/`, `scheduler/`). Reading
one needs no torch, so that a process without a device can check a model and know its sizes.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ti2v_dist.errors import InputError
from ti2v_dist.models.base import ModelInfo, VideoModel

# diffusers reads it when it is imported, which happens after this package is.
os.environ["DIFFUSERS_DISABLE_REMOTE_CODE"] = "1"

PAUSES_S = (1.0, 4.0)
"""Pauses before a hub that is busy or away is asked again."""
SHAPES_FOLDER = Path(__file__).parent / "shapes" / "weights"
MODELSCOPE = "ali-vilab/text-to-video-ms-1.7b"
DEFAULTS = {"window": 16, "guidance_scale": 9.0, "fps": 8}
"""What `ti2v.json` may state, with ModelScopeT2V's values."""

_CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "tokenizer": "tokenizer_config.json",
    "scheduler": "scheduler_config.json",
}
_CLASSES = {
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": ("DDIMScheduler",),
}
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
_SCHEDULE: dict[str, tuple[Any, Any]] = {
    "num_train_timesteps": (1000, 1000),
    "beta_schedule": ("scaled_linear", "linear"),
    "beta_start": (0.00085, 0.0001),
    "beta_end": (0.012, 0.02),
    "trained_betas": (None, None),
    "rescale_betas_zero_snr": (False, False),
    "prediction_type": ("epsilon", "epsilon"),
    "clip_sample": (False, True),
    "thresholding": (False, False),
    "set_alpha_to_one": (False, True),
    "steps_offset": (1, 0),
    "timestep_spacing": ("leading", "leading"),
}
"""The one noise schedule that the samplers are written for: name to (value, diffusers' default of DDIMScheduler)."""


class ModelFolderError(InputError):
    """A model cannot be found, or its folder is not of a family that can be loaded. The message says what is wrong."""


def _load_unet3d(info: ModelInfo, device: str, dtype: str, attention: str) -> VideoModel:
    from ti2v_dist.models.unet3d import UNet3DVideoModel

    return UNet3DVideoModel(info, device=device, dtype=dtype, attention=attention)


FAMILIES: dict[str, Callable[[ModelInfo, str, str, str], VideoModel]] = {"UNet3DConditionModel": _load_unet3d}
"""The class that `unet/config.json` names, to the loader of its family."""
SPECIAL_TOKENS = 2
"""Start and end of a text: a vocabulary of these alone has no word."""


def read_info(model_id: str, revision: str | None = None) -> ModelInfo:
    """What is known of a model before its weights are read; only JSON is opened.

    `model_id` is "shapes", a local folder, or a hub id, which is fetched (into the hub's cache) at `revision`: the
    result then names the commit. Raises `ModelFolderError` saying what is missing or of the wrong kind.
    """
    folder, commit = _find(model_id, revision)
    configs = _read_configs(folder)
    unet, vae = configs["unet"], configs["vae"]
    _check_classes(folder, configs)
    _check_schedule(folder, configs["scheduler"])
    _check_widths(folder, configs)
    _check_tokenizer(folder / "tokenizer")
    for part in _WEIGHTS:
        weight_files(folder, part)
    sample_size = unet.get("sample_size")
    if type(sample_size) is not int or sample_size < 1:
        raise ModelFolderError(f"{folder}: unet/config.json has sample_size {sample_size!r}; it must be a whole number")
    vae_factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return ModelInfo(
        model_id=model_id,
        revision=commit,
        folder=folder,
        height=sample_size * vae_factor,
        width=sample_size * vae_factor,
        vae_factor=vae_factor,
        **_read_settings(folder),
    )


def load_model(info: ModelInfo, *, device: str = "cpu", dtype: str = "float32", attention: str = "sdpa") -> VideoModel:
    """Load a model's weights, frozen, onto one device.

    `device` is cpu, cuda or cuda:N; `dtype` float32, bfloat16 or float16 (the VAE then stays in float32);
    `attention` sdpa or eager. Raises `ValueError` naming the value and the choices, and `ModelFolderError`.
    """
    unet_class = _read_json(info.folder / "unet" / "config.json")["_class_name"]
    return FAMILIES[unet_class](info, device, dtype, attention)


def weight_files(folder: Path, part: str) -> tuple[str | None, list[Path]]:
    """The variant to load of a part ("unet", "vae", "text_encoder") and its safetensors files, sorted.

    The plain files come first, then the fp16 variant; pickled weights are never read.
    """
    for variant in (None, "fp16"):
        stem = _WEIGHTS[part] + (f".{variant}" if variant else "")
        single = folder / part / f"{stem}.safetensors"
        files = [single] if single.is_file() else sorted((folder / part).glob(f"{stem}-*-of-*.safetensors"))
        if files:
            return variant, files
    pickled = sorted(path.name for path in (folder / part).glob("*.bin"))
    found = f"only pickled weights ({', '.join(pickled)}), which are never read" if pickled else "no weights"
    raise ModelFolderError(
        f"{folder}: {part}/ has {found}; {_WEIGHTS[part]}.safetensors is needed "
        "(diffusers' save_pretrained(safe_serialization=True) writes it)"
    )


def _find(model_id: str, revision: str | None) -> tuple[Path, str | None]:
    """The model's folder, and its commit where it came from the hub."""
    folder = SHAPES_FOLDER if model_id == "shapes" else Path(model_id).resolve()
    if model_id != "shapes" and not folder.exists():
        snapshot = _fetch(model_id, revision)
        # The hub's cache calls a snapshot by its commit.
        return snapshot, snapshot.name
    if revision is not None:
        raise ModelFolderError(f"revision is {revision!r}, but model {model_id!r} is not a hub id; leave revision out")
    if not folder.is_dir():
        raise ModelFolderError(f"model {model_id!r}: {folder} is not a folder; {_choices()}")
    return folder, None


def _choices() -> str:
    return f'give "shapes", a local folder in the diffusers layout, or a hub id such as {MODELSCOPE}'


def _fetch(model_id: str, revision: str | None) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model_id):
        raise ModelFolderError(f"model {model_id!r} is neither an existing folder nor a hub id; {_choices()}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    patterns = [f"{part}/*.{ending}" for part in _CONFIGS for ending in ("json", "txt", "safetensors")]
    patterns += ["model_index.json", "ti2v.json"]
    for pause_s in (*PAUSES_S, None):
        try:
            # The hub's client has limits of its own for each answer: 10 s, or HF_HUB_DOWNLOAD_TIMEOUT.
            return Path(snapshot_download(model_id, revision=revision, allow_patterns=patterns))
        except (OSError, HTTPError, HFValidationError) as error:
            if pause_s is None or not any(map(_may_pass, _causes(error))):
                at = f" at revision {revision!r}" if revision else ""
                reasons = [str(cause).strip().splitlines()[:1] or [type(cause).__name__] for cause in _causes(error)]
                reason = "; ".join(dict.fromkeys(line for (line,) in reasons))
                message = f"model {model_id!r}{at} is no local folder and could not be fetched from the hub ({reason})"
                raise ModelFolderError(f"{message}; {_choices()}") from error
        time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _may_pass(error: BaseException) -> bool:
    """Whether the hub is busy or away, which says nothing of the model."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in (408, 425, 429) or status >= 500
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)  # of httpx, whose name has a number


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing") from None
    except ValueError as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} holds {type(value).__name__}, not an object")
    return value


def _read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    missing = [f"{part}/" for part in _CONFIGS if not (folder / part).is_dir()]
    if missing:
        raise ModelFolderError(
            f"{folder} is not a text-to-video model in the diffusers layout: it has no {', '.join(missing)}"
        )
    return {part: _read_json(folder / part / name) for part, name in _CONFIGS.items()}


def _check_classes(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    for part, choices in {"unet": tuple(FAMILIES), **_CLASSES}.items():
        config = configs[part]
        key = {"text_encoder": "architectures", "tokenizer": "tokenizer_class"}.get(part, "_class_name")
        name = config.get(key)
        name = name[0] if isinstance(name, list) and name else name
        if name not in choices:
            file = f"{part}/{_CONFIGS[part]}"
            raise ModelFolderError(f"{folder}: {key} in {file} is {name!r}; only {' or '.join(choices)} can be used")


def _check_schedule(folder: Path, config: dict[str, Any]) -> None:
    wrong = []
    for name, (needed, default) in _SCHEDULE.items():
        value = config.get(name, default)
        if value != needed:
            absent = "" if name in config else " (absent, diffusers' default)"
            wrong.append(f"{name} is {value!r}{absent}, needed is {needed!r}")
    if wrong:
        raise ModelFolderError(f"{folder}: scheduler/scheduler_config.json has another schedule: {'; '.join(wrong)}")


def _check_widths(folder: Path, configs: dict[str, dict[str, Any]]) -> None:
    pairs = [
        ("unet", "in_channels", 4, "vae", "latent_channels", 4),
        ("unet", "out_channels", 4, "vae", "latent_channels", 4),
        ("unet", "cross_attention_dim", 1024, "text_encoder", "hidden_size", 512),
    ]
    for part, key, default, other, other_key, other_default in pairs:
        value, needed = configs[part].get(key, default), configs[other].get(other_key, other_default)
        if value != needed:
            raise ModelFolderError(f"{folder}: {part} has {key} {value!r}, but {other} has {other_key} {needed!r}")
    if not isinstance(configs["vae"].get("block_out_channels"), list):
        raise ModelFolderError(f"{folder}: vae/config.json states no block_out_channels")


def _check_tokenizer(folder: Path) -> None:
    """A tokenizer without its words loads, and makes the same tokens of every prompt."""
    path = folder / "tokenizer.json"
    if path.is_file():
        model = _read_json(path).get("model")
        words = model.get("vocab") if isinstance(model, dict) else None
    else:
        missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if missing:
            raise ModelFolderError(
                f"{folder} has no {' and no '.join(missing)}; a CLIP tokenizer needs tokenizer.json, "
                "or both vocab.json and merges.txt"
            )
        path, words = folder / "vocab.json", _read_json(folder / "vocab.json")
        if not (folder / "merges.txt").stat().st_size:
            raise ModelFolderError(f"{folder / 'merges.txt'} is empty")
    if not isinstance(words, dict) or len(words) <= SPECIAL_TOKENS:
        raise ModelFolderError(f"{path} holds no vocabulary")


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / "ti2v.json"
    given = _read_json(path) if path.exists() else {}
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise ModelFolderError(f"{path} has {', '.join(unknown)}; it may state {', '.join(DEFAULTS)}")
    settings = {**DEFAULTS, **given}
    window, fps = settings["window"], settings["fps"]
    if type(window) is not int or window < 2:
        raise ModelFolderError(f"{path}: window is {window!r}; it must be a whole number from 2")
    if type(fps) not in (int, float) or not 1 <= fps <= 240:
        raise ModelFolderError(f"{path}: fps is {fps!r}; it must be a number from 1 to 240")
    guidance = settings["guidance_scale"]
    if type(guidance) not in (int, float) or not 0 < guidance < float("inf"):
        raise ModelFolderError(f"{path}: guidance_scale is {guidance!r}; it must be a finite number above 0")
    return {**settings, "guidance_scale": float(guidance)}
