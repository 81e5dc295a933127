"""Evaluations of a model that one call of a sampler makes, counted without making them."""

from typing import NamedTuple


class CallSize(NamedTuple):
    """What the evaluations of one call of a sampler depend on: [S], [U], the latents that it makes, and the rest.

    `late_steps` are those of its steps from `motion_t1`, or `inversion_timestep`, on. `context` are the latents that it
    goes on from. `alone` are its steps, counted from 0, that compute one row of the two. `has_image`, `is_smoothed`,
    `without`, `is_inverted`, `ar_step`, `block`, `stride` and `recalls` (of its queue) are the row's.
    """

    steps: int
    iterations: int
    latents: int
    late_steps: int
    has_image: bool = True
    is_smoothed: bool = False
    without: str | None = None
    context: int = 0
    is_inverted: bool = False
    ar_step: int = 0
    block: int = 1
    stride: int = 1
    alone: frozenset[int] = frozenset()
    recalls: bool = False


def each_step(call: CallSize) -> int:
    """Every step once, whatever the number of latents."""
    return call.steps


def resampled(call: CallSize) -> float:
    """Each latent by itself, or `stride` of them at once; every step but the last one U times.

    One row is a half, and of a window's latents those alone that are new are their share of it.
    """
    again = call.stride / (call.context + call.stride) if call.recalls else 1
    each = 1 + (call.iterations - 1) * again
    left_out = sum(1 if step == call.steps - 1 else each for step in call.alone)
    whole = each * (call.steps - 1) + 1
    return call.latents // call.stride * (whole - left_out / 2 if left_out else whole)


def whole_window(call: CallSize) -> int:
    return call.iterations * call.steps


def moved(call: CallSize) -> int:
    """Each frame, and the anchor, from `motion_t1` on; and one look for the foreground."""
    return call.late_steps * (call.latents + 1) + call.is_smoothed


def inverted(call: CallSize) -> int:
    """An image is inverted up to `motion_t1`; without one the first frame is made."""
    return call.late_steps if call.has_image else call.steps


def enlivened(call: CallSize) -> int:
    """Each frame, and the one that they begin from; and the inversion of the last one, for the next call."""
    return call.late_steps * (call.latents + 2)


def optimised(call: CallSize) -> int:
    """Of each step the inversion, the text once, U times the embedding, and once what it came to; and one look."""
    found = 0 if call.without == "inversion" else call.late_steps * (call.iterations + 2)
    return call.late_steps + found + (call.without != "attention")


def beside(call: CallSize) -> int:
    """Each frame, and the anchor."""
    return call.steps * (call.latents + 1)


def looked_back(call: CallSize) -> int:
    """Each frame, those that are given too; twice where they are inverted."""
    return call.steps * (call.latents + call.context * (1 + call.is_inverted))


def staggered(call: CallSize) -> int:
    """Each block of latents begins `ar_step` steps after the one before it, or when that one is done."""
    return call.steps + (-(-call.latents // call.block) - 1) * min(call.ar_step, call.steps)
