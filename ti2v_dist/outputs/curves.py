"""What the metrics say of a finished video, in the few numbers that a page draws; kept, so that it is measured once.

F frames of a video.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ti2v_dist.canonical import canonical_json, canonical_sha256
from ti2v_dist.evaluation import METRICS

POINTS = 32
"""The most points of a drawn curve."""
DIGITS = 6


@dataclass(frozen=True)
class Drift:
    """Of each metric: its figure, and the points of its curve, the first of which is frame 0's value."""

    figures: dict[str, float]
    points: dict[str, list[float]]

    @classmethod
    def of(cls, curves: Mapping[str, np.ndarray]) -> "Drift":
        """From the curve_F of every metric of `METRICS`."""
        figures = {name: _short(metric.figure_of(curves[name])) for name, metric in METRICS.items()}
        return cls(figures, {name: points_of(curves[name]) for name in METRICS})

    @classmethod
    def read(cls, data: bytes) -> "Drift | None":
        """Inverse of `data`; None for what is no such file, or was measured by other metrics."""
        try:
            plain = json.loads(data)
            drift = cls({**plain["figures"]}, {**plain["points"]})
        except (ValueError, KeyError, TypeError):
            return None
        return drift if plain.get("metrics") == _metrics() and drift.data == data else None

    @property
    def data(self) -> bytes:
        """The bytes that are kept of it."""
        return canonical_json({"metrics": _metrics(), "figures": self.figures, "points": self.points})

    def moved(self, name: str) -> float:
        """How far a metric's figure is from the first frame's value: what the video has drifted."""
        return abs(self.figures[name] - self.points[name][0])


def points_of(curve_F: Sequence[float] | np.ndarray) -> list[float]:
    """At most `POINTS` values of a curve of at least one frame: frame 0's, then of each stretch of frames the value
    that is farthest from it, so that no fault of a single frame is lost."""
    first, *rest = (float(value) for value in curve_F)
    edges = np.linspace(0, len(rest), min(POINTS - 1, len(rest)) + 1).round().astype(int)
    stretches = (rest[start:end] for start, end in pairwise(edges))
    return [_short(value) for value in (first, *(max(s, key=lambda value: abs(value - first)) for s in stretches))]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _metrics() -> str:
    """A hash of what the metrics are: where one is changed or new, every video is measured anew."""
    return canonical_sha256({name: [one.about, one.unit, one.figure] for name, one in METRICS.items()})
