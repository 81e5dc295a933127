"""How unsteady the brightness of the whole picture is. A steady fade is no flicker."""

from collections.abc import Iterable, Iterator

import numpy as np

from ti2v_dist.evaluation.base import LUMA_C, Metric


def flicker(frames_HWC: Iterable[np.ndarray]) -> Iterator[float]:
    """Absolute second difference |b(t) - 2 b(t-1) + b(t-2)| of mean luma b, in levels; 0 for the first two frames."""
    before: tuple[float, ...] = ()
    for frame_HWC in frames_HWC:
        now = float(frame_HWC.mean((0, 1)) @ LUMA_C)
        yield abs(now - 2 * before[1] + before[0]) if len(before) == 2 else 0.0
        before = (*before[-1:], now)


FLICKER = Metric(flicker, "second difference of the mean luma", "levels of 0-255", "mean")
