"""Finds a model's folder: the embedded one, a local one, or one of the hub; and reads what lies in it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ti2v_dist.errors import InputError

PAUSES_S = (1.0, 4.0)
"""Pauses before a hub that is busy or away is asked again."""
_SHAPES = Path(__file__).parents[1] / "shapes"
SHAPES_FOLDER = _SHAPES / "weights"
EMBEDDED = {
    "shapes": SHAPES_FOLDER,
    "shapes-image": _SHAPES / "image",
    "shapes-instruct": _SHAPES / "instruct",
    "shapes-look-back": _SHAPES / "look_back",
}
"""The models that come with the package, by their names."""
MODELSCOPE = "ali-vilab/text-to-video-ms-1.7b"


class ModelFolderError(InputError):
    """A model cannot be found, or its folder is not of a family that can be loaded. The message says what is wrong."""


def find(model_id: str, revision: str | None, parts: Iterable[str]) -> tuple[Path, str | None]:
    """The model's folder, and its commit where it came from the hub, of which the sub-folders `parts` are fetched."""
    folder = EMBEDDED.get(model_id, Path(model_id).resolve())
    if not folder.exists() and model_id not in EMBEDDED:
        snapshot = _fetch(model_id, revision, parts)
        # The hub's cache calls a snapshot by its commit.
        return snapshot, snapshot.name
    if revision is not None:
        raise ModelFolderError(f"revision is {revision!r}, but model {model_id!r} is not a hub id; leave revision out")
    if not folder.is_dir():
        raise ModelFolderError(f"model {model_id!r}: {folder} is not a folder; {_choices()}")
    return folder, None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `ModelFolderError`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path} is missing") from None
    except ValueError as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} holds {type(value).__name__}, not an object")
    return value


def config_name(part: str) -> str:
    """The file that says what a sub-folder holds."""
    return {"tokenizer": "tokenizer_config.json", "scheduler": "scheduler_config.json"}.get(part, "config.json")


def weight_files(folder: Path, part: str, library: str | None = None) -> tuple[str | None, list[Path]]:
    """The variant to load of a part (as "unet" or "vae") and its safetensors files, sorted.

    The plain files come first, then the fp16 variant; pickled weights are never read. A part is of diffusers, or of the
    `library` that is named; the text encoder is transformers'.
    """
    is_theirs = library == "transformers" if library else part == "text_encoder"
    name = "model" if is_theirs else "diffusion_pytorch_model"
    for variant in (None, "fp16"):
        stem = name + (f".{variant}" if variant else "")
        single = folder / part / f"{stem}.safetensors"
        files = [single] if single.is_file() else sorted((folder / part).glob(f"{stem}-*-of-*.safetensors"))
        if files:
            return variant, files
    pickled = sorted(path.name for path in (folder / part).glob("*.bin"))
    found = f"only pickled weights ({', '.join(pickled)}), which are never read" if pickled else "no weights"
    raise ModelFolderError(
        f"{folder}: {part}/ has {found}; {name}.safetensors is needed "
        "(diffusers' save_pretrained(safe_serialization=True) writes it)"
    )


def _choices() -> str:
    named = ", ".join(f'"{name}"' for name in EMBEDDED)
    return f"give {named}, a local folder in the diffusers layout, or a hub id such as {MODELSCOPE}"


def _fetch(model_id: str, revision: str | None, parts: Iterable[str]) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model_id):
        raise ModelFolderError(f"model {model_id!r} is neither an existing folder nor a hub id; {_choices()}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    patterns = [f"{part}/*.{ending}" for part in parts for ending in ("json", "txt", "model", "safetensors")]
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
