"""What is asked for: a video (`VideoRequest`); a new setting of it is one field."""

import hashlib
import math
import re
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np

from ti2v_dist.canonical import canonical_sha256
from ti2v_dist.errors import InputError
from ti2v_dist.limits import Limits, check_blocks, check_boundary, check_clip, check_faster, chunks
from ti2v_dist.params import SamplingParams
from ti2v_dist.prompts import Prompt, caption, check_prompt, entries
from ti2v_dist.schedules import check_interval, motion_pair
from ti2v_dist.settings import (
    Setting,
    check_range,
    check_settings,
    declared,
    plain_settings,
    setting,
    settings_of,
    shared,
)
from ti2v_dist.specs import NEEDED, NONE, OPTIONAL, SAMPLERS, check_needs

MAX_SEED = 2**64 - 1
_NTSC = (24, 30, 48, 60, 120)
"""Whole rates of which television takes 1000/1001, and writes that to three places: 23.976, 29.97, 59.94."""
_LATER = ("origin", "generation", "given", "source")
"""Fields that a request of an earlier version does not have, and one without them does not show."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")


def rounded_rate(fps: float) -> int | float:
    """Frames per second as they are kept: to a thousandth, and a whole rate as an int, so that 8.0 hashes as 8."""
    rounded = round(fps, 3)
    return int(rounded) if isinstance(rounded, float) and rounded.is_integer() else rounded


def exact_rate(fps: float) -> Fraction:
    """The exact frames per second that `fps` stands for: thousandths, but 29.97 is 30000/1001, and its kin likewise."""
    ntsc = {rounded_rate(rate * 1000 / 1001): Fraction(rate * 1000, 1001) for rate in _NTSC}
    return ntsc.get(rounded_rate(fps), Fraction(round(fps * 1000), 1000))


def check_id(video_id: str) -> str:
    """Return `video_id` if keys and file names can be built from it; raise `ValueError` naming it otherwise."""
    if not isinstance(video_id, str) or not _ID.fullmatch(video_id):
        shown = f"{video_id!a:.80}"
        raise InputError(f"id is {shown}; it must be 1 to 128 of the characters A-Z, a-z, 0-9, _ and -")
    return video_id


@dataclass(frozen=True)
class Origin:
    """Where a forked video's first frames are found: those of video `id` up to `frame`, the last that they share."""

    id: str
    frame: int


@dataclass(frozen=True)
class Given:
    """A later frame of a video that is given and not made; its image as `VideoRequest` tells of the first one's.

    Without an image of its own it is a frame of the clip that the first one's image is.
    """

    frame: int
    image: str = ""
    image_uri: str = ""


@dataclass(frozen=True)
class Source:
    """A video that another one is made after, frame by frame: where it lies, as `image` and `image_uri` tell it.

    It had so many `frames` when it was looked at; `sha256` is that of its file, or of the files of its folder.
    `drawn_by` is the version of what draws its frames anew, where something does: other versions draw other lines.
    """

    url: str
    uri: str
    frames: int
    sha256: str
    drawn_by: str = ""


@dataclass(frozen=True)
class VideoRequest:
    """One video to make, every default filled in. Sizes in pixels; `fps` is frames per second, see `exact_rate`.

    `prompt` is a text or a prompt schedule. `image` is an absolute path or URL to read from and `image_uri` is what the
    user wrote: the same request may find its image elsewhere on another machine, and a fork its first frames at its
    `origin`. Both are empty where the sampler makes frame 0 too. `given` are the frames after frame 0 that are given
    too, in their order. `extra` holds the manifest's other columns, passed through to the output. `generation` counts
    how often the video was extended.
    """

    id: str
    image: str
    prompt: Prompt
    seed: int
    height: int = field(metadata=declared("pixels", low=8, of_model=lambda info: info.height))
    width: int = field(metadata=declared("pixels", low=8, of_model=lambda info: info.width))
    params: SamplingParams
    num_frames: int = setting(16, "frames of the video", low=2, is_shared=False)
    fps: float = setting(
        8, "frames per second", low=1, high=240, kept=rounded_rate, of_model=lambda info: info.fps, is_shared=False
    )
    negative_prompt: str = setting("", "what the video is to be unlike", is_shared=False)
    image_uri: str = ""
    extra: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    generation: int = 0
    given: tuple[Given, ...] = ()
    source: Source | None = None

    def __post_init__(self) -> None:
        check_id(self.id)
        spec = self.params.spec
        object.__setattr__(self, "prompt", check_prompt(self.prompt, spec.prompt == OPTIONAL))
        if (spec.is_one_window or spec.looks_ahead) and not isinstance(self.prompt, str):
            made = "makes one window" if spec.is_one_window else "makes what lies between given frames"
            raise InputError(f"prompt is a schedule; sampler {self.params.sampler!r} {made} under one text")
        check_settings(self)
        self.params.check_texts(self.texts)
        check_range("seed", self.seed, 0, MAX_SEED)
        self._check_given()
        self._check_source()

    def _check_source(self) -> None:
        spec, named = self.params.spec, f"sampler {self.params.sampler!r}"
        if not self.image and not self.is_clip and spec.image == NEEDED:
            raise InputError(f"image is missing; {named} goes on from one")
        if self.image and spec.image == NONE:
            raise InputError(f"image is {self.image!r:.200}; {named} makes the first frame itself: leave it out")
        if self.given and spec.anchor:
            raise InputError(f"images are {1 + len(self.given)}; {named} goes on from one: give the first one alone")
        if bool(spec.source) is not bool(self.source):
            what = f"{spec.source} is missing; {named} makes a video after one"
            raise InputError(what if spec.source else f"source is {self.source!r:.200}; {named} reads none")
        if self.source and self.source.frames < self.num_frames:
            missing = f"{spec.source} {self.source.uri!r} has {self.source.frames} frames"
            raise InputError(f"num_frames is {self.num_frames}; {missing}: frame {self.source.frames} is missing")

    def _check_given(self) -> None:
        frames, spec = [0, *(given.frame for given in self.given)], self.params.spec
        if any(later <= former for former, later in pairwise(frames)):
            raise InputError(f"images stand at frames {frames}; each must come after the one before, from 0 on")
        if spec.looks_ahead and frames[-1] != self.num_frames - 1:
            problem = f"images end at frame {frames[-1]}; sampler {self.params.sampler!r} makes what lies between two"
            raise InputError(f"{problem}: give the last frame too, {self.num_frames - 1}")
        if not spec.looks_ahead and self.lead < len(self.given):
            able = ", ".join(name for name, other in SAMPLERS.items() if other.looks_ahead)
            problem = f"images stand at frames {frames}; sampler {self.params.sampler!r} goes on from the first frames"
            raise InputError(f"{problem}: leave no gap, or choose {able}")
        if self.lead >= self.num_frames - 1:
            least = f"{1 + self.lead} images are given: choose at least {self.lead + 2}"
            raise InputError(f"num_frames is {self.num_frames}; {least}")

    @property
    def lead(self) -> int:
        """The last of the first frames that are all given: nothing is made up to there."""
        return sum(given.frame == number for number, given in enumerate(self.given, 1))

    @property
    def is_clip(self) -> bool:
        """Whether the given frames are those of one video file."""
        return any(not given.image for given in self.given)

    @property
    def places(self) -> list[str]:
        """Where the image of each given frame lies, where one is given; of a clip, the one place."""
        return [self.image] if self.is_clip else [self.image, *(given.image for given in self.given)]

    @property
    def texts(self) -> list[str]:
        """The text of the prompt, or all of a prompt schedule's."""
        return [entry["prompt"] for entry in entries(self.prompt)]

    @property
    def caption(self) -> str:
        """The prompt in one line, for people."""
        return caption(self.prompt)

    @property
    def batch_group(self) -> tuple:
        """What must be equal for two videos to share a batch."""
        return (*self.params.batch_group, *shared(self).values())

    def check_against_model(self, model: Limits) -> None:
        """Raise `ValueError`, naming the value and the choices, unless a model of these limits can make the video.

        Sizes must be even too, for 4:2:0 video. A prompt changes where a chunk begins.
        """
        spec, window = self.params.spec, model.window
        check_needs(self.params.sampler, model.capabilities)
        multiple = math.lcm(model.vae_factor, model.size_multiple, 2)
        for name, size in (("height", self.height), ("width", self.width)):
            if size % multiple:
                raise InputError(f"{name} is {size}; it must be a multiple of {multiple}")
        if "motion_t0" in spec.reads:
            motion_pair(self.params)
        check_faster(self.params, model)
        if self.params.guidance_interval:
            check_interval(self.params)
        new = self.params.stride or 1
        low, high = (spec.anchor, spec.anchor) if spec.anchor else (1 + spec.keeps_first, window - new)
        check_range("context_frames", self.params.context_frames, low, high)
        check_blocks(self.params, window)
        if model.clip:
            check_clip(self.params, model.clip, model.frames_per_latent)
            if not model.clip.reads_text and not isinstance(self.prompt, str):
                raise InputError("prompt is a schedule; the model reads no text")
        if self.given and model.frames_per_latent > 1:
            each = f"each latent of the model stands for {model.frames_per_latent} frames"
            raise InputError(f"images are {1 + len(self.given)}; {each}: give the first one alone")
        chunk = self.params.chunk_latents(window)
        for former, later in pairwise([0, *(given.frame for given in self.given)]):
            if spec.looks_ahead and later - former > chunk:
                problem = f"images at frames {former} and {later} are {later - former} apart"
                raise InputError(f"{problem}; with context_frames {window - chunk} at most {chunk} lie in a window")
        longest = 1 + (window - 1) * model.frames_per_latent
        if spec.is_one_window and self.num_frames > longest:
            one = f"sampler {self.params.sampler!r} makes one window"
            raise InputError(f"num_frames is {self.num_frames}; {one}: choose 2 to {longest} frames or another sampler")
        for entry in entries(self.prompt)[1:]:
            check_boundary("prompt begins at frame", entry["from_frame"], 1 + self.lead, self.chunks(model))

    def chunks(self, model: Limits) -> tuple[int, int]:
        """How many frames the first chunk has, and each later one."""
        return chunks(self.params, model)

    def to_json(self) -> dict[str, Any]:
        """A plain JSON object, without `origin`, `generation` and `given` where there is none; see `from_json`."""
        return {key: value for key, value in self._plain().items() if value or key not in _LATER}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "VideoRequest":
        """Inverse of `to_json`. A field of a newer version may decide what is made: it is a `ValueError`."""
        unknown = sorted({*data} - {own.name for own in fields(cls)})
        unknown += sorted({*data["params"]} - {own.name for own in fields(SamplingParams)})
        if unknown:
            raise InputError(f"this version knows no field {', '.join(unknown)} of a request; install a newer one")
        origin = data.get("origin")
        source = data.get("source")
        nested = {"params": SamplingParams(**data["params"]), "origin": Origin(**origin) if origin else None}
        nested |= {"source": Source(**source) if source else None}
        return cls(**{**data, **nested, "given": tuple(Given(**frame) for frame in data.get("given", ()))})

    def identity(self) -> dict[str, Any]:
        """What must not change when a run is resumed: all but where the image and the first frames lie today."""
        own = self._plain()
        given = [{"frame": frame.frame, "image_uri": frame.image_uri} for frame in self.given]
        kept = {key: value for key, value in own.items() if key != "image" and key not in _LATER}
        source = own["source"] and {key: value for key, value in own["source"].items() if key != "url"}
        return kept | ({"given": given} if given else {}) | ({"source": source} if source else {})

    def _plain(self) -> dict[str, Any]:
        """As `asdict`, which would copy every value of every column of thousands of rows."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        nested = {"params": plain_settings(self.params), "origin": asdict(self.origin) if self.origin else None}
        nested |= {"source": asdict(self.source) if self.source else None}
        return {**own, **nested, "given": [asdict(frame) for frame in self.given]}

    def recipe(self, fingerprint_sha256: str, image_HWC: np.ndarray, given_NHWC: np.ndarray | None = None) -> str:
        """sha256 of all that decides the value of a frame: sampling, the preprocessed images, the run's fingerprint.

        The length, the frame rate, the id and passed-through columns decide no frame.
        """
        decides = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "image_sha256": hashlib.sha256(image_HWC.tobytes()).hexdigest(),
            "seed": self.seed,
            "height": self.height,
            "width": self.width,
            "params": plain_settings(self.params),
            "fingerprint": fingerprint_sha256,
        }
        if given_NHWC is not None:
            images = [hashlib.sha256(image.tobytes()).hexdigest() for image in given_NHWC]
            decides["given"] = [[frame.frame, image] for frame, image in zip(self.given, images, strict=True)]
        if self.source:
            decides["source_sha256"] = self.source.sha256
            decides["drawn_by"] = self.source.drawn_by
        return canonical_sha256(decides)


SETTINGS: dict[str, Setting] = settings_of(SamplingParams) | settings_of(VideoRequest)
"""Every setting of a video."""
