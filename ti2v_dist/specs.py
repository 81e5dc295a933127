"""The video algorithms by their names: what each one needs, what it reads, and how much it makes at once.

It needs no torch, so that a request can be checked on any machine. A new sampler is one file in `samplers/` and one
entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ti2v_dist.counting import (
    CallSize,
    beside,
    each_step,
    enlivened,
    inverted,
    looked_back,
    moved,
    optimised,
    resampled,
    staggered,
    whole_window,
)
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
LOOK_BACK = "look_back"
"""An image model with modules through which a frame sees those before it; its window is how far back it sees."""
CLIP = "clip"
"""A pipeline that makes a clip after the last frames that there are, one video at a time."""
ROLLOUT = "rollout"
"""A model that makes a clip after the last latents that there are, one video at a time."""
PACKED = "packed"
"""A model that makes a section after an image and all latents that there are, the older the more packed."""
CAUSAL = "causal"
"""As `WINDOW`, but a video's first latent is one picture and each other several, decoded in their order."""
RECALLING = "recalling"
"""With `WINDOW`: one that can predict the newest latents again by what it kept of the others."""
FRAME_BY_FRAME = frozenset({WINDOW, PICTURES})
"""What a latent video model of one latent a frame can do."""
NEEDED, OPTIONAL, NONE = "needed", "optional", "none"
COMMON = frozenset({"num_inference_steps", "guidance_scale"})
"""The settings that every sampler reads."""


@dataclass(frozen=True)
class SamplerSpec:
    """What is known of a sampler without running it.

    `function` is "module:name" below `ti2v_dist.samplers`, or "package.module:name" elsewhere. `needs` are the
    capabilities of its models. `reads` are the settings that it reads beside `COMMON`. `chunk` is the number of latents
    that one call makes, if there is no `stride`; None for what a window has room for behind its context. A sampler of
    `is_one_window` makes one chunk under one text, and ends; one that `looks_ahead` makes the frames between given
    ones, under one text.

    `begin` names, as `function` does, what makes the first frame, or what else a video starts from. With an `anchor`
    the context is so many latents, which do not slide. `image` says whether a row gives the first frame: NEEDED,
    OPTIONAL or NONE. `source` is the column of the video of which each new frame takes one.
    `num_inference_steps` is the number of steps where nobody chose, `chunk_frames` that of an image model's frames, and
    `context` that of the latents in the queue, where that is not what a window has room for.

    With `one_by_one` each call of the model is for one video. A context that `grows` begins as one latent, and has
    `context_frames` at most; one that `keeps_first` never lets the first latent go. With `tail` it is the last frames
    themselves, and each chunk a clip that begins with them.

    `prompt` is OPTIONAL where an empty one makes sense. A sampler that `finds_negative` finds by itself what takes the
    place of the negative prompt.

    `evaluations` are the calls of the model that one call of the sampler makes, and `begin_evaluations` those of
    `begin`, at most, where it may stop early; of a look ahead, for the latents that are not given.
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
    chunk_frames: int = 8
    context: int = 0
    prompt: str = NEEDED
    finds_negative: bool = False
    has_t_start: bool = True
    one_by_one: bool = False
    grows: bool = False
    keeps_first: bool = False
    tail: bool = False
    evaluations: Callable[[CallSize], float] = each_step
    begin_evaluations: Callable[[CallSize], float] = each_step

    @property
    def has_joins(self) -> bool:
        """Whether its videos are made of clips, each of which can be told from the one before."""
        return self.tail or self.grows

    @property
    def settings(self) -> frozenset[str]:
        """All settings that it reads."""
        return COMMON | self.reads | ({"t_start"} if self.has_t_start else set())

    def usual_context(self, window: int, stride: int = 1) -> int:
        """Context latents where nobody chose: all but the new ones, or half of a window that reaches as far ahead."""
        behind = window // 2 if self.looks_ahead else max(1, window - stride)
        return self.anchor or min(self.context or window, behind)


_QUEUE = frozenset({"resample_iterations", "context_frames", "init"})
_FAST = frozenset({"stride", "guidance_interval"})
_FASTER = _FAST | {"solver", "resample_context"}
_MOTION = frozenset({"chunk_frames", "anchor", "motion_dx", "motion_dy", "motion_t0", "motion_t1"})
_MOTION |= {"smoothing", "subject"}
_LIFE = frozenset({"chunk_frames", "inversion_timestep", "inversion_iterations", "inversion_rate"})
_LIFE |= {"motion_prompt", "motion_noise", "distance_probability", "without"}
_ALONE: dict[str, Any] = {"prompt": OPTIONAL, "has_t_start": False, "one_by_one": True}


SAMPLERS: dict[str, SamplerSpec] = {
    "ti2v_zero": SamplerSpec("ti2v_zero:sample_ti2v_zero", _QUEUE | _FASTER, evaluations=resampled),
    "ti2v_zero_causal": SamplerSpec(
        "ti2v_zero:sample_ti2v_zero",
        _QUEUE | _FAST,
        frozenset({CAUSAL}),
        begin="causal:begin_causal",
        keeps_first=True,
        evaluations=resampled,
        begin_evaluations=lambda call: 0,
    ),
    "ti2v_zero_reference": SamplerSpec("reference:sample_reference", _QUEUE, FRAME_BY_FRAME, evaluations=whole_window),
    "replace": SamplerSpec("replace:sample_replace", frozenset(), chunk=None, is_one_window=True),
    "infill": SamplerSpec("infill:sample_infill", _QUEUE, chunk=None, looks_ahead=True, evaluations=resampled),
    "text2video_zero": SamplerSpec(
        "text2video_zero:sample_text2video_zero",
        _MOTION,
        frozenset({IMAGE}),
        chunk=None,
        begin="text2video_zero:begin_text2video_zero",
        anchor=3,
        image=OPTIONAL,
        num_inference_steps=50,
        evaluations=moved,
        begin_evaluations=inverted,
    ),
    "i2v_zero": SamplerSpec(
        "text2video_zero:sample_text2video_zero",
        _MOTION,
        frozenset({IMAGE}),
        chunk=None,
        begin="text2video_zero:begin_text2video_zero",
        anchor=3,
        num_inference_steps=50,
        evaluations=moved,
        begin_evaluations=inverted,
    ),
    "pilife": SamplerSpec(
        "pilife:sample_pilife",
        _LIFE,
        frozenset({IMAGE}),
        chunk=None,
        begin="motion_inversion:begin_pilife",
        finds_negative=True,
        anchor=3,
        num_inference_steps=50,
        chunk_frames=5,
        evaluations=enlivened,
        begin_evaluations=optimised,
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
        evaluations=beside,
    ),
    "look_back": SamplerSpec(
        "look_back:sample_look_back",
        frozenset({"context_frames", "chunk_frames", "strategy"}),
        frozenset({LOOK_BACK}),
        chunk=None,
        prompt=OPTIONAL,
        num_inference_steps=20,
        evaluations=looked_back,
    ),
    "clip": SamplerSpec(
        "clip:sample_clip",
        frozenset({"clip_frames", "tail_frames", "clip_options", "color_match"}),
        frozenset({CLIP}),
        anchor=1,
        num_inference_steps=50,
        tail=True,
        **_ALONE,
    ),
    "diffusion_forcing": SamplerSpec(
        "diffusion_forcing:sample_diffusion_forcing",
        frozenset({"context_frames", "addnoise_condition", "ar_step", "causal_block_size"}),
        frozenset({ROLLOUT}),
        chunk=None,
        num_inference_steps=50,
        context=5,
        grows=True,
        evaluations=staggered,
        **_ALONE,
    ),
    "framepack_f1": SamplerSpec(
        "framepack:sample_framepack",
        frozenset({"context_frames"}),
        frozenset({PACKED}),
        chunk=9,
        num_inference_steps=30,
        context=20,
        grows=True,
        keeps_first=True,
        **_ALONE,
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
        evaluations=beside,
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
