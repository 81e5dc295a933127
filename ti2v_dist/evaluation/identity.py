"""How much of the first frame's colours a frame still has, wherever they are: what a video was given, and may lose."""

from collections.abc import Iterable, Iterator
from itertools import product

import numpy as np

from ti2v_dist.evaluation.base import Metric

STEP = 64
"""Levels between two nodes of the histogram, along each channel."""
NODES = 256 // STEP + 1
LEVELS = np.arange(256)
BELOW = LEVELS // STEP
SHARES = np.stack([STEP - LEVELS % STEP, LEVELS % STEP])
"""Of each level, the shares of the node below it and of the one above, in whole parts of `STEP`."""


def identity(frames_HWC: Iterable[np.ndarray]) -> Iterator[float]:
    """Intersection of the colour histograms of a frame and of the first one, in [0, 1]; 1 for the first.

    Swain and Ballard (1991), "Color indexing": the share of the picture whose colours are still there. An object that
    moves keeps its colours, and one that is lost or repainted takes its share of the picture with it. A pixel counts
    for the nodes around its colour, the more the nearer, so that a small change of colour is a small change.
    """
    first = None
    for frame_HWC in frames_HWC:
        now = histogram(frame_HWC)
        first = now if first is None else first
        yield float(np.minimum(now, first).sum() / first.sum())


def histogram(frame_HWC: np.ndarray) -> np.ndarray:
    """Parts of a frame at each node (NODES**3), whole numbers as float64; a pixel has `STEP`**3 parts."""
    channels = [frame_HWC[..., channel].ravel() for channel in range(3)]
    parts = np.zeros(NODES**3)
    for corner in product((0, 1), repeat=3):
        red, green, blue = (BELOW[channel] + side for channel, side in zip(channels, corner, strict=True))
        weight = np.prod([SHARES[side][channel] for channel, side in zip(channels, corner, strict=True)], axis=0)
        parts += np.bincount((red * NODES + green) * NODES + blue, weight, NODES**3)
    return parts


IDENTITY = Metric(identity, "share of the first frame's colours that is still there", "share of the picture", "last")
