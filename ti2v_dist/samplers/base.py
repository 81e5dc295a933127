"""What every sampler is given and gives back, and the parts that several of them share.

The paper's symbols are the names: s_0 the queue of K clean latents, s_t its noisy copy, x the new latents (the
paper's z-hat^K), t and t_prev the timesteps of a step, U the denoisings per step, g the guidance scale.
Suffixes: B batch, C latent channels, F new latents, K context latents, S steps, H height, W width, L tokens, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.noise import KeyedNoise, Purpose
from ti2v_dist.schedules import Before, Schedule
from ti2v_dist.video import VideoRequest


class HasWindow(Protocol):
    """The part of a model's description that a sampler reads."""

    @property
    def window(self) -> int: ...


class Backbone(Protocol):
    """The part of a `VideoModel` that a sampler calls; restated here because samplers import no models."""

    @property
    def info(self) -> HasWindow: ...

    @property
    def schedule(self) -> Schedule: ...

    def predict(self, x_BCFHW: Tensor, t: int, text_BLD: Tensor) -> Tensor: ...

    def encode_image(self, image_BCHW: Tensor) -> Tensor: ...

    def decode(self, latent_BCHW: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Batch:
    """What one call of a sampler reads of B videos of one group; an empty slot is all zeros, and its guidance 1.

    `context_BCKHW` are the latents that the new ones follow, the oldest first. `ahead` are, of each video, the given
    ones among its next latents: their places, counted from 0, and values_CHW. `sources_BFHWC` are, where a sampler
    reads a `source`, its frames in [0, 1]: the one of frame 0, and those of the new frames. A sampler whose first frame
    is made is called once for that one alone, by its spec's `begin`; its context is then the image, or zeros.
    """

    context_BCKHW: Tensor
    text_BLD: Tensor
    negative_text_BLD: Tensor
    guidance_B: Tensor
    noise: KeyedNoise
    ahead: Sequence[Mapping[int, np.ndarray] | None]
    requests: Sequence[VideoRequest | None] = ()
    frames_B: Sequence[int] = ()
    """The first new frame of each slot."""
    sources_BFHWC: Tensor | None = None
    embeddings_BSLD: Tensor | None = None
    """What `begin` found a video's embeddings to be, one for each step; None where it finds none."""
    images_BHWC: Tensor | None = None
    """The first frames, uint8, where a sampler reads them."""
    tails_BTHWC: Tensor | None = None
    """The last frames, uint8, where a sampler goes on from pictures."""


class Sample(NamedTuple):
    """New latents, and what enters the queue where that differs from them.

    Of a clip the latents are those of all its frames, of which only `frames` are new, and the tails its last ones.
    """

    latents_BCFHW: Tensor
    context_BCFHW: Tensor | None = None
    tails_BTHWC: Tensor | None = None
    frames: int = 0


Sampler = Callable[[Any, Batch, SamplingParams], Sample]


class Begun(NamedTuple):
    """The anchor that a video goes on from, whose last latent is that of frame 0; and embeddings, one a step."""

    anchor_BCNHW: Tensor
    embeddings_BSLD: Tensor | None = None


Begin = Callable[[Any, Batch, SamplingParams], Begun]


@runtime_checkable
class KeepsText(Protocol):
    """A model that reads a text once for many predictions, and makes both branches of the same latents.

    Where it `recalls`, the newest latents alone may follow a whole window, at the same timestep.
    """

    def under(self, text_RLD: Tensor, recalls: bool = False) -> Callable[[Tensor, int, int], Tensor]: ...


class Guided(Protocol):
    """An evaluation: the guided prediction (eq. 5) of the `last` latents of a window, by default of all."""

    def __call__(self, x_BCFHW: Tensor, t: int, last: int | None = None) -> Tensor: ...


def guided(model: Backbone, batch: Batch, params: SamplingParams | None = None) -> Guided:
    """Evaluations with each video's texts and guidance scale, of 2B rows in one call.

    The unconditional rows come first. They are made at g = 1 too: leaving them out would change the batch's shape and
    so the bits. Only where `guidance_interval` says so they are left out, of all slots alike (Kynkäänniemi et al.
    2024).
    """
    recalls = bool(params and params.resample_context)
    both = _under(model, torch.cat([batch.negative_text_BLD, batch.text_BLD]), recalls)
    alone = _under(model, batch.text_BLD, recalls) if params and params.guidance_interval else both
    g = batch.guidance_B.float().view(-1, 1, 1, 1, 1)

    def evaluate(x_BCFHW: Tensor, t: int, last: int | None = None) -> Tensor:
        last = last or x_BCFHW.shape[2]
        if params and not params.is_guided(t):
            return alone(x_BCFHW, t, last)
        uncond, cond = both(x_BCFHW, t, last).chunk(2)
        return uncond + g * (cond - uncond)

    return evaluate


def _under(model: Backbone, text_RLD: Tensor, recalls: bool) -> Callable[[Tensor, int, int], Tensor]:
    """As `KeepsText.under`, of any model: x has as many rows as the texts, or half as many."""
    if isinstance(model, KeepsText):
        return model.under(text_RLD, recalls)
    assert not recalls, model

    def predict(x_BCFHW: Tensor, t: int, last: int) -> Tensor:
        x_RCFHW = x_BCFHW.repeat(len(text_RLD) // len(x_BCFHW), 1, 1, 1, 1)
        return model.predict(x_RCFHW, t, text_RLD).float()[:, :, -last:]

    return predict


def checked_queue(model: Backbone, batch: Batch, params: SamplingParams) -> tuple[Tensor, int]:
    """The queue s_0 and its length K, which must leave room for the new latents in the window."""
    s_0, K, F = batch.context_BCKHW, batch.context_BCKHW.shape[2], params.stride or 1
    assert params.context_frames == K <= model.info.window - F, (K, params.context_frames, F, model.info.window)
    return s_0, K


def first_latent(model: Backbone, batch: Batch, params: SamplingParams) -> Tensor:
    """The new latents at t_1: the newest context latent, noised for each on its own (Alg. 1, line 9), or pure noise."""
    fresh = batch.noise.draw(Purpose.INIT, 0, 0, params.stride or 1)
    newest = batch.context_BCKHW[:, :, -1:]
    return fresh if params.init == "gaussian" else model.schedule.q_sample(newest, params.first_timestep, fresh)


class Way:
    """The steps from noise to a clean latent, by the `solver` that is chosen.

    DPM-Solver++(2M) goes by the step before, on the same way: what is noised anew begins another way, so that its
    next step is of first order. So is the last step, as is usual where steps are few.
    """

    def __init__(self, schedule: Schedule, params: SamplingParams) -> None:
        self._schedule, self._is_multistep = schedule, params.solver is not None
        self._before: Before | None = None

    def step(self, x: Tensor, prediction: Tensor, t: int, t_prev: int) -> Tensor:
        """As `Schedule.step`."""
        if not self._is_multistep:
            return self._schedule.step(x, prediction, t, t_prev)
        before = self._before if t_prev > 0 else None
        stepped, clean = self._schedule.multistep(x, prediction, t, t_prev, before)
        self._before = t, clean
        return stepped

    def renoise(self, x: Tensor, t: int, t_prev: int, noise: Tensor) -> Tensor:
        """As `Schedule.renoise`."""
        self._before = None
        return self._schedule.renoise(x, t, t_prev, noise)


def to_image(frames_BHWC: Tensor) -> Tensor:
    """uint8 pixels to the encoder's float32 image_BCHW in [-1, 1]."""
    # Convolutions of a channels-last tensor run other kernels, with other bits.
    return frames_BHWC.permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1
