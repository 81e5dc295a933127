"""Semi-auto-regressive look-back (Algorithm 3). Names and suffixes as in `samplers/base.py`.

A chunk goes on from the last d - 1 clean frames; those of a new video are its image. At each step the frames follow
each other through the network, which carries from each what the next ones need: so a frame costs the same wherever it
stands, and no memory of its own.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ti2v_dist.limits import Limits
from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Batch, Sample
from ti2v_dist.samplers.noise import Purpose
from ti2v_dist.schedules import Schedule, timestep_pairs


class LookingBackbone(Protocol):
    """The part of a `LookBackModel` that the sampler calls. What is carried is the model's own."""

    @property
    def info(self) -> Limits: ...

    @property
    def schedule(self) -> Schedule: ...

    def predict_next(
        self, x_BCHW: Tensor, t: int, text_BLD: Tensor, carry: Any, is_kept: bool = False
    ) -> tuple[Tensor, Any]: ...


Given = Callable[[int], list[Tensor]]
"""t -> the given frames, each x_BCHW, as the network sees them there."""


def sample_look_back(model: LookingBackbone, batch: Batch, params: SamplingParams) -> Sample:
    """The next chunk. Of each frame, given or new, S evaluations; with inversion twice as many of the given ones.

    `strategy` says how the given frames go in: clean at every step (Sec. 2.3), or, for the paper's ablation (Sec. 3.4),
    noised as much as the new ones, or inverted by DDIM; then no module changes them.
    """
    assert params.chunk_frames is not None
    steps, schedule = timestep_pairs(params), model.schedule
    text_RLD = torch.cat([batch.negative_text_BLD, batch.text_BLD])
    g = batch.guidance_B.float().view(-1, 1, 1, 1)
    is_kept, given = params.strategy == "inverted", _given(model, batch, params, text_RLD)
    made = [batch.noise.later(i).draw(Purpose.INIT, 0, 0, 1)[:, :, 0] for i in range(params.chunk_frames)]

    def evaluate(x_BCHW: Tensor, t: int, carry: Any, kept: bool) -> tuple[Tensor, Any]:
        rows, carry = model.predict_next(torch.cat([x_BCHW, x_BCHW]), t, text_RLD, carry, kept)
        uncond, cond = rows.chunk(2)
        return uncond + g * (cond - uncond), carry

    for t, t_next in steps:
        carry = None
        for frame in given(t):
            _, carry = evaluate(frame, t, carry, is_kept)
        stepped = []
        for x in made:
            predicted, carry = evaluate(x, t, carry, False)
            stepped.append(schedule.step(x, predicted, t, t_next))
        made = stepped
    return Sample(torch.stack(made, 2))


def _given(model: LookingBackbone, batch: Batch, params: SamplingParams, text_RLD: Tensor) -> Given:
    frames, schedule = [frame.contiguous() for frame in batch.context_BCKHW.unbind(2)], model.schedule
    if params.strategy == "clean":
        return lambda t: frames
    if params.strategy == "noised":
        noises = batch.noise.draw(Purpose.CONTEXT, 0, 0, len(frames)).unbind(2)
        return lambda t: [schedule.q_sample(z, t, noise) for z, noise in zip(frames, noises, strict=True)]
    return _inverted(model, params, text_RLD, frames).__getitem__


def _inverted(
    model: LookingBackbone, params: SamplingParams, text_RLD: Tensor, frames: list[Tensor]
) -> dict[int, list[Tensor]]:
    """The given frames at each timestep: DDIM from 0 up, each frame as the image model alone sees it."""
    at = {0: frames}
    for t, t_from in reversed(timestep_pairs(params)):
        at[t] = []
        for x in at[t_from]:
            # The unconditional rows go along: another number of rows could change bits.
            rows, _ = model.predict_next(torch.cat([x, x]), t_from, text_RLD, None, True)
            at[t].append(model.schedule.step(x, rows.chunk(2)[1], t_from, t))
    return at
