"""Videos made after another one, frame by frame: steered by a ControlNet, or changed as they are told.

Text2Video-Zero, Sec. 4.1 (Khachatryan et al. 2023): every frame begins with the same noise, takes frame k of its source
for frame k, and its self-attention looks at frame 0, in the ControlNet too. A frame depends on its source's frame 0 and
frame k alone. Names and suffixes as in `samplers/frames.py`.
"""

from typing import Any

import torch
from torch import Tensor

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Batch, Begun, Sample
from ti2v_dist.samplers.frames import (
    Evaluate,
    ImageBackbone,
    as_pictures,
    denoise_alone,
    denoise_beside,
    guided_frames,
    stepped,
)
from ti2v_dist.samplers.noise import Purpose
from ti2v_dist.schedules import timestep_pairs


def begin_controlled(model: ImageBackbone, batch: Batch, params: SamplingParams) -> Begun:
    """Frame 0, clean, anchor_BC1HW. S evaluations."""
    return _begin(model, batch, params, guided_frames(model, batch, _pictures(batch)))


def sample_controlled(model: ImageBackbone, batch: Batch, params: SamplingParams) -> Sample:
    """The next chunk, each frame after the control of its own. S evaluations for each, and for the anchor."""
    return _sample(model, batch, params, guided_frames(model, batch, _pictures(batch)))


def begin_instructed(model: ImageBackbone, batch: Batch, params: SamplingParams) -> Begun:
    """Frame 0, clean, anchor_BC1HW. S evaluations of three rows."""
    return _begin(model, batch, params, _instructed(model, batch))


def sample_instructed(model: ImageBackbone, batch: Batch, params: SamplingParams) -> Sample:
    """The next chunk, each frame changed as the prompt tells (Video Instruct-Pix2Pix). As `sample_controlled`."""
    return _sample(model, batch, params, _instructed(model, batch))


def _begin(model: ImageBackbone, batch: Batch, params: SamplingParams, evaluate: Evaluate) -> Begun:
    steps = timestep_pairs(params)
    return Begun(denoise_alone(model.schedule, steps, _start(batch), evaluate)[0][:, :, None])


def _sample(model: ImageBackbone, batch: Batch, params: SamplingParams, evaluate: Evaluate) -> Sample:
    assert params.chunk_frames is not None
    x, schedule = _start(batch), model.schedule
    frames = [x] * params.chunk_frames
    made = denoise_beside(schedule, timestep_pairs(params), stepped(schedule, x), frames, evaluate)
    return Sample(torch.stack(made, 2))


def _start(batch: Batch) -> Tensor:
    """The noise x_BCHW that all frames of a video begin with."""
    return batch.noise.shared().draw(Purpose.INIT, 0, 0, 1)[:, :, 0]


def _pictures(batch: Batch) -> Tensor:
    assert batch.sources_BFHWC is not None
    return as_pictures(batch.sources_BFHWC)


def _instructed(model: ImageBackbone, batch: Batch) -> Evaluate:
    """Guidance of text and of picture (Brooks et al. 2023, eq. 3): one call of 3B rows, those that know least first.

    An odd number of rows gets one more: there a row's bits would depend on its place.
    """
    pictures_BFCHW = _pictures(batch) * 2 - 1
    # One at a time, as the first frames of videos are encoded: the shape of the batch decides bits.
    latents_BFCHW = torch.stack(
        [torch.cat([model.encode_picture(one[None]) for one in frames_FCHW]) for frames_FCHW in pictures_BFCHW]
    )
    text_RLD = _even([batch.negative_text_BLD, batch.negative_text_BLD, batch.text_BLD])
    g_text = batch.guidance_B.float().view(-1, 1, 1, 1)
    chosen = [request.params.image_guidance_scale if request else 1.0 for request in batch.requests]
    g_image = torch.tensor(chosen, device=g_text.device).view(-1, 1, 1, 1)

    def evaluate(x_BCHW: Tensor, t: int, frame: int, keys: Any) -> tuple[Tensor, Any]:
        picture = latents_BFCHW[:, frame]
        pictures_RCHW = _even([torch.zeros_like(picture), picture, picture])
        rows, read = model.predict_frames(_even([x_BCHW] * 3), t, text_RLD, keys, None, pictures_RCHW)
        uncond, seen, told = rows[: 3 * len(x_BCHW)].float().chunk(3)
        return uncond + g_image * (seen - uncond) + g_text * (told - seen), read

    return evaluate


def _even(parts: list[Tensor]) -> Tensor:
    """The rows of all parts, and one of zeros if they are odd."""
    rows = torch.cat(parts)
    return torch.cat([rows, torch.zeros_like(rows[:1])]) if len(rows) % 2 else rows
