"""How much a video's joins stand out: the change across each, beside the changes inside of the two chunks that meet.

Names and suffixes as in `base.py`.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ti2v_dist.evaluation.base import LUMA_C
from ti2v_dist.evaluation.sharpness import LEAST, laplacian

DIGITS = 3


class Change(NamedTuple):
    """From one frame to the next, by the names of the figures.

    `color` is the distance of the channels' means, in levels: a blur keeps them, as it would not keep the mean of
    linear light. `sharpness` is the logarithm of the ratio of the variances of the Laplacian of luma, without its sign;
    `motion` the mean absolute difference of pixels, in levels, once their channels' means are taken off: a change of
    colour alone is no motion.
    """

    color: float
    sharpness: float
    motion: float


UNSEEN = Change(color=0.1, sharpness=0.01, motion=0.1)
"""Changes that nobody sees; less counts as so much. So a still video has a figure, and none is made of rounding."""


class Seams:
    """Fed with the frames of a video, uint8 of one size; keeps one of them, and the changes inside of two chunks."""

    def __init__(self) -> None:
        self._count = 0
        self._before: _Look | None = None
        self._inside: list[Change] | None = None
        """Changes inside of the chunk in hand; None before the first one."""
        self._open: tuple[int, Change, list[Change]] | None = None
        """The last join: its frame, the change across it, and those inside of the chunk before."""
        self._closed: list[dict[str, Any]] = []

    def add(self, frame_HWC: np.ndarray, begins: bool) -> None:
        """The next frame, and whether it is the first one of a chunk. Those before the first chunk are in none."""
        now, across = _Look.of(frame_HWC), None
        if self._before is not None and self._inside is not None:
            across = now.change_from(self._before)
        if begins:
            self._closed += self._pending()
            self._open = (self._count, across, self._inside or []) if across else None
            self._inside = []
        elif across and self._inside is not None:
            self._inside.append(across)
        self._before, self._count = now, self._count + 1

    def joins(self) -> list[dict[str, Any]]:
        """Of each join so far: `frame`, the first one behind it, and a figure for each measure of `Change`.

        A figure is the change across it as a ratio to the median of the changes inside of the two chunks: 1 is like any
        two frames. A join of chunks of one frame each has nothing to be compared with, and is left out.
        """
        return [*self._closed, *self._pending()]

    def _pending(self) -> list[dict[str, Any]]:
        """The last join, as far as the chunk behind it has come."""
        if self._open is None:
            return []
        frame, across, inside = self._open
        inside = [*inside, *(self._inside or ())]
        return [{"frame": frame, **_figures(across, inside)}] if inside else []


class _Look(NamedTuple):
    """What is remembered of a frame."""

    frame_HWC: np.ndarray
    mean_C: np.ndarray
    detail: float

    @classmethod
    def of(cls, frame_HWC: np.ndarray) -> "_Look":
        detail = laplacian(frame_HWC.astype(np.float32) @ LUMA_C.astype(np.float32)).var(dtype=np.float64)
        return cls(frame_HWC.copy(), frame_HWC.mean((0, 1)), float(detail) + LEAST)

    def change_from(self, before: "_Look") -> Change:
        moved_HWC = self.frame_HWC.astype(np.float32) - before.frame_HWC
        recoloured_C = self.mean_C - before.mean_C
        moved_HWC -= recoloured_C.astype(np.float32)
        return Change(
            color=float(np.linalg.norm(recoloured_C)),
            sharpness=float(abs(np.log(self.detail / before.detail))),
            motion=float(np.abs(moved_HWC).mean(dtype=np.float64)),
        )


def _figures(across: Change, inside: Iterable[Change]) -> dict[str, float]:
    usual = np.maximum(np.median(list(inside), axis=0), UNSEEN)
    ratios = np.maximum(across, UNSEEN) / usual
    return {name: float(f"{ratio:.{DIGITS}g}") for name, ratio in zip(Change._fields, ratios, strict=True)}
