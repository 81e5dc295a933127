"""What a video costs before it is made: calls of a batch, evaluations of the model, frames. Pure counting."""

from collections.abc import Iterator
from typing import NamedTuple

from ti2v_dist.counting import CallSize
from ti2v_dist.limits import Limits
from ti2v_dist.schedules import inversion_pairs, motion_pair, timesteps
from ti2v_dist.video import VideoRequest


class Call(NamedTuple):
    """A video's part in one advance: its frames, the last one of them as it is settled, and the evaluations.

    A chunk may reach beyond the video's end. An evaluation computes two rows, with the text and without it: one that
    computes one of them is a half, and one of the new latents of a window alone is their share of it.
    """

    first_frame: int
    last_frame: int
    evaluations: float


def encode_evaluations(request: VideoRequest) -> float:
    """Evaluations in which the first frame is made, or what else a video starts from; 0 where an image is encoded."""
    spec = request.params.spec
    return spec.begin_evaluations(_size(request, 1)) if spec.begin else 0


def calls(request: VideoRequest, model: Limits) -> Iterator[Call]:
    """The advances that make a video, in their order: what the engine and its sampler do with it."""
    params, r, last = request.params, model.frames_per_latent, request.num_frames - 1
    given = {one.frame for one in request.given}
    first, (chunk, later) = request.lead + 1, request.chunks(model)
    while first <= last:
        if params.spec.looks_ahead:  # up to the last given frame in sight: what lies behind waits
            chunk = max(frame - first + 1 for frame in given if frame < first + later)
        frames = range(first, first + chunk)
        size = _size(request, -(-chunk // r) - len(given.intersection(frames)))
        yield Call(first, frames[-1], params.spec.evaluations(size))
        first, chunk = frames[-1] + 1, later


def _size(request: VideoRequest, latents: int) -> CallSize:
    params = request.params
    late = len(steps := timesteps(params))
    if "motion_t0" in params.spec.reads:
        late = sum(t <= motion_pair(params)[1] for t in steps)
    if "inversion_timestep" in params.spec.reads:
        late = len(inversion_pairs(params))
    return CallSize(
        steps=len(steps),
        iterations=params.inversion_iterations or params.resample_iterations,
        latents=latents,
        late_steps=late,
        has_image=bool(request.image),
        is_smoothed=params.smoothing is not None,
        without=params.without,
        context=params.context_frames,
        is_inverted=params.strategy == "inverted",
        ar_step=params.ar_step or 0,
        block=params.causal_block_size or 1,
        stride=params.stride or 1,
        recalls=params.resample_context is not None,
        alone=frozenset(step for step, t in enumerate(steps) if not params.is_guided(t)),
    )
