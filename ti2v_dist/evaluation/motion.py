"""How much of the picture changes from one frame to the next, whatever the reason: motion, noise, a cut."""

from collections.abc import Iterable, Iterator

import numpy as np

from ti2v_dist.evaluation.base import Metric


def motion(frames_HWC: Iterable[np.ndarray]) -> Iterator[float]:
    """Mean absolute difference to the frame before, over pixels and channels, in levels; 0 for the first frame."""
    before_HWC = None
    for frame_HWC in frames_HWC:
        now_HWC = frame_HWC.astype(np.int16)
        yield 0.0 if before_HWC is None else float(np.abs(now_HWC - before_HWC).mean())
        before_HWC = now_HWC


MOTION = Metric(motion, "mean absolute change from the frame before", "levels of 0-255", "mean")
