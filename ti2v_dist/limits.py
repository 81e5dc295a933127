"""What a model can do, as far as a request must be checked against it. Told without torch."""

from dataclasses import dataclass
from typing import Protocol

from ti2v_dist.errors import InputError
from ti2v_dist.params import SamplingParams
from ti2v_dist.settings import check_range
from ti2v_dist.specs import RECALLING


@dataclass(frozen=True)
class ClipLimits:
    """What is known of a model that makes clips.

    `frames` are those of a clip where nobody chose; after the first there are `frames_per_latent` to a latent.
    `tail_step` is 0 where one frame alone is gone on from, else tails of 1 + n * `tail_step` frames can be. `options`
    are arguments of the pipeline that a row may give. Of a text so many `tokens` are read.
    """

    frames: int
    tail_step: int = 0
    reads_text: bool = True
    options: frozenset[str] = frozenset()
    tokens: int = 512


class Limits(Protocol):
    """What a model can do, of everything that a request must be checked against.

    `window` counts latents, `vae_factor` pixels along a side of a latent's cell; sizes are multiples of
    `size_multiple`. Every latent after the first stands for `frames_per_latent` frames.
    """

    @property
    def window(self) -> int: ...

    @property
    def vae_factor(self) -> int: ...

    @property
    def frames_per_latent(self) -> int: ...

    @property
    def capabilities(self) -> frozenset[str]: ...

    @property
    def size_multiple(self) -> int: ...

    @property
    def clip(self) -> ClipLimits | None: ...


def check_boundary(what: str, frame: int, first: int, chunks: tuple[int, int]) -> None:
    """Raise `ValueError`, naming the nearest ones, unless chunks have a boundary there.

    `first` is where the first boundary may lie; `chunks` are the frames of the first chunk and of each later one.
    """
    second, (frames, later) = first + chunks[0], chunks
    first, frames = (second, later) if frame > second else (first, frames)
    if beyond := (frame - first) % frames:
        near = " or ".join(str(f) for f in (frame - beyond, frame - beyond + frames) if f >= first)
        raise InputError(f"{what} {frame}, in the middle of a chunk of {frames} frames: choose {near}")


def chunks(params: SamplingParams, model: Limits) -> tuple[int, int]:
    """How many frames the first chunk of a video has, and each later one."""
    r = model.frames_per_latent
    if params.spec.tail:
        assert params.clip_frames, params
        assert params.tail_frames, params
        return params.clip_frames - 1, params.clip_frames - params.tail_frames
    if params.spec.grows and not params.spec.chunk:
        return (model.window - 1) * r, (model.window - params.context_frames) * r
    each = params.chunk_latents(model.window) * r
    return each, each


def check_blocks(params: SamplingParams, window: int) -> None:
    """Raise `InputError` where blocks of latents neither fill the window nor the context."""
    block = params.causal_block_size or 1
    for what, latents in (("the model's window", window), ("context_frames", params.context_frames)):
        if latents % block:
            raise InputError(f"causal_block_size is {block}; {what} is {latents}, which must be a multiple of it")


def check_faster(params: SamplingParams, model: Limits) -> None:
    """Raise `InputError` for a setting that is faster and approximate, and that the model's videos cannot have."""
    if params.stride:
        check_range("stride", params.stride, 1, model.window - 1 - params.spec.keeps_first)
    if params.resample_context and RECALLING not in model.capabilities:
        raise InputError("resample_context is 'cached'; the model's network keeps nothing of the queue: choose full")


def check_clip(params: SamplingParams, clip: ClipLimits, r: int) -> None:
    """Raise `InputError` for what a pipeline cannot make at once, go on from, or be told."""
    if params.clip_frames is not None:
        check_boundary("clip_frames is", params.clip_frames, 1 + r, (r, r))
    if params.tail_frames is not None:
        check_range("tail_frames", params.tail_frames, 1, (params.clip_frames or 2) - 1 if clip.tail_step else 1)
        step = max(1, clip.tail_step)
        check_boundary("tail_frames is", params.tail_frames, 1, (step, step))
    if unknown := sorted(params.chosen_options.keys() - clip.options):
        known = ", ".join(sorted(clip.options)) or "none"
        raise InputError(f"clip_options has {', '.join(unknown)}; the model's are {known}")
