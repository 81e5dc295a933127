"""How far the mean colour has gone from that of the first frame: drift, the fault of long videos."""

from collections.abc import Iterable, Iterator

import numpy as np

from ti2v_dist.evaluation.base import Metric

_SRGB = np.arange(256) / 255
LINEAR = np.where(_SRGB <= 0.04045, _SRGB / 12.92, ((_SRGB + 0.055) / 1.055) ** 2.4)
"""Linear light in [0, 1] of each level of a channel (IEC 61966-2-1)."""
XYZ_OF_RGB = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
"""CIE XYZ of linear red, green and blue, white at Y = 1 (IEC 61966-2-1)."""
WHITE = XYZ_OF_RGB.sum(1)


def color(frames_HWC: Iterable[np.ndarray]) -> Iterator[float]:
    """Distance of the mean colours of a frame and of the first one, ΔE*ab of 1976 (ISO/CIE 11664-4); 0 for the first.

    The mean is that of linear light. Black and white are 100 apart; some 2.3 is the least that an eye sees (Mahy et
    al. 1994). What moves within the picture and keeps its colour changes nothing.
    """
    first = None
    for frame_HWC in frames_HWC:
        now = lab(LINEAR[frame_HWC].mean((0, 1)))
        first = now if first is None else first
        yield float(np.linalg.norm(now - first))


def lab(linear_C: np.ndarray) -> np.ndarray:
    """CIE L*, a*, b* (3) of one colour in linear light in [0, 1]."""
    ratio = XYZ_OF_RGB @ linear_C / WHITE
    x, y, z = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


COLOR = Metric(color, "distance of the mean colour to the first frame's", "CIE ΔE*ab", "last")
