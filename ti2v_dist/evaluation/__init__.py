"""Metrics of a video's frames, with no network behind them: a file a metric, and a line in `METRICS`."""

from ti2v_dist.evaluation.base import Metric, measure
from ti2v_dist.evaluation.color import COLOR
from ti2v_dist.evaluation.flicker import FLICKER
from ti2v_dist.evaluation.identity import IDENTITY
from ti2v_dist.evaluation.motion import MOTION
from ti2v_dist.evaluation.sharpness import SHARPNESS

__all__ = ["METRICS", "Metric", "measure"]

METRICS: dict[str, Metric] = {
    "motion": MOTION,
    "sharpness": SHARPNESS,
    "color": COLOR,
    "flicker": FLICKER,
    "identity": IDENTITY,
}
"""Every metric by its name."""
