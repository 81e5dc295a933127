"""How a video is sampled (`SamplingParams`); a new setting of the samplers is one field."""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from ti2v_dist.errors import InputError
from ti2v_dist.prompts import motion_words
from ti2v_dist.settings import check_range, check_settings, setting, settings_of, shared, some_setting, way_out
from ti2v_dist.specs import SAMPLERS, SamplerSpec

CONTEXTS = ("full", "cached")
SOLVERS = ("ddim", "dpmpp_2m")
INIT_NAMES = ("inversion", "gaussian")
ANCHORS = ("first", "last")
PREPROCESSORS = ("none", "canny")
COLOR_MATCHES = ("none", "first_frame")
STRATEGIES = ("clean", "noised", "inverted")
PARTS_OF_PILIFE = ("none", "inversion", "attention", "clipper", "frames")
TRAIN_TIMESTEPS = 1000
ALWAYS = f"1-{TRAIN_TIMESTEPS - 1}"
"""The interval of all timesteps."""


def options(text: str) -> str:
    """`name=value, name=value` in one form: sorted, and numbers as Python writes them. Raises `InputError`."""
    found = dict[str, float]()
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (word.strip() for word in entry.partition("="))
        if name in found:
            raise InputError(f"clip_options has {name} twice; choose one value")
        try:
            found[name] = float(value)
        except ValueError:
            raise InputError(f"clip_options has {entry!r}; write name=number, with commas between") from None
        if not isfinite(found[name]):
            raise InputError(f"clip_options has {entry!r}; it must be a finite number")
    return ", ".join(f"{name}={_short(value)}" for name, value in sorted(found.items()))


def interval(text: str) -> str:
    """`low-high`, two timesteps, in one form. Raises `InputError`."""
    low, _, high = (number.strip() for number in text.partition("-"))
    if not (low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high) < TRAIN_TIMESTEPS):
        raise InputError(f"guidance_interval is {text!r}; write two timesteps of {ALWAYS}, the lower one first")
    return f"{int(low)}-{int(high)}"


def _short(value: float) -> str:
    """As short as the number allows: no digit that was written is lost."""
    return text if float(text := f"{value:g}") == value else repr(value)


_PIXELS: dict[str, Any] = {"low": -512, "high": 512, "kept": float, "is_shared": False}


@dataclass(frozen=True)
class SamplingParams:
    """How frames are sampled (TI2V-Zero, Ni et al. 2024, Algorithm 1); the paper's symbol in brackets.

    `t_start` is the first timestep; by default (S - 1) * (1000 // S) + 1. `init="gaussian"` starts a new frame from
    noise instead of the DDPM-inverted last latent, for the ablation.
    """

    sampler: str = setting("ti2v_zero", "the video algorithm", choices=SAMPLERS)
    num_inference_steps: int = setting(
        10,
        "denoising steps [S]",
        low=1,
        high=TRAIN_TIMESTEPS - 1,
        of_sampler=lambda spec, window, stride: spec.num_inference_steps,
    )
    resample_iterations: int = setting(4, "how often each of them is made [U]", low=1)
    guidance_scale: float = setting(
        9.0, "weight of the text [g]", above=0, kept=float, of_model=lambda info: info.guidance_scale, is_shared=False
    )
    context_frames: int = setting(
        15,
        "latents in the queue [K]",
        low=1,
        of_sampler=lambda spec, window, stride: spec.usual_context(window, stride),
    )
    t_start: int | None = setting(None, "the first timestep", low=1, high=TRAIN_TIMESTEPS - 1, is_column=False)
    init: str = setting("inversion", "what a new frame starts from", choices=INIT_NAMES, is_column=False)
    chunk_frames: int | None = some_setting(
        8,
        "frames of an image model made at once",
        low=1,
        of_sampler=lambda spec, window, stride: spec.chunk_frames,
        is_column=False,
    )
    anchor: str | None = some_setting("first", "whose look the frames take over", choices=ANCHORS, is_column=False)
    motion_dx: float | None = some_setting(
        12.0, "pixels a frame to the right [δx]", of_model=lambda info: info.width * 12 / 512, **_PIXELS
    )
    motion_dy: float | None = some_setting(
        12.0, "pixels a frame down [δy]", of_model=lambda info: info.height * 12 / 512, **_PIXELS
    )
    motion_t0: int | None = some_setting(
        881, "where the picture moves [T']", low=1, high=999, of_model=lambda info: info.motion_t0, is_column=False
    )
    motion_t1: int | None = some_setting(
        941, "to where it is noised again [T]", low=1, high=999, of_model=lambda info: info.motion_t1, is_column=False
    )
    smoothing: float | None = some_setting(
        None, "share of frame 0 in the background of the others [α]", low=0, high=1, kept=float, is_shared=False
    )
    subject: str | None = some_setting(None, "words of the prompt that name the foreground", is_shared=False)
    control_preprocessor: str | None = some_setting(
        "none", "what is made of a control frame", choices=PREPROCESSORS, is_shared=False
    )
    image_guidance_scale: float | None = some_setting(
        1.5, "weight of the source's frames", above=0, kept=float, is_shared=False
    )
    motion_prompt: str | None = some_setting(None, "the words that say what moves and how", is_shared=False)
    inversion_timestep: int | None = some_setting(
        761,
        "where the image's inversion ends and the frames begin [s*]",
        low=1,
        high=TRAIN_TIMESTEPS - 1,
        of_model=lambda info: info.inversion_timestep,
        is_column=False,
    )
    inversion_iterations: int | None = some_setting(
        10, "how often each of its steps improves the embedding, at most", low=1, is_column=False
    )
    inversion_rate: float | None = some_setting(
        0.01, "Adam's learning rate at its first step", above=0, kept=float, is_column=False
    )
    motion_noise: float | None = some_setting(
        1.0, "weight of the noise that keeps to what moves [η]", low=0, high=1000, kept=float
    )
    distance_probability: float | None = some_setting(
        0.5, "how likely the third frame that is looked at is the one before [p]", low=0.01, high=1, kept=float
    )
    without: str | None = some_setting(
        "none", "a part of PiLife that is left out, for the ablation", choices=PARTS_OF_PILIFE, is_column=False
    )
    strategy: str | None = some_setting(
        "clean", "how given frames go into a model that looks back", choices=STRATEGIES, is_column=False
    )

    clip_frames: int | None = some_setting(
        81,
        "frames of a clip, those that it begins with too [F]",
        low=2,
        of_model=lambda info: info.clip and info.clip.frames,
    )
    tail_frames: int | None = some_setting(1, "frames of the clip before that the next one begins with [T]", low=1)
    clip_options: str | None = some_setting(None, "the pipeline's own options, as name=value, name=value", kept=options)
    color_match: str | None = some_setting(
        "none", "whose colours each clip takes over", choices=COLOR_MATCHES, is_column=False
    )

    addnoise_condition: int | None = some_setting(
        20, "timestep to which the latents that are gone on from are noised", low=0, high=TRAIN_TIMESTEPS - 1
    )
    ar_step: int | None = some_setting(0, "steps by which each block of latents lags behind the one before it", low=0)
    causal_block_size: int | None = some_setting(1, "latents in a block, none of which sees a later block", low=1)

    stride: int | None = way_out(1, "new latents of a window, beside each other [s]", low=1)
    guidance_interval: str | None = way_out(
        ALWAYS,
        "timesteps, as low-high, at which the text has its weight; elsewhere it is the text alone",
        kept=interval,
    )

    solver: str | None = way_out("ddim", "how a step is made of what the model predicts", choices=SOLVERS)

    resample_context: str | None = way_out(
        "full", "whether resampling computes the queue again, or goes by what it computed of it once", choices=CONTEXTS
    )

    def __post_init__(self) -> None:
        check_settings(self)
        for name, one in settings_of(SamplingParams).items():
            if one.is_some and name in self.spec.reads and getattr(self, name) is None:
                object.__setattr__(self, name, one.usual)
            if one.is_some and name not in self.spec.reads and getattr(self, name) is not None:
                raise InputError(f"{name} is {getattr(self, name)!r}; sampler {self.sampler!r} does not read it")
        if self.t_start is not None and not self.spec.has_t_start:
            raise InputError(f"t_start is {self.t_start}; sampler {self.sampler!r} does not read it")
        if self.spec.has_t_start and self.t_start is None and self.num_inference_steps == 1:
            raise InputError("num_inference_steps is 1 without t_start; it would start at t = 1: set t_start")
        if self.resample_context and 1 in (self.resample_iterations, self.num_inference_steps):
            name = "resample_iterations" if self.resample_iterations == 1 else "num_inference_steps"
            raise InputError(f"resample_context is 'cached', and {name} 1: nothing is resampled; choose full")
        check_range("num_inference_steps", self.num_inference_steps, 1, self.first_timestep)

    def check_texts(self, texts: list[str]) -> None:
        """Raise `InputError` where a sampler needs a word that neither the texts nor the settings have."""
        if "motion_prompt" in self.spec.reads:
            self.motion_of(texts[0])
        if self.smoothing is not None:
            self._check_subject(texts)

    def motion_of(self, text: str) -> str:
        """The words of the motion: those that are given, else those of the text. Raises `InputError` for none."""
        if words := (self.motion_prompt or "").strip() or motion_words(text):
            return words
        raise InputError(f"prompt {text!r} has no word of a motion that is known: give motion_prompt too")

    def _check_subject(self, texts: list[str]) -> None:
        """A background is to be smoothed, and somebody says what stands before it."""
        if not self.subject:
            raise InputError(f"smoothing is {self.smoothing!r}; give subject too, the words of the prompt in front")
        for text in texts:
            if missing := [word for word in self.subject.lower().split() if word not in text.lower().split()]:
                raise InputError(f"subject is {self.subject!r}; prompt {text!r} has no {' and no '.join(missing)}")

    @property
    def chosen_options(self) -> dict[str, float]:
        """`clip_options` by name."""
        pairs = (entry.partition("=") for entry in (self.clip_options or "").split(", ") if entry)
        return {name: float(value) for name, _, value in pairs}

    @property
    def spec(self) -> SamplerSpec:
        """What is known of the sampler."""
        return SAMPLERS[self.sampler]

    def chunk_latents(self, window: int) -> int:
        """Latents that one call makes with a model of this window."""
        behind = self.context_frames if "context_frames" in self.spec.reads else 1
        return self.stride or self.spec.chunk or self.chunk_frames or window - behind

    @property
    def first_timestep(self) -> int:
        """t_1, the noisiest timestep."""
        if self.t_start is not None:
            return self.t_start
        steps = self.num_inference_steps
        return (steps - 1) * (TRAIN_TIMESTEPS // steps) + 1

    def is_guided(self, t: int) -> bool:
        """Whether the model is asked with and without the text at this timestep."""
        low, high = map(int, (self.guidance_interval or ALWAYS).split("-"))
        return low <= t <= high

    @property
    def batch_group(self) -> tuple:
        """What must be equal for two videos to share a batch; guidance is a value per slot."""
        return tuple({**shared(self), "t_start": self.first_timestep}.values())
