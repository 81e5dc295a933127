"""FramePack F1 (Zhang et al. 2025), on HunyuanVideo: it goes on from latents, and from the first picture."""

from __future__ import annotations

from pathlib import Path

from ti2v_dist.models.clips.family import ClipFamily, Configs, Layout
from ti2v_dist.models.folder import ModelFolderError, read_json
from ti2v_dist.specs import PACKED

WINDOW = 29
"""The image, nineteen latents behind it, and a section of nine: that is what the model sees at once."""
SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def _check(folder: Path, configs: Configs) -> None:
    scheduler = configs["scheduler"]
    # Noise in its steps would be drawn from torch's global generator.
    if (name := scheduler.get("_class_name")) != SCHEDULER or scheduler.get("stochastic_sampling"):
        found = "stochastic" if name == SCHEDULER else repr(name)
        raise ModelFolderError(f"{folder}: scheduler is {found}; only a {SCHEDULER} that draws nothing can be used")
    given = read_json(path) if (path := folder / "ti2v.json").is_file() else {}
    if frames := given.get("clip_frames"):
        problem = f"{path}: clip_frames is {frames!r}"
        raise ModelFolderError(f"{problem}; FramePack sees {WINDOW} latents, and no others: leave it out")


def _layout(configs: Configs) -> Layout:
    vae, transformer = configs["vae"], configs["transformer"]
    factor = vae.get("spatial_compression_ratio", 8)
    return Layout(factor, vae.get("temporal_compression_ratio", 4), factor * transformer.get("patch_size", 2))


FRAMEPACK = ClipFamily(
    adapter="framepack_pipelines:FramePack",
    networks={
        "vae": ("AutoencoderKLHunyuanVideo",),
        "text_encoder": ("LlamaModel",),
        "text_encoder_2": ("CLIPTextModel",),
        "image_encoder": ("SiglipVisionModel",),
        "transformer": ("HunyuanVideoFramepackTransformer3DModel",),
    },
    layout=_layout,
    height=832,
    width=480,
    frames=1 + (WINDOW - 1) * 4,
    fps=30,
    guidance_scale=9.0,
    tokens=256,
    check=_check,
    capabilities=frozenset({PACKED}),
)
"""The folder does not say which order its weights were trained for: they must be those of F1."""
