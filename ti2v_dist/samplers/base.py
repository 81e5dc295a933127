"""What every sampler is given and gives back, and the parts that several of them share.

The paper's symbols are the names: s_0 the queue of K clean latents, s_t its noisy copy, x the new latents (the
paper's z-hat^K), t and t_prev the timesteps of a step, U the denoisings per step, g the guidance scale.
Suffixes: B batch, C latent channels, F new latents, K context latents, S steps, H height, W width, L tokens, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

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


def guided(model: Backbone, batch: Batch, params: SamplingParams | None = None) -> Callable[[Tensor, int], Tensor]:
    """An evaluation: (x_BCFHW, t) -> guided prediction (eq. 5), one model call of 2B rows, unconditional rows first.

    The unconditional branch runs at g = 1 too: leaving it out would change the batch's shape and so the bits. Only
    where `guidance_interval` says so it is left out, in all slots alike (Kynkäänniemi et al. 2024): B rows.
    """
    text_2BLD = torch.cat([batch.negative_text_BLD, batch.text_BLD])
    g = batch.guidance_B.float().view(-1, 1, 1, 1, 1)

    def evaluate(x_BCFHW: Tensor, t: int) -> Tensor:
        if params and not params.is_guided(t):
            return model.predict(x_BCFHW, t, batch.text_BLD).float()
        uncond, cond = model.predict(torch.cat([x_BCFHW, x_BCFHW]), t, text_2BLD).float().chunk(2)
        return uncond + g * (cond - uncond)

    return evaluate


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
