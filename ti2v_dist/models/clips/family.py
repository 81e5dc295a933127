"""A family of pipelines that make clips: what its folders must be, and what can be asked of it. Told without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ti2v_dist.limits import ClipLimits, check_boundary
from ti2v_dist.models.base import ModelInfo
from ti2v_dist.models.folder import ModelFolderError, config_name, read_json, weight_files
from ti2v_dist.specs import CAUSAL, CLIP

Configs = Mapping[str, Mapping[str, Any]]
"""What the config file of each part holds; `model_index` is the pipeline's own."""
LIBRARIES = ("diffusers", "transformers")
BESIDE = ("tokenizer", "tokenizer_2", "scheduler", "image_processor", "feature_extractor")
"""What may stand beside a pipeline's networks."""
SETTINGS = ("guidance_scale", "fps", "height", "width")
"""What `ti2v.json` may state of any pipeline."""
OF_WINDOWS = ("window",)
OF_CLIPS = ("clip_frames", "global_noise")


class Layout(NamedTuple):
    """What follows from a folder's configs: sizes of a latent's cell, in pixels and frames, and of the picture.

    `longest_window` are the most latents that a network can tell apart, where that is known.
    """

    vae_factor: int
    frames_per_latent: int
    size_multiple: int
    tail_step: int = 0
    longest_window: int | None = None


def _accept(folder: Path, configs: Configs) -> None:
    pass


def _as_usual(configs: Configs) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class ClipFamily:
    """One class of pipelines of diffusers.

    `adapter` is "module:class" below `ti2v_dist.models.clips`; `networks` are the classes that each part with weights
    may be of, where `optional` ones may be left out; without those `beside` them no pipeline can be made. `height`,
    `width`, `frames` and `fps` are what the published models make, and `tokens` how many of a text they read. `options`
    are numbers that the pipeline takes as arguments, beside its own defaults. `variant` gives those of these fields
    that are others in a published model of such configs.
    `pipeline` is the class that is run where folders name a sister of it, which reads the same parts; `others` are
    families of the same class in folders, of which the first that `suits` the pipeline's own config is taken.
    One of the capability `CAUSAL` makes no clips: a sampler makes each of its steps.
    `draws_globally` tells of configs with which the pipeline draws from torch's global generator. `check` raises
    `ModelFolderError` for what is wrong in this family alone.
    """

    adapter: str
    networks: Mapping[str, tuple[str, ...]]
    layout: Callable[[Configs], Layout]
    height: int
    width: int
    frames: int
    fps: float
    guidance_scale: float
    optional: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset({"tokenizer", "scheduler"})
    reads_text: bool = True
    tokens: int = 512
    options: frozenset[str] = frozenset()
    variant: Callable[[Configs], Mapping[str, Any]] = _as_usual
    draws_globally: Callable[[Configs], bool] = lambda configs: False
    check: Callable[[Path, Configs], None] = _accept
    capabilities: frozenset[str] = frozenset({CLIP})
    pipeline: str | None = None
    others: tuple[ClipFamily, ...] = ()
    suits: Callable[[Mapping[str, Any]], bool] = lambda index: True

    def chosen(self, index: Mapping[str, Any]) -> ClipFamily:
        """The family, or another one of its pipeline's class, that `model_index.json` tells of."""
        return next((other for other in self.others if other.suits(index)), self)


def parts_of(folder: Path) -> dict[str, tuple[str, str]]:
    """The parts of a pipeline's folder: their libraries and classes, as `model_index.json` names them.

    Raises `ModelFolderError` for a class that is not diffusers' or transformers' own: its code would have to be run.
    """
    index = read_json(folder / "model_index.json")
    found = {}
    for part, value in index.items():
        if part.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        if len(value) != 2 or value[0] not in LIBRARIES or not isinstance(value[1], str):
            problem = f"{part} is {value!r} in model_index.json"
            raise ModelFolderError(f"{folder}: {problem}; only classes of {' and '.join(LIBRARIES)} are run")
        found[part] = (value[0], value[1])
    return found


def read_clip_info(folder: Path, model_id: str, commit: str | None, family: ClipFamily) -> ModelInfo:
    """What is known of a pipeline's folder before its weights are read. Raises `ModelFolderError`."""
    parts = parts_of(folder)
    if missing := sorted((family.networks.keys() | family.beside) - parts.keys() - family.optional):
        raise ModelFolderError(f"{folder}: model_index.json has no {', '.join(missing)}")
    configs = read_configs(folder, parts)
    for part, choices in family.networks.items():
        if part in parts and parts[part][1] not in choices:
            problem = f"{part} in model_index.json is {parts[part][1]!r}"
            raise ModelFolderError(f"{folder}: {problem}; only {' or '.join(choices)} can be used")
        if part in parts:
            weight_files(folder, part, parts[part][0])
    family.check(folder, configs)
    family = replace(family, **family.variant(configs))
    layout, given = family.layout(configs), _settings(folder, family)
    own = {"height": family.height, "width": family.width, "guidance_scale": family.guidance_scale, "fps": family.fps}
    own |= {name: value for name, value in given.items() if name in own}
    frames = given.get("clip_frames", family.frames)
    r = layout.frames_per_latent
    check_boundary(f"{folder}: clip_frames is", frames, 1, (r, r))
    if frames == 1:
        raise ModelFolderError(
            f"{folder / 'ti2v.json'}: clip_frames is 1, the image alone; it must be at least {1 + r}"
        )
    window, longest, has_window = given.get("window", 1 + (frames - 1) // r), layout.longest_window, _has_window(family)
    if has_window and (window < 2 or (longest and window > longest)):
        needed = f"2 to {longest}" if longest else "at least 2"
        raise ModelFolderError(f"{folder / 'ti2v.json'}: window is {window}; it must be {needed}")
    return ModelInfo(
        model_id=model_id,
        revision=commit,
        folder=folder,
        window=window,
        vae_factor=layout.vae_factor,
        frames_per_latent=r,
        capabilities=family.capabilities,
        size_multiple=layout.size_multiple,
        clip=ClipLimits(frames, layout.tail_step, family.reads_text, family.options, family.tokens),
        **own,
    )


def read_configs(folder: Path, parts: Iterable[str]) -> Configs:
    """What the config file of each part holds, and `model_index`. Raises `ModelFolderError`."""
    return {part: _config(folder, part) for part in parts} | {"model_index": read_json(folder / "model_index.json")}


def check_value(folder: Path, configs: Configs, part: str, name: str, usual: Any, needed: Any) -> None:
    """Raise `ModelFolderError` unless a part's config has this value; `usual` is what its class has by default."""
    if (value := configs[part].get(name, usual)) != needed:
        problem = f"{name} in {part}/{config_name(part)} is {value!r}"
        raise ModelFolderError(f"{folder}: {problem}; this pipeline can only be used with {needed!r}")


def draws_globally(info: ModelInfo, family: ClipFamily, configs: Configs) -> bool:
    """Whether the pipeline may draw from torch's global generator: the family knows, or `ti2v.json` says so."""
    return family.draws_globally(configs) or bool(_settings(info.folder, family).get("global_noise"))


def _config(folder: Path, part: str) -> dict[str, Any]:
    """The config of a part; of processors and tokenizers none is needed."""
    for name in (config_name(part), "config.json", "tokenizer_config.json", "preprocessor_config.json"):
        if (folder / part / name).is_file():
            return read_json(folder / part / name)
    raise ModelFolderError(f"{folder}: {part}/ has no {config_name(part)}, and model_index.json names it")


def _has_window(family: ClipFamily) -> bool:
    return CAUSAL in family.capabilities


def _settings(folder: Path, family: ClipFamily) -> dict[str, Any]:
    """The entries of `ti2v.json`. Raises `ModelFolderError`."""
    path = folder / "ti2v.json"
    given = read_json(path) if path.exists() else {}
    known = (*SETTINGS, *(OF_WINDOWS if _has_window(family) else OF_CLIPS))
    if unknown := sorted(given.keys() - set(known)):
        raise ModelFolderError(f"{path} has {', '.join(unknown)}; it may state {', '.join(known)}")
    for name, value in given.items():
        kinds = {"global_noise": (bool,), "guidance_scale": (int, float), "fps": (int, float)}.get(name, (int,))
        if type(value) not in kinds or (type(value) is not bool and not 0 < value < float("inf")):
            needed = "true or false" if bool in kinds else "a number above 0"
            raise ModelFolderError(f"{path}: {name} is {value!r}; it must be {needed}")
    if not 1 <= (fps := given.get("fps", family.fps)) <= 240:
        raise ModelFolderError(f"{path}: fps is {fps!r}; it must be a number from 1 to 240")
    return given
