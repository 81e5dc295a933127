"""The video algorithms by their names: what each one needs, what it reads, and how much it makes at once.

It needs no torch, so that a request can be checked on any machine. A new sampler is one file in `samplers/` and one
entry here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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
FRAME_BY_FRAME = frozenset({WINDOW, PICTURES})
"""What a latent video model of one latent a frame can do."""
NEEDED, OPTIONAL, NONE = "needed", "optional", "none"
COMMON = frozenset({"num_inference_steps", "guidance_scale"})
"""The settings that every sampler reads."""


class CallSize(NamedTuple):
    """What the evaluations of one call of a sampler depend on: [S], [U], the latents that it makes, and the rest.

    `late_steps` are those of its steps from `motion_t1`, or `inversion_timestep`, on. `has_image`, `is_smoothed`,
    `without`, `is_inverted`, `ar_step` and `block` are the row's. `context` are the latents that it goes on from.
    """

    steps: int
    iterations: int
    latents: int
    late_steps: int
    has_image: bool = True
    is_smoothed: bool = False
    without: str | None = None
    context: int = 0
    is_inverted: bool = False
    ar_step: int = 0
    block: int = 1


def each_step(call: CallSize) -> int:
    """Every step once, whatever the number of latents."""
    return call.steps


@dataclass(frozen=True)
class SamplerSpec:
    """What is known of a sampler without running it.

    `function` is "module:name" below `ti2v_dist.samplers`, or "package.module:name" elsewhere. `needs` are the
    capabilities of its models. `reads` are the settings that it reads beside `COMMON`. `chunk` is the number of latents
    that one call makes, None for what a window has room for behind its context. A sampler of `is_one_window` makes one
    chunk under one text, and ends; one that `looks_ahead` makes the frames between given ones, under one text.

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
    evaluations: Callable[[CallSize], int] = each_step
    begin_evaluations: Callable[[CallSize], int] = each_step

    @property
    def has_joins(self) -> bool:
        """Whether its videos are made of clips, each of which can be told from the one before."""
        return self.tail or self.grows

    @property
    def settings(self) -> frozenset[str]:
        """All settings that it reads."""
        return COMMON | self.reads | ({"t_start"} if self.has_t_start else set())

    def usual_context(self, window: int) -> int:
        """Context latents where nobody chose: all but the new one, or half of a window that reaches as far ahead."""
        return self.anchor or min(self.context or window, window // 2 if self.looks_ahead else window - 1)


_QUEUE = frozenset({"resample_iterations", "context_frames", "init"})
_MOTION = frozenset({"chunk_frames", "anchor", "motion_dx", "motion_dy", "motion_t0", "motion_t1"})
_MOTION |= {"smoothing", "subject"}
_LIFE = frozenset({"chunk_frames", "inversion_timestep", "inversion_iterations", "inversion_rate"})
_LIFE |= {"motion_prompt", "motion_noise", "distance_probability", "without"}
_ALONE: dict[str, Any] = {"prompt": OPTIONAL, "has_t_start": False, "one_by_one": True}


def _resampled(call: CallSize) -> int:
    """Each latent by itself; every step but the last one U times."""
    return call.latents * (call.iterations * (call.steps - 1) + 1)


def _whole_window(call: CallSize) -> int:
    return call.iterations * call.steps


def _moved(call: CallSize) -> int:
    """Each frame, and the anchor, from `motion_t1` on; and one look for the foreground."""
    return call.late_steps * (call.latents + 1) + call.is_smoothed


def _inverted(call: CallSize) -> int:
    """An image is inverted up to `motion_t1`; without one the first frame is made."""
    return call.late_steps if call.has_image else call.steps


def _enlivened(call: CallSize) -> int:
    """Each frame, and the one that they begin from; and the inversion of the last one, for the next call."""
    return call.late_steps * (call.latents + 2)


def _optimised(call: CallSize) -> int:
    """Of each step the inversion, the text once, U times the embedding, and once what it came to; and one look."""
    found = 0 if call.without == "inversion" else call.late_steps * (call.iterations + 2)
    return call.late_steps + found + (call.without != "attention")


def _beside(call: CallSize) -> int:
    """Each frame, and the anchor."""
    return call.steps * (call.latents + 1)


def _looked_back(call: CallSize) -> int:
    """Each frame, those that are given too; twice where they are inverted."""
    return call.steps * (call.latents + call.context * (1 + call.is_inverted))


def _staggered(call: CallSize) -> int:
    """Each block of latents begins `ar_step` steps after the one before it, or when that one is done."""
    return call.steps + (-(-call.latents // call.block) - 1) * min(call.ar_step, call.steps)


SAMPLERS: dict[str, SamplerSpec] = {
    "ti2v_zero": SamplerSpec("ti2v_zero:sample_ti2v_zero", _QUEUE, evaluations=_resampled),
    "ti2v_zero_causal": SamplerSpec(
        "ti2v_zero:sample_ti2v_zero",
        _QUEUE,
        frozenset({CAUSAL}),
        begin="causal:begin_causal",
        keeps_first=True,
        evaluations=_resampled,
        begin_evaluations=lambda call: 0,
    ),
    "ti2v_zero_reference": SamplerSpec("reference:sample_reference", _QUEUE, FRAME_BY_FRAME, evaluations=_whole_window),
    "replace": SamplerSpec("replace:sample_replace", frozenset(), chunk=None, is_one_window=True),
    "infill": SamplerSpec("infill:sample_infill", _QUEUE, chunk=None, looks_ahead=True, evaluations=_resampled),
    "text2video_zero": SamplerSpec(
        "text2video_zero:sample_text2video_zero",
        _MOTION,
        frozenset({IMAGE}),
        chunk=None,
        begin="text2video_zero:begin_text2video_zero",
        anchor=3,
        image=OPTIONAL,
        num_inference_steps=50,
        evaluations=_moved,
        begin_evaluations=_inverted,
    ),
    "i2v_zero": SamplerSpec(
        "text2video_zero:sample_text2video_zero",
        _MOTION,
        frozenset({IMAGE}),
        chunk=None,
        begin="text2video_zero:begin_text2video_zero",
        anchor=3,
        num_inference_steps=50,
        evaluations=_moved,
        begin_evaluations=_inverted,
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
        evaluations=_enlivened,
        begin_evaluations=_optimised,
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
        evaluations=_beside,
    ),
    "look_back": SamplerSpec(
        "look_back:sample_look_back",
        frozenset({"context_frames", "chunk_frames", "strategy"}),
        frozenset({LOOK_BACK}),
        chunk=None,
        prompt=OPTIONAL,
        num_inference_steps=20,
        evaluations=_looked_back,
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
        evaluations=_staggered,
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
        evaluations=_beside,
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
