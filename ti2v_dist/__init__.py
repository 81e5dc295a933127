"""Distributed long-video generation with frozen diffusion models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ti2v_dist.engine import Engine
    from ti2v_dist.operations.driver import run
    from ti2v_dist.operations.generate import generate
    from ti2v_dist.params import SamplingParams
    from ti2v_dist.video import VideoRequest

__version__ = "0.1.0"
__all__ = ["Engine", "SamplingParams", "VideoRequest", "generate", "run"]

_ROOMS = {
    "Engine": "engine",
    "SamplingParams": "params",
    "VideoRequest": "video",
    "generate": "operations.generate",
    "run": "operations.driver",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `ti2v --help` needs neither torch nor Ray."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
