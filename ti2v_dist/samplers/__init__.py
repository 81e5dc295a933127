"""The video algorithms: one file and one function each, found by the names in `specs.SAMPLERS`."""

from importlib import import_module
from typing import Any

from ti2v_dist.samplers.base import Begin, Sampler
from ti2v_dist.specs import SAMPLERS


def load_sampler(name: str) -> Sampler:
    """The function of a sampler's name. Its module is one of ours, or a dotted one of somebody else's package."""
    return _loaded(SAMPLERS[name].function)


def load_begin(name: str) -> Begin | None:
    """What makes a video's anchor, for a sampler that has one."""
    begin = SAMPLERS[name].begin
    return _loaded(begin) if begin else None


def _loaded(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(import_module(module if "." in module else f"{__name__}.{module}"), function)
