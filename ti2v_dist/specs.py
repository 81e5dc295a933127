"""The video algorithms by their names: what each one needs, what it reads, and how much it makes at once.

It needs no torch, so that a request can be checked on any machine. A new sampler is one file in `samplers/` and one
entry here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ti2v_dist.errors import InputError

WINDOW = "window"
"""A model that predicts a window of noisy latents at one timestep, and encodes a picture."""
PICTURES = "pictures"
"""A model of which each latent is one picture, and can be decoded by itself."""
IMAGE = "image"
"""A model that predicts one noisy latent a row, with self-attention to other frames, and encodes a picture."""
CONTROL = "control"
"""An image model with a ControlNet."""
INSTRUCT = "instruct"
"""An image model that changes a picture as it is told."""
FRAME_BY_FRAME = frozenset({WINDOW, PICTURES})
"""What a latent video model of one latent a frame can do."""
NEEDED, OPTIONAL, NONE = "needed", "optional", "none"
COMMON = frozenset({"num_inference_steps", "guidance_scale", "t_start"})
"""The settings that every sampler reads."""


@dataclass(frozen=True)
class SamplerSpec:
    """What is known of a sampler without running it.

    `function` is "module:name" below `ti2v_dist.samplers`, or "package.module:name" elsewhere. `needs` are the
    capabilities of its models. `reads` are the settings that it reads beside `COMMON`. `chunk` is the number of latents
    that one call makes, None for what a window has room for behind its context. A sampler of `is_one_window` makes one
    chunk under one text, and ends; one that `looks_ahead` makes the frames between given ones, under one text.

    `begin` names, as `function` does, what makes the first frame, or what else a video starts from: then the context is
    an anchor of so many latents, which does not slide. `image` says whether a row gives the first frame: NEEDED,
    OPTIONAL or NONE. `source` is the column of the video of which each new frame takes one.
    `num_inference_steps` is the number of steps where nobody chose.
    """

    function: str
    reads: frozenset[str]
    needs: frozenset[str] = frozenset({WINDOW})
    chunk: int | None = 1
    is_one_window: bool = False
    looks_ahead: bool = False
    begin: str | None = None
    anchor: int = 0
    image: str = NEEDED
    source: str | None = None
    num_inference_steps: int = 10

    def usual_context(self, window: int) -> int:
        """Context latents where nobody chose: all but the new one, or half of a window that reaches as far ahead."""
        return self.anchor or (window // 2 if self.looks_ahead else window - 1)


class Limits(Protocol):
    """What a model can do, of everything that a request must be checked against.

    `window` counts latents, `vae_factor` pixels along a side of a latent's cell. Every latent after the first stands
    for `frames_per_latent` frames.
    """

    @property
    def window(self) -> int: ...

    @property
    def vae_factor(self) -> int: ...

    @property
    def frames_per_latent(self) -> int: ...

    @property
    def capabilities(self) -> frozenset[str]: ...


_QUEUE = frozenset({"resample_iterations", "context_frames", "init"})
_MOTION = frozenset({"chunk_frames", "anchor", "motion_dx", "motion_dy", "motion_t0", "motion_t1"})
_MOTION |= {"smoothing", "subject"}

SAMPLERS: dict[str, SamplerSpec] = {
    "ti2v_zero": SamplerSpec("ti2v_zero:sample_ti2v_zero", _QUEUE),
    "ti2v_zero_reference": SamplerSpec("reference:sample_reference", _QUEUE, FRAME_BY_FRAME),
    "replace": SamplerSpec("replace:sample_replace", frozenset(), chunk=None, is_one_window=True),
    "infill": SamplerSpec("infill:sample_infill", _QUEUE, chunk=None, looks_ahead=True),
    "text2video_zero": SamplerSpec(
        "text2video_zero:sample_text2video_zero",
        _MOTION,
        frozenset({IMAGE}),
        chunk=None,
        begin="text2video_zero:begin_text2video_zero",
        anchor=3,
        image=OPTIONAL,
        num_inference_steps=50,
    ),
    "text2video_zero_control": SamplerSpec(
        "controlled:sample_controlled",
        frozenset({"chunk_frames", "control_preprocessor"}),
        frozenset({IMAGE, CONTROL}),
        chunk=None,
        begin="controlled:begin_controlled",
        anchor=1,
        image=NONE,
        source="control",
        num_inference_steps=20,
    ),
    "instruct_pix2pix_video": SamplerSpec(
        "controlled:sample_instructed",
        frozenset({"chunk_frames", "image_guidance_scale"}),
        frozenset({INSTRUCT}),
        chunk=None,
        begin="controlled:begin_instructed",
        anchor=1,
        image=NONE,
        source="source_video",
        num_inference_steps=20,
    ),
}


def check_needs(name: str, capabilities: frozenset[str]) -> None:
    """Raise `InputError` where a model of these capabilities has not what a sampler needs."""
    if lacking := sorted(SAMPLERS[name].needs - capabilities):
        able = [other for other, spec in SAMPLERS.items() if spec.needs <= capabilities]
        problem = f"sampler is {name!r}; the model has no {' and no '.join(lacking)}"
        raise InputError(f"{problem}: choose one of {', '.join(able)}")


def needs_of(name: str) -> str:
    """What a sampler needs of a model and of a row, in a line."""
    spec = SAMPLERS[name]
    of_row = {NEEDED: "image", OPTIONAL: "image if there is one", NONE: "no image"}[spec.image]
    source = f", {spec.source}" if spec.source else ""
    return f"{name}: a model with {' and '.join(sorted(spec.needs))}; of a row {of_row}{source}"
