"""What the samplers of image models share: frames that are denoised beside an anchor, whose look they take over.

Names and suffixes as in `samplers/base.py`; R rows of a model call, T' and T the paper's timesteps of the motion.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ti2v_dist.limits import Limits
from ti2v_dist.samplers.base import Batch
from ti2v_dist.schedules import VP, Schedule


class ImageBackbone(Protocol):
    """The part of an `ImageModel` that a sampler calls. Keys are the model's own; a sampler only hands them on."""

    @property
    def info(self) -> Limits: ...

    @property
    def schedule(self) -> VP: ...

    def predict_frames(
        self,
        x_RCHW: Tensor,
        t: int,
        text_RLD: Tensor,
        keys: Any = None,
        control_RCHW: Tensor | None = None,
        picture_RCHW: Tensor | None = None,
    ) -> tuple[Tensor, Any]: ...

    def encode_text(self, prompts: Sequence[str]) -> Tensor: ...

    def text_attention(self, x_RCHW: Tensor, t: int, text_RLD: Tensor, side: int | None = None) -> Tensor: ...

    def tokens_of(self, text: str, words: str) -> list[int]: ...

    def encode_picture(self, image_BCHW: Tensor) -> Tensor: ...


Evaluate = Callable[[Tensor, int, int, Any], tuple[Tensor, Any]]
"""(x_BCHW, t, frame of the call, keys) -> guided prediction, keys; frame 0 is the anchor, i the i-th new one."""
Steps = Sequence[tuple[int, int]]
Anchor = Callable[[Tensor | None, Tensor | None, int, int], Tensor]
"""(x, prediction, t before, t) -> the anchor at t, from what it was at the step before, or from nothing."""


def denoise_alone(schedule: Schedule, steps: Steps, x_BCHW: Tensor, evaluate: Evaluate) -> dict[int, Tensor]:
    """One frame by DDIM, looking at itself: what it is at each timestep, at the first one and down to the last."""
    at = {steps[0][0]: x_BCHW}
    for t, t_next in steps:
        predicted, _ = evaluate(at[t], t, 0, None)
        at[t_next] = schedule.step(at[t], predicted, t, t_next)
    return at


def denoise_beside(
    schedule: Schedule,
    steps: Steps,
    anchor: Anchor,
    frames: Sequence[Tensor],
    evaluate: Evaluate,
    blend: Callable[[Tensor, int, int], Tensor] = lambda x, i, t: x,
) -> list[Tensor]:
    """New frames, each x_BCHW, whose self-attention reads the anchor's keys and values alone (T2V-Zero, eq. 8).

    The anchor is evaluated once a step, so a frame costs an evaluation a step and its share of that one. Every call of
    the model has the same shape, whatever the number of frames: so a chunk's size decides no bit. `blend(x, i, t)` is
    what the i-th one goes on with, once it is at t.
    """
    x_0, predicted_0, t_before = None, None, steps[0][0]
    made = list(frames)
    for t, t_next in steps:
        x_0 = anchor(x_0, predicted_0, t_before, t)
        predicted_0, keys = evaluate(x_0, t, 0, None)
        for i, x in enumerate(made):
            made[i] = blend(schedule.step(x, evaluate(x, t, 1 + i, keys)[0], t, t_next), i, t_next)
        t_before = t
    return made


def stepped(schedule: Schedule, x_first: Tensor) -> Anchor:
    """An anchor that goes its own way by DDIM, from `x_first` on."""

    def anchor(x: Tensor | None, predicted: Tensor | None, t_before: int, t: int) -> Tensor:
        return x_first if x is None or predicted is None else schedule.step(x, predicted, t_before, t)

    return anchor


def held(schedule: VP, z_BCHW: Tensor, x_BCHW: Tensor, first: int, is_held_B: Sequence[bool]) -> Anchor:
    """An anchor that is x at its first timestep. Where it is held it stays z, under the noise that leads from z to x.

    Else it goes its own way by DDIM. What was given, or took over the look of another frame, guidance would lead away
    from itself.
    """
    own, noise = stepped(schedule, x_BCHW), schedule.noise_between(z_BCHW, x_BCHW, first)
    is_held = torch.tensor(is_held_B, device=x_BCHW.device).view(-1, 1, 1, 1)

    def anchor(x: Tensor | None, predicted: Tensor | None, t_before: int, t: int) -> Tensor:
        return torch.where(is_held, schedule.q_sample(z_BCHW, t, noise), own(x, predicted, t_before, t))

    return anchor


def inverted(model: ImageBackbone, batch: Batch, steps: Steps, z_BCHW: Tensor) -> dict[int, Tensor]:
    """A clean latent at the timesteps of all steps, by DDIM from 0 on with the text and without guidance.

    Each step goes from where it is. One evaluation a step.
    """
    plain = guided_frames(model, replace(batch, guidance_B=torch.ones_like(batch.guidance_B)))
    return denoise_alone(model.schedule, [(t_next, t) for t, t_next in reversed(steps)], z_BCHW, plain)


def guided_frames(model: ImageBackbone, batch: Batch, controls_BFCHW: Tensor | None = None) -> Evaluate:
    """Classifier-free guidance of one frame of each slot: one call of 2B rows, unconditional rows first."""
    text_RLD = torch.cat([batch.negative_text_BLD, batch.text_BLD])
    g = batch.guidance_B.float().view(-1, 1, 1, 1)

    def evaluate(x_BCHW: Tensor, t: int, frame: int, keys: Any) -> tuple[Tensor, Any]:
        control = None if controls_BFCHW is None else torch.cat([controls_BFCHW[:, frame]] * 2)
        rows, read = model.predict_frames(torch.cat([x_BCHW, x_BCHW]), t, text_RLD, keys, control)
        uncond, cond = rows.float().chunk(2)
        return uncond + g * (cond - uncond), read

    return evaluate


def warp(x_CHW: Tensor, dx_cells: float, dy_cells: float) -> Tensor:
    """A latent whose content has moved to the right and down by so many cells: nearest cell, reflected at the border.

    Text2Video-Zero, Sec. 3.3.1; on the latent's own grid, whatever its size.
    """
    _, height, width = x_CHW.shape
    rows, columns = _reflected(height, dy_cells), _reflected(width, dx_cells)
    return x_CHW[:, torch.from_numpy(rows)][:, :, torch.from_numpy(columns)]


def _reflected(size: int, shift: float) -> np.ndarray:
    """Which cell is seen in each place of an axis; beyond the border as in a mirror between the cells."""
    wanted = np.floor(np.arange(size) - shift + 0.5).astype(np.int64) % (2 * size)
    return np.where(wanted < size, wanted, 2 * size - 1 - wanted)


def as_pictures(frames_BFHWC: Tensor) -> Tensor:
    """pictures_BFCHW, laid out as the model's convolutions expect them."""
    return frames_BFHWC.permute(0, 1, 4, 2, 3).contiguous()
