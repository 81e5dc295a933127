"""An engine tried out before a run has a frame: whether its batches fit the device, and whether its slots are alike."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator, Philox

from ti2v_dist.decoder import DECODE_BATCH
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.latents import BrokenVideo, Chunk, Piece, VideoState
from ti2v_dist.params import TRAIN_TIMESTEPS
from ti2v_dist.video import VideoRequest

FEWEST = {"motion_t0": 1, "motion_t1": 2, "inversion_iterations": 1}
"""What of a sampler's settings decides how long it takes, and not how much memory: as little as there can be."""


def try_out(engine: Engine, largest: VideoRequest) -> None:
    """Run everything in the full shape of `largest`'s batch, in as few steps as there can be.

    Later batches of this shape need no more memory: raises what torch raises where it does not suffice. Raises
    `InputError` where a video's bits depend on its slot: a matrix product of so many rows may not treat all alike.
    """
    request = _in_few_steps(largest)
    drawn, states, sources = Generator(Philox(0)), list[VideoState](), list[np.ndarray | None]()
    for _ in range(1 if request.params.spec.one_by_one else engine.slots):
        images = _pictures(drawn, request, 1 + len(request.given)) if request.image else ()
        source = _pictures(drawn, request, 1) if request.source else None
        states.append(VideoState.start(request, engine.encode(request, *images, source_FHWC=source)))
        read = engine.source_frames(states[-1]) if request.source else ()
        sources.append(_pictures(drawn, request, len(read)) if read else None)
    made = engine.advance(states, sources)
    if len(states) > 1:
        turned = engine.advance([*states[1:], states[0]], [*sources[1:], sources[0]])
        if not all(map(_is_same, [*made[1:], made[0]], turned)):
            problem = f"engine.slots is {engine.slots}; on this machine a video's bits would depend on its slot"
            raise InputError(f"{problem}: choose another number, 1 if nothing else helps")
    if not request.params.spec.tail:  # whose clip was shown already
        latents = 1 + max(DECODE_BATCH, 2 * (request.params.spec.chunk or 0))  # two sections where they are joined
        pieces = (Piece(frame, 1, states[0].queue.latents_KCHW[-1:]) for frame in range(latents))
        list(engine.decoder.frames(request, np.zeros((request.height, request.width, 3), np.uint8), pieces))


def _pictures(drawn: Generator, request: VideoRequest, count: int) -> np.ndarray:
    return drawn.integers(0, 256, (count, request.height, request.width, 3), np.uint8)


def _in_few_steps(request: VideoRequest) -> VideoRequest:
    spec = request.params.spec
    few: dict[str, Any] = {name: value for name, value in FEWEST.items() if name in spec.reads}
    few |= {"resample_iterations": 2} if request.params.resample_context else {}  # the last step is made once
    steps = 1 + ("motion_t0" in few) + bool(request.params.guidance_interval) + bool(request.params.resample_context)
    few |= {"guidance_interval": f"{steps}-{steps}"} if request.params.guidance_interval else {}  # the first step's
    if spec.has_t_start:  # a gradient needs an error
        few["t_start"] = TRAIN_TIMESTEPS - 1 if "inversion_iterations" in few else steps
    chosen = {"num_inference_steps": steps, "resample_iterations": 1, **few}
    return replace(request, params=replace(request.params, **chosen))


def _is_same(one: Chunk | BrokenVideo, other: Chunk | BrokenVideo) -> bool:
    """Whether two chunks have the same bits; a noise that overflows gives none."""
    if isinstance(one, Chunk) and isinstance(other, Chunk):
        return np.array_equal(one.latents_FCHW, other.latents_FCHW)
    return type(one) is type(other)
