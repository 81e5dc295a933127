"""What a metric is: a value for each frame of a video, read as a stream, and the one figure that stands for them.

F frames, H height, W width, C channels (3: red, green, blue, sRGB). A level is a step of uint8: black is 0, white 255.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

LUMA_C = np.array([0.2126, 0.7152, 0.0722])
"""Weights of the channels in luma (ITU-R BT.709)."""


@dataclass(frozen=True)
class Metric:
    """One metric; its name is its key in `METRICS`.

    `values` is a generator function: it takes uint8 frames_HWC of one size, and yields one finite value, in `unit`, for
    each frame before it takes the next. So a video of any length is measured in the memory of a few frames. `about`
    says in a few words what the values are, `figure` how they become one.
    """

    values: Callable[[Iterable[np.ndarray]], Iterator[float]]
    about: str
    unit: str
    figure: Literal["mean", "last", "slope"]

    def curve(self, frames_HWC: Iterable[np.ndarray]) -> np.ndarray:
        """The values of a video (F), float64. Its frames may be a stream or one array (F, H, W, C)."""
        return np.fromiter(self.values(frames_HWC), np.float64)

    def figure_of(self, curve_F: np.ndarray) -> float:
        """One figure for a curve of at least one frame."""
        return FIGURES[self.figure](curve_F)


def measure(frames_HWC: Iterable[np.ndarray], metrics: Mapping[str, Metric]) -> dict[str, np.ndarray]:
    """The curve (F) of each metric by its name, in one pass over uint8 frames.

    Raises `IndexError` for a metric that takes a frame before it has yielded the value of the one before.
    """
    hands: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
    values = {name: metric.values(_dealt(hands[name])) for name, metric in metrics.items()}
    curves: dict[str, list[float]] = {name: [] for name in metrics}
    for frame_HWC in frames_HWC:
        for name in metrics:
            hands[name].append(frame_HWC)
            curves[name].append(next(values[name]))
    return {name: np.array(curve, np.float64) for name, curve in curves.items()}


def _dealt(hand: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The frames as they are put into a hand, which holds no more than one."""
    while True:
        yield hand.pop()


def mean(curve_F: np.ndarray) -> float:
    """Mean over the generated frames, which are all but the first; 0 where there is none."""
    return float(curve_F[1:].mean()) if len(curve_F) > 1 else 0.0


def last(curve_F: np.ndarray) -> float:
    """The value of the last frame."""
    return float(curve_F[-1])


def slope(curve_F: np.ndarray) -> float:
    """Least-squares change of a curve per frame, over the generated frames; 0 for fewer than two."""
    if len(curve_F) < 3:
        return 0.0
    return float(np.polyfit(np.arange(1, len(curve_F)), curve_F[1:], 1)[0])


FIGURES: dict[str, Callable[[np.ndarray], float]] = {"mean": mean, "last": last, "slope": slope}
