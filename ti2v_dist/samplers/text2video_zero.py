"""Text2Video-Zero (Khachatryan et al. 2023). Names and suffixes as in `samplers/frames.py`.

A video goes on from an anchor, frame 0: what it is at T' and at T, and clean. So any worker can make any frame.
"""

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ti2v_dist.params import SamplingParams
from ti2v_dist.prompts import number_at
from ti2v_dist.samplers.base import Batch, Begun, Sample
from ti2v_dist.samplers.frames import ImageBackbone, denoise_alone, denoise_beside, guided_frames, held, inverted, warp
from ti2v_dist.samplers.noise import Purpose
from ti2v_dist.schedules import motion_pair, timestep_pairs
from ti2v_dist.video import VideoRequest

SUBJECT_T = 301
"""Where the anchor is looked at for its foreground: nearly clean."""


def begin_text2video_zero(model: ImageBackbone, batch: Batch, params: SamplingParams) -> Begun:
    """The anchor of a video: frame 0 at T', at T and clean, anchor_BC3HW. S evaluations.

    From text it is made by DDIM (Alg. 1, lines 1 to 3). A given image is inverted up to T.
    """
    t0, t1 = motion_pair(params)
    steps, (request,) = timestep_pairs(params), batch.requests
    assert request is not None
    if not request.image:
        x = batch.noise.draw(Purpose.INIT, 0, 0, 1)[:, :, 0]
        at = denoise_alone(model.schedule, steps, x, guided_frames(model, batch))
        return Begun(torch.stack([at[t0], at[t1], at[0]], 2))
    at = inverted(model, batch, [step for step in steps if step[0] <= t1], batch.context_BCKHW[:, :, -1])
    return Begun(torch.stack([at[t0], at[t1], at[0]], 2))


def sample_text2video_zero(model: ImageBackbone, batch: Batch, params: SamplingParams) -> Sample:
    """The next chunk. One evaluation a step from T on for each frame, and as many for the anchor.

    Frame k is the anchor at T', moved by k times the motion, noised again up to T, and denoised beside the anchor
    (Alg. 1, lines 4 to 9). With `anchor="last"` a chunk's last frame is the anchor of the next one (Sec. 3.3: the
    paper's way to longer videos), and k counts from there.
    """
    t0, t1 = motion_pair(params)
    assert params.chunk_frames is not None
    schedule, is_last = model.schedule, params.anchor == "last"
    x_t0, x_t1, z_0 = batch.context_BCKHW.unbind(2)
    fars = [[1 + i if is_last else first + i for first in batch.frames_B] for i in range(params.chunk_frames)]
    moved_t0, frames = [], []
    for i, far in enumerate(fars):
        slots = zip(x_t0, far, batch.requests, strict=True)
        moved = torch.stack([_moved(model, x_CHW, k, request) for x_CHW, k, request in slots])
        fresh = batch.noise.later(i).draw(Purpose.RENOISE, 0, 0, 1)[:, :, 0]
        moved_t0.append(moved)
        frames.append(schedule.renoise(moved, t1, t0, fresh))
    steps = [(t, t_next) for t, t_next in timestep_pairs(params) if t <= t1]
    slots = zip(batch.requests, batch.frames_B, strict=True)
    is_given_B = [bool(request and request.image) or (is_last and first > 1) for request, first in slots]
    anchor = held(schedule, z_0, x_t1, t1, is_given_B)
    masks = _subjects(model, batch, z_0)

    def blend(x: Tensor, i: int, t: int) -> Tensor:
        """Eq. 10 and 11: at T' the background is in part that of the anchor, moved as the frame is."""
        if t != t0:
            return x
        rows = zip(x, moved_t0[i], masks, batch.requests, fars[i], strict=True)
        return torch.stack([_smoothed(model, *row) for row in rows])

    made = denoise_beside(schedule, steps, anchor, frames, guided_frames(model, batch), blend)
    context = torch.stack([moved_t0[-1], frames[-1], made[-1]], 2) if is_last else None
    return Sample(torch.stack(made, 2), context)


def _subjects(model: ImageBackbone, batch: Batch, z_0: Tensor) -> list[Tensor | None]:
    """Where the foreground of each anchor is, mask_1HW; None for a video whose background is not smoothed.

    The paper finds it in the decoded frames with a detector that is not public. Ours are the places that look at the
    words of the subject more than half-way between the one that does least and the one that does most, and those beside
    them.
    """
    found: list[Tensor | None] = [None] * len(batch.requests)
    asked = [(n, r) for n, r in enumerate(batch.requests) if r is not None and r.params.smoothing is not None]
    if not asked:
        return found
    x = model.schedule.q_sample(z_0, SUBJECT_T, batch.noise.shared().draw(Purpose.SUBJECT, 0, 0, 1)[:, :, 0])
    text_RLD = torch.cat([batch.negative_text_BLD, batch.text_BLD])
    map_BLHW = model.text_attention(torch.cat([x, x]), SUBJECT_T, text_RLD)[len(x) :]
    for slot, request in asked:
        text = request.texts[number_at(request.prompt, batch.frames_B[slot])]
        map_HW = map_BLHW[slot, model.tokens_of(text, request.params.subject or "")].mean(0)
        seen = (map_HW >= (map_HW.min() + map_HW.max()) / 2).float()
        found[slot] = max_pool2d(seen[None], 3, stride=1, padding=1)
    return found


def _smoothed(
    model: ImageBackbone, x: Tensor, moved: Tensor, mask: Tensor | None, request: VideoRequest | None, far: int
) -> Tensor:
    if mask is None or request is None:
        return x
    alpha = request.params.smoothing
    assert alpha is not None
    front = _moved(model, mask, far, request)
    return front * x + (1 - front) * ((1 - alpha) * x + alpha * moved)


def _moved(model: ImageBackbone, x_CHW: Tensor, frames: int, request: VideoRequest | None) -> Tensor:
    """A latent whose content has moved for so many frames (eq. 6 and 7: k - 1 times λδ, in pixels of the output)."""
    if request is None:
        return x_CHW
    params, pixels = request.params, model.info.vae_factor
    assert params.motion_dx is not None, params
    assert params.motion_dy is not None, params
    return warp(x_CHW, frames * params.motion_dx / pixels, frames * params.motion_dy / pixels)
