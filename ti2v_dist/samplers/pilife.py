"""PiLife (Liu et al., Prompt Image to Life): what moves in an image, by the noise that its frames begin with.

Names and suffixes as in `samplers/motion_inversion.py`; eps_rec is the noise that leads from the image to Z, A where
the image moves, and k a frame of a chunk, whose frame 0 is what the chunk goes on from (the paper's frame 1).
"""

from dataclasses import replace

import torch
from torch import Tensor

from ti2v_dist.params import SamplingParams
from ti2v_dist.samplers.base import Batch, Sample
from ti2v_dist.samplers.frames import Evaluate, ImageBackbone, guided_frames, held, inverted
from ti2v_dist.samplers.noise import KeyedNoise, Purpose
from ti2v_dist.schedules import inversion_pairs


def sample_pilife(model: ImageBackbone, batch: Batch, params: SamplingParams) -> Sample:
    """The next chunk. An evaluation a step for each frame and for frame 0, and one to invert the last frame.

    Frames go down the steps side by side; at each they are evaluated in their order, since a frame looks at earlier
    ones alone. Where a chunk goes on from another, its frame 0 is the last frame of that one, and stays itself; the
    embeddings and A stay those of the image.
    """
    assert params.chunk_frames is not None
    schedule, steps = model.schedule, inversion_pairs(params)
    first = steps[0][0]
    A, Z, z_0 = batch.context_BCKHW.unbind(2)
    eps_rec = schedule.noise_between(z_0, Z, first)
    noises = [_noise(eps_rec, A, batch.noise.later(k), params) for k in range(params.chunk_frames)]
    frames = [schedule.q_sample(z_0, first, g) for g in noises]
    anchor = held(schedule, z_0, Z, first, [frame > 1 for frame in batch.frames_B])
    x_0, predicted_0, s_before = None, None, first
    for number, (s, s_next) in enumerate(steps):
        evaluate = _guided(model, batch, number)
        x_0 = anchor(x_0, predicted_0, s_before, s)
        predicted_0, keys = evaluate(x_0, s, 0, None)
        for k, x in enumerate(frames, 1):
            table = _looks(batch, params, number, k)
            predicted, own = evaluate(x, s, k, keys.gather(table))
            keys += own
            frames[k - 1] = schedule.step(x, predicted, s, s_next)
        s_before = s
    context = torch.stack([A, inverted(model, batch, steps, frames[-1])[first], frames[-1]], 2)
    return Sample(torch.stack(frames, 2), context)


def _guided(model: ImageBackbone, batch: Batch, number: int) -> Evaluate:
    """Guidance away from the embedding of a step, or from the negative text where none was found."""
    if batch.embeddings_BSLD is not None:
        batch = replace(batch, negative_text_BLD=batch.embeddings_BSLD[:, number])
    return guided_frames(model, batch)


def _noise(eps_rec: Tensor, A: Tensor, noise: KeyedNoise, params: SamplingParams) -> Tensor:
    """What a frame is noised with (eq. 9 to 12 and Alg. 1)."""
    fresh, moving = (noise.draw(purpose, 0, 0, 1)[:, :, 0] for purpose in (Purpose.FRESH, Purpose.MOVING))
    rec = _standardised(eps_rec)
    if params.without == "attention":
        return clipped(_standardised(fresh), rec)
    eta = params.motion_noise
    assert eta is not None
    mixed = A * moving + (1 - A**2).sqrt() * rec
    eps_M = (fresh + eta * mixed) / (1 + eta**2) ** 0.5
    return eps_M if params.without == "clipper" else clipped(eps_M, rec)


def clipped(eps_M: Tensor, rec: Tensor) -> Tensor:
    """The noise, drawn towards that of the image until it is no further from it than it is long.

    Alg. 1 draws at random how far, again and again; this is where that must end.
    """
    length, far = _norm(eps_M), _norm(eps_M - rec)
    t = (length / far.clamp_min(torch.finfo(far.dtype).tiny)).clamp_max(1)
    return (1 - t) * rec + t * eps_M


def _norm(x_BCHW: Tensor) -> Tensor:
    return x_BCHW.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _standardised(x_BCHW: Tensor) -> Tensor:
    """Of mean 0 and variance 1 in each slot; an empty one stays 0."""
    deviation, mean = torch.std_mean(x_BCHW, (1, 2, 3), correction=0, keepdim=True)
    return (x_BCHW - mean) / torch.where(deviation > 0, deviation, 1)


def _looks(batch: Batch, params: SamplingParams, number: int, k: int) -> list[list[int]]:
    """Which rows of all keys each row reads: those of its own video in the frames at which frame k looks (eq. 14).

    Frame 0, the one before, and one at random, the likelier the nearer; all of them earlier than k.
    """
    assert params.distance_probability is not None, params
    distances = batch.noise.later(k - 1).distances(number, params.distance_probability, k)
    if params.without == "frames":
        seen = [[0, 0, 0] for _ in distances]
    else:
        seen = [[0, k - 1, k - distance] for distance in distances]
    rows = [*seen, *seen]  # unconditional, then conditional
    return [[frame * len(rows) + row for frame in frames] for row, frames in enumerate(rows)]
