"""How much fine detail a frame has beside the first one: a video that blurs with its length falls below 1."""

from collections.abc import Iterable, Iterator

import numpy as np

from ti2v_dist.evaluation.base import LUMA_C, Metric

LEAST = 1e-3
"""Levels squared, added to both sides of the ratio: a flat first frame then has a ratio too, and no other one feels it.

One pixel of a 64 x 64 picture that is off by a level makes five times as much.
"""


def sharpness(frames_HWC: Iterable[np.ndarray]) -> Iterator[float]:
    """Variance of the Laplacian of luma, as a ratio to that of the first frame (so 1 for the first).

    The measure of focus of Pech-Pacheco et al. (2000), "Diatom autofocusing in brightfield microscopy". The pixels at
    the edge, which lack a neighbour, are left out. Noise counts as detail. Frames have at least 3 x 3 pixels.
    """
    first = None
    for frame_HWC in frames_HWC:
        detail = float(laplacian(frame_HWC @ LUMA_C).var()) + LEAST
        first = first or detail
        yield detail / first


def laplacian(luma_HW: np.ndarray) -> np.ndarray:
    """Four neighbours less four times the pixel, for each pixel that has all of them (H - 2, W - 2)."""
    beside_HW = luma_HW[1:-1, :-2] + luma_HW[1:-1, 2:]
    above_HW = luma_HW[:-2, 1:-1] + luma_HW[2:, 1:-1]
    return beside_HW + above_HW - 4 * luma_HW[1:-1, 1:-1]


SHARPNESS = Metric(sharpness, "variance of the Laplacian of luma", "ratio to the first frame", "last")
