"""An engine tried out before a run has a frame: whether its batches fit the device, and whether its slots are alike."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from resource import RUSAGE_SELF, getrusage
from typing import Any

import numpy as np
import torch
from numpy.random import Generator, Philox

from ti2v_dist.decoder import DECODE_BATCH
from ti2v_dist.engine import Engine
from ti2v_dist.errors import InputError
from ti2v_dist.latents import BrokenVideo, Chunk, Piece, VideoState
from ti2v_dist.params import TRAIN_TIMESTEPS
from ti2v_dist.video import VideoRequest

OUT_OF_MEMORY = re.compile(r"(?:CUDA|CUBLAS|CUDNN|cuDNN).*(?:out of memory|ALLOC_FAILED)|CPUAllocator.*allocate memory")
WORTH = 0.97
"""More slots are taken where a video then takes at most this share of the time: each holds memory, and waits."""
REPEATS = 3
FEWEST = {"motion_t0": 1, "motion_t1": 2, "inversion_iterations": 1}
"""What of a sampler's settings decides how long it takes, and not how much memory: as little as there can be."""


def measured_slots(engine_of: Callable[[int], Engine], largest: VideoRequest, most: int) -> list[dict[str, Any]]:
    """What was measured of 1, 2, 4, … and at most `most` slots, that number first which a worker is to have.

    An engine of each is tried out: seconds that a video's call takes, the least of some. It ends where twice
    as many do not bring more, or do not fit the device. A number whose slots are not alike is passed over.
    """
    found, slots = list[dict[str, Any]](), 1
    while slots <= most:
        try:
            engine = engine_of(slots)
            states, sources = _begun(engine, _in_few_steps(largest))
            try_out(engine, largest)
            found.append({"slots": slots, "seconds_per_video": _seconds(engine, states, sources) / slots})
        except InputError:
            if slots == 1:  # what is wrong has nothing to do with the number
                raise
            found.append({"slots": slots, "seconds_per_video": None})
        except RuntimeError as error:
            if not is_out_of_memory(error) or slots == 1:
                raise
            break
        slots *= 2
        known = [one["seconds_per_video"] for one in found if one["seconds_per_video"]]
        if largest.params.spec.one_by_one or (len(known) > 1 and known[-1] > WORTH * min(known[:-1])):
            break
    return sorted(found, key=_cost(found))


def is_out_of_memory(error: RuntimeError) -> bool:
    """CUDA's libraries run out of memory too, not torch's allocators alone, and have their own words for it."""
    return isinstance(error, torch.OutOfMemoryError) or OUT_OF_MEMORY.search(str(error)) is not None


def peak_memory() -> dict[str, int | None]:
    """The most bytes that this process held so far: on the host, and on its GPU, None where it has none."""
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    return {"host_bytes": getrusage(RUSAGE_SELF).ru_maxrss * 1024, "gpu_bytes": on_gpu}


def try_out(engine: Engine, largest: VideoRequest) -> None:
    """Run everything in the full shape of `largest`'s batch, in as few steps as there can be.

    Later batches of this shape need no more memory: raises what torch raises where it does not suffice. Raises
    `InputError` where a video's bits depend on its slot: a matrix product of so many rows may not treat all alike.
    """
    request = _in_few_steps(largest)
    states, sources = _begun(engine, request)
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


def _begun(engine: Engine, request: VideoRequest) -> tuple[list[VideoState], list[np.ndarray | None]]:
    """A video in each slot, and its source's frames; one video where a call is for one."""
    drawn, states, sources = Generator(Philox(0)), list[VideoState](), list[np.ndarray | None]()
    for _ in range(1 if request.params.spec.one_by_one else engine.slots):
        images = _pictures(drawn, request, 1 + len(request.given)) if request.image else ()
        source = _pictures(drawn, request, 1) if request.source else None
        states.append(VideoState.start(request, engine.encode(request, *images, source_FHWC=source)))
        read = engine.source_frames(states[-1]) if request.source else ()
        sources.append(_pictures(drawn, request, len(read)) if read else None)
    return states, sources


def _seconds(engine: Engine, states: list[VideoState], sources: list[np.ndarray | None]) -> float:
    """The least time of a call; what it gives lies on the host, so nothing is still under way then."""
    took = list[float]()
    for _ in range(REPEATS):
        began = time.perf_counter()
        engine.advance(states, sources)
        took.append(time.perf_counter() - began)
    return min(took)


def _cost(found: list[dict[str, Any]]) -> Callable[[dict[str, Any]], tuple[bool, int]]:
    """Puts the fewest slots first of those that are about as fast as the fastest."""
    least = min(one["seconds_per_video"] for one in found if one["seconds_per_video"])

    def cost(one: dict[str, Any]) -> tuple[bool, int]:
        seconds = one["seconds_per_video"]
        return seconds is None or seconds * WORTH > least, one["slots"]

    return cost


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
